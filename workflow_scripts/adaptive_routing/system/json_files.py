"""JSON that any reader takes: NumPy numbers and arrays are written, NaN and infinity refused."""

import math
from pathlib import Path

import numpy as np
import orjson

from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW, atomic_path


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
