"""Outputs that appear whole or not at all, and JSON that any reader takes."""

import contextlib
import errno
import math
import os
import re
from pathlib import Path

import numpy as np
import orjson

from adaptive_routing.system.errors import InputError, OutputError

MADE_ANEW = "delete it and run again"
_NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


@contextlib.contextmanager
def atomic_path(path, durable=True):
    """Yield a temporary path beside `path`; move it there on success, delete it on failure.

    The temporary name starts with a dot and ends with the final name, so that writers which choose
    a format by the suffix (matplotlib) work; it is the same each time, so that what a killed process
    left behind is overwritten by the next. A `durable` file is on the disk before it gets its name, so
    that it is whole even after a power failure.

    Raises:
        OutputError: the file cannot be made, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"")
    except OSError as error:
        reason = _NO_ROOM.get(error.errno, error.strerror)
        raise OutputError(f"{path} cannot be written: {reason}") from error
    try:
        yield temporary
        # Some writers make private files; results get the permissions any other new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if durable:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if reason := _NO_ROOM.get(_error_number(error)):
            raise OutputError(f"{path} cannot be written: {reason}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _error_number(error):
    """The system's number of an error; safetensors, written in Rust, has it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def to_json(value, indent=True):
    """Encode `value` as strict JSON bytes: NumPy numbers and arrays allowed, NaN and infinity refused."""
    _refuse_non_finite(value, "$")
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    if indent:
        options |= orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, option=options)


def write_json(path, value):
    """Write `value` to `path` as indented strict JSON, whole or not at all."""
    data = to_json(value)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_json(path, remedy=MADE_ANEW):
    """Read a JSON file.

    Raises:
        InputError: it cannot be read, or is not JSON; the sentence ends with the remedy.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from error


@contextlib.contextmanager
def reading(path):
    """Read a file that the workflow wrote; whatever fails meanwhile is the file's fault.

    Raises:
        InputError: one sentence that names the file, what is wrong, and the remedy.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is damaged ({' '.join(reason.split())}): {MADE_ANEW}") from error


@contextlib.contextmanager
def blaming(schema, *paths):
    """Do work with JSON files; where it fails and one of them violates their schema, say that instead.

    The files are checked only then: checking takes longer than most of the work.

    Args:
        schema: "summary" or "metrics", for schemas/{schema}.schema.json.
        paths: of the files.

    Raises:
        InputError: a sentence that names the file, and what is wrong in it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        fault = _first_violation(schema, paths)
        if fault is None:
            raise
        raise InputError(fault) from error


def _first_violation(schema, paths):
    import jsonschema  # takes long, and is seldom needed

    schema_path = Path(__file__).parents[3] / "schemas" / f"{schema}.schema.json"
    validator = jsonschema.Draft202012Validator(read_json(schema_path))
    for path in paths:
        content = read_json(path)
        violation = jsonschema.exceptions.best_match(validator.iter_errors(content))
        if violation is not None:
            # Some messages start with the whole of what was found.
            message, found = violation.message, repr(violation.instance)
            if message.startswith(found):
                message = excerpt(violation.instance) + message.removeprefix(found)
            return f"{path}: {violation.json_path}: {message}; {MADE_ANEW}"
    return None


def excerpt(value):
    """A value as JSON, on one line and in at most 80 characters."""
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:79]}…"


def _refuse_non_finite(value, where):
    # orjson turns NaN into null silently; a hole in a result must be a decision, not an accident.
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; use None for a value that does not exist")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{where} holds NaN or infinity; use None for a value that does not exist")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}[{index}]")
