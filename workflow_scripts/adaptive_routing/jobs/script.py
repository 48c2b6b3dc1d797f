"""What every job script does around its work: a log, one-sentence errors, a clean end when terminated."""

import contextlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from adaptive_routing.system.errors import HostError, InputError, OutputError, lack_of_memory
from adaptive_routing.system.processes import ending_with

WORKFLOW_VARIABLE = "ADAPTIVE_ROUTING_WORKFLOW"
_MOST_CHARACTERS = 100_000  # Linux takes 128 KiB


def tell_jobs(**facts: Any) -> None:
    """In the workflow's own process: tell the jobs that it starts which workflow they belong to.

    It differs from run to run, so it goes through the environment: Snakemake's `config` holds settings alone.

    Called again, it adds to what it told before, unless that becomes too long for the environment.

    Args:
        process: the workflow's, as `processes.identity` gives it.
        code_version: as `version.code_version` gives it.
        planned: the experiments that this run makes, as `PlannedExperiments` of the job `run_experiment`.
    """
    told_before = {} if "process" in facts else json.loads(os.environ[WORKFLOW_VARIABLE])
    told_now = json.dumps(told_before | facts)
    if len(told_now) < _MOST_CHARACTERS:
        os.environ[WORKFLOW_VARIABLE] = told_now


def told(key: str) -> Any:
    """What `tell_jobs` told, by the name of its argument; None in a script that no workflow started."""
    return json.loads(os.environ.get(WORKFLOW_VARIABLE, "{}")).get(key)


class Tee:
    """Writes to several streams: a job's to the terminal and to the rule's log file.

    Where one cannot be written to (a full disk, a terminal that is gone) the others still are. A line is
    written at once with its end, which `print` gives apart: other jobs write to the same terminal.
    """

    def __init__(self, *streams: TextIO) -> None:
        self.streams = list(streams)
        self._begun = ""

    def write(self, text: str) -> int:
        self._begun += text
        if text.endswith(("\n", "\r")):
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what has begun, a whole line or not."""
        text, self._begun = self._begun, ""
        for stream in self.streams if text else ():
            with contextlib.suppress(OSError):
                stream.write(text)
                stream.flush()

    def isatty(self) -> bool:
        return False


def exit_on_sigterm() -> None:
    """Make SIGTERM a SystemExit, so that `finally` blocks run and no temporary file stays behind."""

    def leave(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)


def _ending_with_workflow():
    process = told("process")
    if process is None:
        return contextlib.nullcontext()
    return ending_with(*process, "the workflow that this job belongs to")


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run a script's body with stderr copied to the rule's log.

    An `InputError`, `OutputError` or `HostError` and a lack of memory end the job with a sentence and status
    1, without a traceback; Ctrl-C ends it with status 130. The job ends with the Snakemake process that
    started it, even if that is killed.
    """
    exit_on_sigterm()
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    # Without a buffer, which would be written again on closing and fail again where the disk is full.
    with open(log_path, "wb", buffering=0) as file:
        log = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
        sys.stderr = Tee(terminal, log)
        try:
            with _ending_with_workflow():
                yield
        except (InputError, OutputError, HostError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            with contextlib.suppress(OSError, MemoryError):
                log.write(traceback.format_exc())
            if (sentence := lack_of_memory(error)) is None:
                raise
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(1)
        finally:
            sys.stderr.flush()
            sys.stderr = terminal
