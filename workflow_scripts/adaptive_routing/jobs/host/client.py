"""A job's side of the model host: find or start the host, hand over the request, relay what it says.

Imports the standard library and psutil only (Snakemake has imported that already), so that a job costs
next to nothing of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.jobs.host import gpus, keeper, socket_folder
from adaptive_routing.system.errors import HostError, InputError
from adaptive_routing.system.processes import is_alive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PACKAGE = Path(__file__).parents[2]
SERVER = "adaptive_routing.jobs.host.server"
IDLE_SECONDS = 600
CANCEL_SECONDS = 10  # how long an interrupted job waits for the host to clean up
END_SECONDS = 3  # how long the word on a host's end may take to reach its log


def execute(name: str, request: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Run a job of `model_jobs.JOBS`, in the model host or in this process as `config["execution"]` says.

    Args:
        name: the job.
        request: a dict of JSON values with `model` (path of model.json), `dtype`, `device`, `gpus` where the
            model is spread over several, and the job's own.
        config: the settings.

    Raises:
        InputError: the job's own.
        HostError: the host cannot be reached, or ended during the job.
        SystemExit: the job failed in the host; its traceback is printed.
    """
    request = json.loads(json.dumps(request))  # the same values in either place
    owner, in_host = keeper.owner(), config["execution"] == "host"
    jobs = gpus.JOBS_OF_A_HOST if in_host else 1
    with gpus.leased_gpus(request["device"], owner, request.get("gpus", 1), jobs) as leased:
        environment = _environment(leased)
        if not in_host:
            _do_here(name, request, environment)
        else:
            _have_done(name, request, owner, environment, config["results"])


def _do_here(name, request, environment):
    os.environ.update(environment)  # before torch looks
    from adaptive_routing.jobs.model_jobs import JOBS, Cache

    with contextlib.closing(Cache()) as cache:
        JOBS[name](request, cache)


def start_early(model: Mapping[str, Any], execution: str, results: str) -> None:
    """In the workflow's own process: start the model host that its jobs will ask for.

    So libraries are imported while the model is inspected and data sets are prepared. What goes wrong here
    the jobs will say.

    Args:
        model: the settings of the model.
        execution: that setting; nothing is started unless it is "host".
        results: the results folder.
    """
    owner = keeper.owner_of_own_jobs()
    if execution != "host" or not owner:
        return
    number = model["gpus_per_experiment"]
    content = _content(model, model["dtype"], number)
    with (
        contextlib.suppress(InputError, HostError, OSError),
        gpus.leased_gpus(model["device"], owner, number, gpus.JOBS_OF_A_HOST) as leased,
        socket_folder.locked_folder() as folder,
    ):
        host = _Host(model["device"], number, content, owner, _environment(leased), results)
        host.start(folder / host.socket_name())


def _environment(leased):
    return dict(os.environ) if leased is None else {**os.environ, gpus.VARIABLE: leased}


def _have_done(name, request, owner, environment, results):
    """Have a model host do the job."""
    model, number = json.loads(Path(request["model"]).read_bytes()), request.get("gpus", 1)
    content = _content(model, request["dtype"], number)
    host = _Host(request["device"], number, content, owner, environment, results)
    message = {"job": name, "request": request}
    # A host that ends before the job's turn (idle, or after another job's failure) leaves it to the next.
    while not _offer(message, host, host.socket_name(model["fingerprint"])):
        if not is_alive(*owner):
            raise HostError("the workflow that this job belongs to has ended, and the model host with it")


