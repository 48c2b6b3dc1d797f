"""Room on disks: whether there is enough, and which errors say that there is none left.

No result depends on this module, and nothing is stale after an edit of it (`jobs.fingerprint`).
"""

import errno
import re
import shutil
from pathlib import Path

from adaptive_routing.system.errors import InputError

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than `ulimit -f` or the file system allows",
}


def no_room(error: BaseException) -> str | None:
    """Why a file could not be written whole, in words; None where an error is no lack of room."""
    number = getattr(error, "errno", None)
    # safetensors and tokenizers, written in Rust, have the system's number in their messages only.
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    return _NO_ROOM.get(number)


def check_room(folder: Path, needed: int, work: str, remedy: str) -> None:
    """Raise InputError unless a folder's disk has `needed` bytes free.

    Args:
        folder: it, or the nearest one above it, exists.
        work: what needs them, the beginning of the sentence; `remedy` is the end of it.
    """
    free = free_bytes(folder)
    if needed > free:
        raise InputError(f"{work} needs {in_words(needed)}, but {folder} has {in_words(free)} free; {remedy}")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet; one above it does."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def in_words(number: float) -> str:
    """A number of bytes with its unit."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.0f} kB"
