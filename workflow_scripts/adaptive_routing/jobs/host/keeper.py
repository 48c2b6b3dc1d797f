"""How long a model host lives: no longer than the workflow that it works for.

Run as a program this is the host's small parent. It starts the server, ends it when the workflow has
ended in whatever way, and leaves in the host's log how it ended, which only a parent learns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from adaptive_routing.jobs.host import gpus, socket_folder
from adaptive_routing.jobs.script import Tee, exit_on_sigterm
from adaptive_routing.system.processes import POLL_SECONDS, describe_end, identity, is_alive

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from typing import Any

GRACE_SECONDS = 10.0  # to clean up; a server that takes longer is killed


def owner() -> tuple[int, str]:
    """(pid, start time) of the process that this job's host works for.

    It is the outermost `snakemake` above the job on this machine; where there is none, the job's parent;
    where that has died, and the job is in the care of the system, the job itself.
    """
    job = psutil.Process()
    parents = job.parents()
    is_orphan = not parents or parents[0].pid == 1 or os.getsid(parents[0].pid) != os.getsid(0)
    otherwise = job if is_orphan else parents[0]
    return identity((_outermost_snakemake(parents) or otherwise).pid)


def owner_of_own_jobs() -> tuple[int, str] | None:
    """What `owner` is in the jobs that this process will start; None where no process is a `snakemake`."""
    process = psutil.Process()
    snakemake = _outermost_snakemake([process, *process.parents()])
    return snakemake and identity(snakemake.pid)


def _outermost_snakemake(processes):
    return next((one for one in reversed(processes) if _is_snakemake(one)), None)


def _is_snakemake(process):
    try:
        command = process.cmdline()
    except psutil.Error:  # another user's
        return False
    # `snakemake ...`, `python .../bin/snakemake ...`, `python -X dev -m snakemake ...`
    names = [Path(word).name for word in command[:5]]
    return "snakemake" in names and (names[0] == "snakemake" or "python" in names[0].lower())


def start(
    server: str,
    listener: socket.socket,
    number: int,
    owner: tuple[int, str],
    log_path: Path,
    environment: Mapping[str, str],
    idle_seconds: float,
    gpus: int = 1,
) -> None:
    """Start a host in a session of its own, with a log of its own.

    Args:
        server: module of the server.
        listener: the listening socket, which the host takes over.
        number: of the socket's file (its inode), whose name may change.
        owner: what `owner` gave; the host ends with it.
        log_path: the host's log; its end is written to.
        environment: environment variables.
        idle_seconds: the host ends after so long without a job.
        gpus: how many GPUs its model is spread over.
    """
    settings = {
        "server": server,
        "listener": listener.fileno(),
        "number": number,
        "owner": owner,
        "idle_seconds": idle_seconds,
        "gpus": gpus,
    }
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "a") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "adaptive_routing.jobs.host.keeper", json.dumps(settings)],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C in the workflow's terminal is not for the host
        )


def main(settings: Mapping[str, Any]) -> None:
    """Start the server and watch over it."""
    exit_on_sigterm()
    sys.stderr = Tee(sys.stderr)  # a log on a full disk does not keep it from its work
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", settings["server"], json.dumps(settings)],
        pass_fds=[settings["listener"]],
        stdin=subprocess.PIPE,  # closes when this process dies: the server's sign to end
    )
    os.close(settings["listener"])  # held here as well, it would outlive a server that dies
    say = f"model host {server.pid}"
    try:
        while server.poll() is None and is_alive(*settings["owner"]):
            try:
                server.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if server.poll() is None:
            print(f"{say}: the workflow has ended", file=sys.stderr, flush=True)
    finally:
        server.terminate()
        try:
            server.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{say} {describe_end(server.returncode)} ({now})", file=sys.stderr, flush=True)
        with socket_folder.locked_folder() as folder:
            socket_folder.sweep(folder)
            gpus.sweep(folder)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
