"""Snakemake in forks of one process that has imported it: the command's plans in half the time, and runs.

Importing Snakemake and what the workflow imports takes most of a dry run. The server does it once, except for
the workflow's own package, which every run imports from its own project, as it is there at that time. A run
is a fork that changes to the folder, takes over the environment and calls Snakemake's own entry point; it
ends as a process of its own does. `test_staleness.py` compares it with the command.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time

PACKAGE = "adaptive_routing"  # each run's own


class SnakemakeServer:
    """The server's side of whoever asks; it ends with this process, or with `close`."""

    def __init__(self):
        self._process = self._variables = None

    def run(self, arguments, folder, environment):
        """Run Snakemake in a folder.

        Args:
            arguments: of its command line.
            folder: the working directory.
            environment: the process's whole environment.

        Returns:
            subprocess.CompletedProcess: with its exit status, stdout and stderr.
        """
        arguments = list(map(str, arguments))
        command = [sys.executable, "-m", "snakemake", *arguments]
        variables = {name: value for name, value in environment.items() if name.startswith("PYTHON")}
        if self._process is None:
            self._start(environment)
            self._variables = variables
        if variables != self._variables:  # what Python reads when it starts
            return subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
        with tempfile.TemporaryDirectory() as outputs:
            paths = [os.path.join(outputs, name) for name in ("stdout", "stderr")]
            request = {"arguments": arguments, "folder": str(folder), "environment": dict(environment)}
            print(json.dumps(request | {"outputs": paths}), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            assert answer, "the server of Snakemake has ended"
            stdout, stderr = (open(path, encoding="utf-8").read() for path in paths)  # noqa: SIM115
        return subprocess.CompletedProcess(command, json.loads(answer), stdout, stderr)

    def _start(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(self.close)

    def close(self):
        """End the server."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None
            atexit.unregister(self.close)


def serve():
    """Answer requests, one JSON line each, until there are no more."""
    # Runs get descriptors 0 to 2 of their own; these two are the server's alone.
    requests, answers = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "r"), (1, "w")))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    import snakemake.cli  # noqa: F401

    is_first = True
    for line in iter(requests.readline, ""):
        reading, writing = os.pipe()
        gc.freeze()
        child = os.fork()
        if child == 0:
            os.close(reading)
            requests.close()
            answers.close()
            run(json.loads(line), writing)  # does not return
        os.close(writing)
        with os.fdopen(reading) as names:
            imported = names.read().split()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
        if is_first:
            import_all(imported)
            is_first = False


def run(request, report):
    """Be a process of Snakemake; at the end, tell which modules it has imported."""
    sys.argv = [sys.modules["snakemake"].__path__[0] + "/__main__.py", *request["arguments"]]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None  # the environment says which
    sys.path[0] = os.getcwd()  # as `python -m` has it
    importlib.invalidate_caches()
    gc.disable()  # a process that ends soon
    for number, path in enumerate(request["outputs"], start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    from snakemake.cli import main

    try:
        main(request["arguments"])
    finally:
        names = [name for name in sys.modules if name.split(".")[0] not in (PACKAGE, "__main__")]
        with os.fdopen(report, "w") as names_file:
            print(*names, file=names_file)


def import_all(names):
    """Import modules, as far as they are modules with a name of their own."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


if __name__ == "__main__":
    serve()
