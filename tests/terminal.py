"""Runs in a pseudo-terminal, and what its screen shows at each moment."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pyte

LONGEST_RUN = 240  # seconds


class Terminal:
    """A screen that one process writes to.

    Args:
        columns, lines: its size.
    """

    def __init__(self, columns, lines=24):
        self.columns = columns
        self.lines = lines
        self.written = b""
        self.moments = []  # the screen after each of the process's writes
        self._screen = pyte.HistoryScreen(columns, lines, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)

    def run(self, begin, interrupt_at=None):
        """Run a process to its end; returns its exit status.

        Args:
            begin: starts it in a process group of its own, given the file descriptor to write to.
            interrupt_at: a text; when the screen shows it, the group gets Ctrl-C.
        """
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", self.lines, self.columns, 0, 0))
        process = begin(its)
        os.close(its)
        deadline = time.monotonic() + LONGEST_RUN
        try:
            while time.monotonic() < deadline:
                if select.select([mine], [], [], 1)[0]:
                    try:
                        written = os.read(mine, 65536)
                        while select.select([mine], [], [], 0.02)[0]:  # a write may come in parts
                            written += os.read(mine, 65536)
                    except OSError:  # nobody has it open any more
                        break
                    self.take(written)
                elif process.poll() is not None:
                    break
                if interrupt_at and self.moments and interrupt_at in self.moments[-1]:
                    os.killpg(process.pid, signal.SIGINT)
                    interrupt_at = None
            return process.wait(max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            os.close(mine)

    def take(self, written):
        """Show what was written."""
        self.written += written
        self._stream.feed(written)
        self.moments.append(self.text())

    def text(self):
        """All that one could read, from the first line that was scrolled away."""
        above = ["".join(line[x].data for x in range(self.columns)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in (*above, *self._screen.display)).rstrip()
