"""What every job script does around its work: a log, one-sentence errors, a clean end when terminated."""

import contextlib
import signal
import sys
import traceback
from pathlib import Path

from adaptive_routing.errors import InputError


class _Tee:
    """Writes to the terminal and to the rule's log file."""

    def __init__(self, *streams):
        self.streams = streams

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


@contextlib.contextmanager
def job(snakemake):
    """Run a script's body with stderr copied to the rule's log.

    An `InputError` ends the job with its sentence and status 1, without a traceback. SIGTERM becomes
    SystemExit, so that `finally` blocks run and no temporary file stays behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with open(log_path, "w") as log:
        sys.stderr = _Tee(terminal, log)
        try:
            yield
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Exception:
            log.write(traceback.format_exc())
            raise
        finally:
            sys.stderr = terminal
