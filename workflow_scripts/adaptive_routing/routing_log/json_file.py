"""A routing log's JSON as a file: plain, or compressed with zstd where its name ends with `.zst`.

A compressed one is in zstd's seekable format: a sample is read without those before it, and any program that
knows zstd reads all (https://github.com/facebook/zstd/tree/dev/contrib/seekable_format).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW

COMPRESSED = ".zst"
_FRAME_BYTES = 1 << 20  # of text: as much is decompressed for any part of it


def other_form(path: Path) -> Path:
    """Where the same JSON lies compressed, if the path is that of the plain one, and the other way round."""
    return path.with_suffix("") if path.suffix == COMPRESSED else path.with_name(path.name + COMPRESSED)


def present(path: Path) -> Path:
    """The path of a plain JSON, or that of the compressed one where only this is there."""
    return path if path.exists() or not other_form(path).exists() else other_form(path)


def open_to_write(path: Path) -> io.BufferedIOBase:
    """Open a new JSON; the name says in which form."""
    if path.suffix != COMPRESSED:
        return open(path, "wb")
    import pyzstd  # here, since few logs are compressed

    return pyzstd.SeekableZstdFile(path, "wb", max_frame_content_size=_FRAME_BYTES)


@contextlib.contextmanager
def open_to_read(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a JSON of either form, as a seekable file of its text.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    kinds: tuple[type[Exception], ...] = (OSError,)
    try:
        if path.suffix != COMPRESSED:
            with open(path, "rb") as file:
                yield file
            return
        import pyzstd

        kinds += EOFError, pyzstd.ZstdError, pyzstd.SeekableFormatError
        with pyzstd.SeekableZstdFile(path, "rb") as file:
            yield file
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}); {MADE_ANEW}.") from error
