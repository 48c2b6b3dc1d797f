"""Outputs that appear whole or not at all, and what is said of files that are damaged.

No result depends on this module, and nothing is stale after an edit of it (`jobs.fingerprint`).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from adaptive_routing.system.disk import no_room
from adaptive_routing.system.errors import InputError, OutputError

MADE_ANEW = "delete it and run again"


@contextlib.contextmanager
def atomic_path(path: Path | str, durable: bool = True) -> Iterator[Path]:
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
        reason = no_room(error) or error.strerror
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
        if reason := no_room(error):
            raise OutputError(f"{path} cannot be written: {reason}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def blaming(schema: str, *paths: Path | str) -> Iterator[None]:
    """Do work with JSON files; where it fails and one of them violates their schema, say that instead.

    The files are checked only then: checking takes longer than most of the work.

    Args:
        schema: a name, for schemas/{schema}.schema.json, or a function that makes the schema.
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

    folder = Path(__file__).parents[3] / "schemas"
    found = schema() if callable(schema) else orjson.loads((folder / f"{schema}.schema.json").read_bytes())
    validator = jsonschema.Draft202012Validator(found)
    for path in paths:
        content = orjson.loads(Path(path).read_bytes())
        violation = jsonschema.exceptions.best_match(validator.iter_errors(content))
        if violation is not None:
            # Some messages start with the whole of what was found.
            message, found = violation.message, repr(violation.instance)
            if message.startswith(found):
                message = excerpt(violation.instance) + message.removeprefix(found)
            return f"{path}: {violation.json_path}: {message}; {MADE_ANEW}"
    return None


def excerpt(value: object) -> str:
    """A value as JSON, on one line and in at most 80 characters."""
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:79]}…"
