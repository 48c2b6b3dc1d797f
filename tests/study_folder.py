"""Whole studies in folders of their own, run through Snakemake as a user does."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from snakemake_server import SnakemakeServer

REPOSITORY = Path(__file__).parents[1]
CODE_FOLDERS = ("rules", "workflow_scripts", "schemas", "report", "profiles", "envs")
CODE_FILES = ("Snakefile", "config.yaml", "pyproject.toml")
SERVER = SnakemakeServer()  # started when it is first asked
PLANS = {}  # what dry runs have said, by all that they depend on


def copy_project(folder):
    """Copy the workflow without its resources, for tests to edit; returns the folder."""
    for name in CODE_FOLDERS:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in CODE_FILES:
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def commit_all(folder):
    """Make a folder a git checkout of one commit that holds all of it."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "First.")


def git(folder, *arguments):
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class StudyFolder:
    """A working directory with the project's resources, a small config and its own results.

    Args:
        folder: the working directory.
        project: where the Snakefile is.
        changes: of the small config, by section.
    """

    def __init__(self, folder, project=REPOSITORY, **changes):
        self.folder, self.project = folder, project
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "resources").exists():
            (folder / "resources").symlink_to(REPOSITORY / "resources")
        shutil.copy(REPOSITORY / "config.yaml", folder / "config.yaml")
        self.settings = {
            "evaluation": {"max_samples": 6, "second_pass_samples": 2},
            "strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8, 16], "alpha": [0.30]}},
            "null_distribution": {"calibration": {"max_tokens": 1000}},
        }
        self.configure(**changes)

    def configure(self, **changes):
        """Change settings, section by section."""
        for section, values in changes.items():
            if isinstance(values, dict):
                self.settings.setdefault(section, {}).update(values)
            else:
                self.settings[section] = values
        (self.folder / "study.yaml").write_text(yaml.safe_dump(self.settings))

    def begin(self, *arguments, output=subprocess.PIPE, umask=-1, **variables):
        """Start Snakemake in a process group of its own; returns the process.

        Args:
            output: where what it prints goes.
            umask: the process's; by default this one's.
            variables: of its environment, besides this process's own; None takes one away.
        """
        environment = self._environment() | variables
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self.command_line(arguments)],
            cwd=self.folder,
            env={name: value for name, value in environment.items() if value is not None},
            umask=umask,
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )

    def command_line(self, arguments):
        """Snakemake's arguments for this study, after some of one's own."""
        # Targets come first: --resources and --configfile take all words that follow them.
        options = ["--cores", "2", "--resources", "gpu=2", "--configfile", "study.yaml"]
        return [*map(str, arguments), "--snakefile", str(self.project / "Snakefile"), *options]

    @staticmethod
    def _environment():
        return {**os.environ, "OMP_NUM_THREADS": "1"}

    def ask(self, *arguments):
        """What `snakemake` does with these arguments, in a fork of the server: without a start of Python."""
        return SERVER.run(self.command_line(arguments), self.folder, self._environment())

    def snakemake(self, *arguments, check=True):
        """Run Snakemake as `ask` does; returns the completed process."""
        return self._checked(self.ask(*arguments), check)

    def command(self, *arguments, check=True):
        """Run Snakemake as a process of its own, as a user does; returns the completed process."""
        process = self.begin(*arguments)
        stdout, stderr = process.communicate()
        return self._checked(
            subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr), check
        )

    @staticmethod
    def _checked(done, check):
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def dry_run(self, *arguments):
        """What a dry run says; one whose files are all as they were at another says the same."""
        arguments = (*arguments, "--dry-run", "--quiet", "host")
        state = self._state(arguments)
        if state not in PLANS:
            done = self.ask(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr
            PLANS[state] = done.stdout + done.stderr
        return PLANS[state]

    def _state(self, arguments):
        """All that decides a plan: code and settings by their content, all else by name, time and size."""
        environment = self._environment()
        environment.pop("PYTEST_CURRENT_TEST", None)
        state = hashlib.sha256(repr((self.folder, self.project, arguments, environment)).encode())
        code = [path for name in CODE_FOLDERS for path in sorted(self.project.joinpath(name).rglob("*"))]
        code += [self.project / name for name in CODE_FILES] + sorted(self.folder.glob("*.yaml"))
        for path in code:
            if path.is_file() and "__pycache__" not in path.parts:
                state.update(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(set(folders) - {"log", "iocache", "__pycache__"})  # new with each dry run
            for name in sorted(names):
                status = os.lstat(os.path.join(folder, name))
                if not name.endswith(".yaml"):
                    state.update(f"{folder}/{name} {status.st_mtime_ns} {status.st_size}".encode())
        return state.digest()

    def plan(self, *arguments):
        """Jobs that a run would do, by rule: Snakemake's own count, without `all`, which makes nothing."""
        text = self.dry_run(*arguments)
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats")[1].split("total")[0]
        rows = re.findall(r"^ *(\w[\w ]*?) +(\d+) *$", table, re.MULTILINE)
        return {name.replace(" ", "_"): int(count) for name, count in rows if name != "all"}

    def results(self, *parts):
        return self.folder.joinpath(self.settings.get("results", "results"), *parts)
