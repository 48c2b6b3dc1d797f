"""Which code runs: the project's version and, in a git checkout, its commit.

Jobs get the answer and do not import this module: a new version or commit alone makes nothing stale.
"""

import subprocess
import tomllib
from pathlib import Path
from typing import TypedDict

# What decides results. A changed config file is no change of the code.
CODE = ("Snakefile", "rules", "schemas", "workflow_scripts")
GIT_SECONDS = 10  # on a slow network file system the commit is not worth more waiting


class CodeVersion(TypedDict):
    """What `code_version` returns."""

    version: str | None
    commit: str | None
    local_changes: bool | None


def code_version(folder: Path | str) -> CodeVersion:
    """The version of the workflow in `folder`.

    Returns:
        dict: `version`, null without a pyproject.toml; `commit`, null where the folder is no git checkout or
        git is missing; and `local_changes`, whether the code differs from the commit by changed or new files,
        null without one.
    """
    commit, local_changes = _git_state(folder) if Path(folder, ".git").exists() else (None, None)
    return {"version": _version(folder), "commit": commit, "local_changes": local_changes}


def _version(folder):
    try:
        return tomllib.loads(Path(folder, "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    except FileNotFoundError:
        return None


def _git_state(folder):
    command = ["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--"]
    try:
        status = subprocess.run(
            [*command, *CODE], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    state, changes = [], []
    for line in status.stdout.splitlines():
        (state if line.startswith("#") else changes).append(line)
    commits = [line.split()[-1] for line in state if line.startswith("# branch.oid ")]
    if not commits or commits[0] == "(initial)":
        return None, None
    return commits[0], bool(changes)
