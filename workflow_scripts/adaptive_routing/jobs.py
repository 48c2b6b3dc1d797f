"""What every job script does around its work: a log, one-sentence errors, a clean end when terminated."""

import contextlib
import signal
import sys
import traceback
from pathlib import Path

from adaptive_routing.errors import HostError, InputError


class Tee:
    """Writes to several streams: a job's to the terminal and to the rule's log file."""

    def __init__(self, *streams):
        self.streams = list(streams)

    def write(self, text):
        for stream in self.streams:
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self):
        for stream in self.streams:
            stream.flush()

    def isatty(self):
        return False


def exit_on_sigterm():
    """Make SIGTERM a SystemExit, so that `finally` blocks run and no temporary file stays behind."""

    def leave(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleaning up
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)


@contextlib.contextmanager
def job(snakemake):
    """Run a script's body with stderr copied to the rule's log.

    An `InputError` or `HostError` ends the job with its sentence and status 1, without a traceback.
    """
    exit_on_sigterm()
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with open(log_path, "w") as log:
        sys.stderr = Tee(terminal, log)
        try:
            yield
        except (InputError, HostError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Exception:
            log.write(traceback.format_exc())
            raise
        finally:
            sys.stderr = terminal
