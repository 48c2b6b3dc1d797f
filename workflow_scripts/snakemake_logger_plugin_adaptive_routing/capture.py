"""Catching what is written to the terminal behind the picture's back."""

import contextlib
import os
import select
import sys
import threading


class Capture:
    """Gives this process and those that it starts a pipe in the place of some of their streams.

    Args:
        descriptors: of the streams, as 2 for stderr.
        take_line: called with each line, in a thread.
    """

    def __init__(self, descriptors, take_line):
        self._take_line = take_line
        self._flush()
        self._kept = {descriptor: os.dup(descriptor) for descriptor in descriptors}
        self._source, sink = os.pipe()
        for descriptor in descriptors:
            os.dup2(sink, descriptor)
        os.close(sink)
        # A process that outlives the run may hold the pipe open, so its end does not tell that of the run.
        self._waker, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self):
        """Give the streams back, after the last line was taken."""
        self._flush()
        for descriptor, kept in self._kept.items():
            os.dup2(kept, descriptor)
            os.close(kept)
        os.close(self._wake)
        self._thread.join()

    def _read(self):
        rest, is_over = b"", False
        while True:
            ready, _, _ = select.select([self._source, self._waker], [], [], 0 if is_over else None)
            if self._source in ready:
                said = os.read(self._source, 65536)
                if not said:
                    break
                *lines, rest = (rest + said).split(b"\n")
                for line in lines:
                    self._take_line(line.decode(errors="replace"))
            elif is_over:
                break
            is_over = is_over or self._waker in ready
        if rest:
            self._take_line(rest.decode(errors="replace"))

    @staticmethod
    def _flush():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
