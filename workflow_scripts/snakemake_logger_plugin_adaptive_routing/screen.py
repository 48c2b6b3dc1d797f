"""Where a run is shown: a terminal, with a picture redrawn in place below the lines, or plain lines."""

import contextlib
import os
import sys
import threading

REFRESH_SECONDS = 0.25
UP, ERASE_LINE_END, ERASE_BELOW = "\x1b[{}A", "\x1b[K", "\x1b[J"
SIGNS = ("━", "─", "✓", "▸")
PLAIN_SIGNS = ("#", "-", "x", ">")


def open_screen(descriptor, lock, draw, with_colors):
    """A `Screen` where a terminal is, else `Lines`.

    Args:
        descriptor: 1 or 2. The screen keeps a copy, whatever becomes of the stream.
        lock: held while something is written.
        draw: see `Screen`.
        with_colors: whether colours are wanted.
    """
    named = sys.stdout if descriptor == 1 else sys.stderr
    encoding = getattr(named, "encoding", None) or "utf-8"
    stream = os.fdopen(os.dup(descriptor), "w", encoding=encoding, errors="replace")
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Screen(stream, lock, draw, with_colors and "NO_COLOR" not in os.environ)
    return Lines(stream, lock)


class Lines:
    """A file, a pipe, or a terminal that cannot move its cursor: plain lines."""

    has_picture = False

    def __init__(self, stream, lock):
        self._stream, self._lock = stream, lock

    def say(self, text, color=None):
        """Write a line that stays."""
        with self._lock, contextlib.suppress(OSError):
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self):
        """Nothing is held back."""
        with contextlib.suppress(OSError):
            self._stream.close()


class Screen:
    """A terminal.

    Each redrawing is one write that goes over the old picture line by line and erases nothing before: nothing
    flashes. Lines are cut to the width, so that none wraps.

    Args:
        stream: the terminal.
        lock: held while something is written.
        draw: gives the picture's rows for a width, each a list of (text, colour or None). It is called with
            the lock held.
        with_colors: whether colours are wanted.
    """

    has_picture = True

    def __init__(self, stream, lock, draw, with_colors):
        self._stream, self._lock, self._draw, self._with_colors = stream, lock, draw, with_colors
        self._lengths = []  # of the lines on the screen
        self._shown = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._thread.start()

    @property
    def signs(self):
        """What bars and marks are made of, as far as the terminal's encoding has them."""
        try:
            "".join(SIGNS).encode(self._stream.encoding)
        except UnicodeEncodeError:
            return PLAIN_SIGNS
        return SIGNS

    def say(self, text, color=None):
        """Write a line that stays, above the picture."""
        with self._lock:
            lines = [self._colored(line, color) + ERASE_LINE_END for line in text.splitlines()]
            self._redraw(lines)

    def close(self):
        """Draw the picture a last time; it stays."""
        self._is_over.set()
        self._thread.join()
        with self._lock:
            self._redraw([])
        with contextlib.suppress(OSError):
            self._stream.close()

    def _refresh(self):
        while not self._is_over.wait(REFRESH_SECONDS):
            with self._lock:
                self._redraw([], only_changes=True)

    def _redraw(self, above, only_changes=False):
        """Write lines in the place of the picture, and the picture below them."""
        try:
            columns, height = os.get_terminal_size(self._stream.fileno())
        except OSError:
            columns, height = 80, 24
        width = max(columns - 1, 1)  # a full last column would wrap in some terminals
        rows = [_cut(row, width) for row in self._draw(width)][: max(height - 1, 0)]
        if only_changes and (rows, columns) == self._shown:
            return
        self._shown = rows, columns
        # A terminal that became narrower has wrapped the old lines.
        lines_up = sum(max(-(-length // columns), 1) for length in self._lengths)
        text = "\r" + (UP.format(lines_up) if lines_up else "")
        drawn = ["".join(self._colored(*piece) for piece in row) + ERASE_LINE_END for row in rows]
        text += "".join(f"{line}\n" for line in (*above, *drawn)) + ERASE_BELOW
        self._lengths = [sum(len(text) for text, _ in row) for row in rows]
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason to end a run
            self._stream.write(text)
            self._stream.flush()

    def _colored(self, text, color):
        return f"\x1b[{color}m{text}\x1b[0m" if color and self._with_colors else text


def _cut(row, width):
    """A row's pieces as far as they fit."""
    cut = []
    for text, color in row:
        if len(text) > width:
            text = text[: max(width - 3, 0)] + "..."[:width]
        cut.append((text, color))
        width -= len(text)
        if width <= 0:
            break
    return cut