class _Host:
    """The host that a job wants, and how to start it.

    Args:
        device: the setting.
        number: how many GPUs the model is spread over.
        content: `_content`.
        owner: what `keeper.owner` gives.
        environment: environment variables, with the GPUs that it sees.
        results: the results folder.
    """

    def __init__(self, device, number, content, owner, environment, results):
        # What a workflow has one host of at a time. Requests hold relative paths.
        seen = environment.get(gpus.VARIABLE)
        place = {"device": device, gpus.VARIABLE: seen, "folder": os.getcwd()}
        self._gpus, self._content, self._owner, self._environment = number, content, owner, environment
        self._place = _short_hash([place, owner])
        self.log_path = Path(results, "job_logs", f"model_host_{_short_hash(place)}.log")

    def socket_name(self, fingerprint=None):
        """The name of its socket; before a job has told the model's fingerprint, without it."""
        return socket_folder.socket_name(self._place, _short_hash([self._content, fingerprint]))

    def start(self, path):
        """Start it, with a socket at a path; only under the folder's lock."""
        socket_folder.sweep(path.parent)
        with socket_folder.listen(path) as listener:
            try:
                keeper.start(
                    SERVER,
                    listener,
                    path.stat().st_ino,
                    self._owner,
                    self.log_path,
                    _importing(self._environment),
                    IDLE_SECONDS,
                    self._gpus,
                )
            except BaseException:
                path.unlink()
                raise


def _content(model, dtype, number):
    """What decides what a host loads and runs, but for the model's fingerprint.

    No host does a job that asks for another.
    """
    return {
        "name": model["name"],
        "revision": model["revision"],
        "dtype": dtype,
        "gpus": number,
        "python": sys.executable,
        "code": _code_hash(),
    }


def _code_hash():
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(f"{path.relative_to(PACKAGE)}\n".encode())
        code.update(hashlib.sha256(path.read_bytes()).digest())
    return code.hexdigest()


def _short_hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def _offer(message, host, socket_name):
    """Have a host do the job; False where it ended before the job began."""
    log_path = host.log_path
    log_size = log_path.stat().st_size if log_path.exists() else 0
    with socket_folder.locked_folder() as folder:
        path = folder / socket_name
        if not path.exists():
            socket_folder.adopt(folder / host.socket_name(), path)
        connection = socket_folder.dial(path)
        is_first = connection is None
        if is_first:
            host.start(path)
            connection = socket_folder.dial(path)
    with connection:  # ty: ignore[invalid-context-manager]
        try:
            pid, is_done = _relay(_replies(connection, message))
        except (KeyboardInterrupt, SystemExit):
            _cancel(connection)
            raise
    if not is_done and (pid or is_first):
        when = "during this job" if pid else "before it took the job"
        end = _how_it_ended(log_path, log_size, pid)
        raise HostError(f"the model host {end} {when}; its log is {log_path}")
    return is_done


def _importing(environment):
    """An environment in which Python finds this package."""
    paths = [str(PACKAGE.parent), environment.get("PYTHONPATH")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _replies(connection, message):
    """Send the job's message and yield the host's, until it closes or dies."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it was cut off
                    yield json.loads(line)
    except ConnectionError:
        return


def _relay(replies):
    """Print what the job says until it is done.

    Returns:
        The host's pid, None where the job did not begin; and whether it was done.
    """
    pid = None
    for reply in replies:
        ((kind, value),) = reply.items()
        if kind == "begun":
            pid = value
        elif kind == "stderr":
            sys.stderr.write(value)
        elif kind == "input_error":
            raise InputError(value)
        elif kind == "failed":
            sys.exit(1)
        elif kind == "done":
            return pid, True
    return pid, False


def _cancel(connection):
    """Give the job up, and wait until the host has: it removes temporary files."""
    with contextlib.suppress(OSError):  # the host is gone, or takes too long
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(CANCEL_SECONDS)
        while connection.recv(65536):
            pass


def _how_it_ended(log_path, log_size, pid):
    """What the parent of the host (of any, if its pid is not known) wrote after the log's first bytes."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        with open(log_path, "rb") as log:
            log.seek(log_size)
            text = log.read().decode(errors="replace")
        if found := re.search(rf"^model host ({pid or '[0-9]+'}) (ended .*) \(", text, re.MULTILINE):
            return f"(process {found[1]}) {found[2]}"
        time.sleep(0.05)
    return "ended without a word"
