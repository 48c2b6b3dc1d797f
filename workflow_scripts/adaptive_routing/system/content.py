"""What files hold, in a few digits: a file that is replaced is noticed whatever its time stamp says.

Snakemake compares time stamps, and does not see a file that was replaced by an older one.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

# Files up to here are read whole each time the workflow is read: at 1 GB/s, 64 ms.
WHOLE_BYTES = 1 << 26
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def content_fingerprint(paths: Iterable[Path | str]) -> str | None:
    """A hash of the names and contents of files; None of no files.

    Of a file larger than `WHOLE_BYTES`, such as a model's weights, it covers size, time stamp (in
    nanoseconds) and 64 samples of 64 KiB, evenly spaced, the first and the last of them at its ends.
    """
    total = hashlib.sha256()
    paths = list(map(Path, paths))
    for path in paths:
        total.update(f"{path.name} {_fingerprint(path)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16] if paths else None


def _fingerprint(path):
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size <= WHOLE_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
            last = status.st_size - _SAMPLE_BYTES
            for number in range(_SAMPLES):
                file.seek(last * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
            return digest.hexdigest()
    except OSError as error:
        return f"not readable: {error.errno}"
