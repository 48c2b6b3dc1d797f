"""Reading slices of safetensors files with NumPy alone.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, a JSON header, the
data. safetensors' own NumPy reader knows no bfloat16, and importing torch for it would cost every metrics
job more time than its arithmetic. A bfloat16 is the upper half of a float32, so reading it needs a shift.
"""

import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",  # raw bits, widened by `read`, ordered by `read_order`
    "F32": "<f4",
    "F64": "<f8",
}
_LENGTH_BYTES = 8


class TensorFile:
    """A safetensors file, opened for reading in slices along the first axis; a context manager.

    `metadata` holds the header's free-form strings. A file that is missing, cut off or of another
    format raises `InputError` when it is opened.
    """

    metadata: dict[str, str]
    _tensors: dict[
        str, tuple[str, tuple[int, ...], int, int]
    ]  # dtype, shape, first byte, byte after the last

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 -- closed by `close`
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}; {MADE_ANEW}.") from error
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self):
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
        self._data_start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or self._data_start > size:
            raise self._damaged("it ends within its header")
        try:
            header = orjson.loads(self._file.read(length))
            self.metadata = dict(header.pop("__metadata__", {}))
            self._tensors = {
                name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged("its header is unreadable") from error
        for name, (dtype, shape, start, stop) in self._tensors.items():
            if dtype not in _DTYPES:
                raise self._damaged(f"tensor {name!r} has dtype {dtype}; known are {', '.join(_DTYPES)}")
            if stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
                raise self._damaged(f"tensor {name!r} does not have the size it states")
        expected = self._data_start + max((stop for *_, stop in self._tensors.values()), default=0)
        if size != expected:
            raise self._damaged(f"it has {size} bytes, its header states {expected}")

    def _damaged(self, fault):
        return InputError(f"{self.path} is not a whole safetensors file: {fault}; {MADE_ANEW}.")

    def metadata_json(self, key: str) -> Any:
        """The value that the metadata hold as JSON under a key; InputError where there is none."""
        try:
            return orjson.loads(self.metadata[key])
        except KeyError:
            raise InputError(f"{self.path} has no {key!r} in its metadata; {MADE_ANEW}.") from None
        except ValueError as error:
            raise InputError(f"{self.path}: {key!r} in its metadata is no JSON; {MADE_ANEW}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[1]

    def dtype(self, name: str) -> str:
        """Return the stored dtype's safetensors name, such as "BF16"."""
        return self._entry(name)[0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read rows [start, stop) of a tensor as a new array; bfloat16 comes as float32, without rounding."""
        values = self._read_stored(name, start, stop)
        return bfloat16_to_float32(values) if self.dtype(name) == "BF16" else values

    def read_order(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.signedinteger]:
        """Read rows [start, stop) of a floating-point tensor as integers that compare as the numbers do.

        For what needs only the order, this is cheaper than numbers: a bfloat16 stays 16 bits wide.
        """
        return order_preserving_integers(self._read_stored(name, start, stop))

    def _read_stored(self, name, start, stop):
        dtype, shape, data_start, _ = self._entry(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        rows = max(stop - start, 0)
        row_size = math.prod(shape[1:])
        stored = np.dtype(_DTYPES[dtype])
        self._file.seek(self._data_start + data_start + start * row_size * stored.itemsize)
        return np.fromfile(self._file, dtype=stored, count=rows * row_size).reshape(rows, *shape[1:])

    def _entry(self, name):
        if name not in self._tensors:
            raise InputError(
                f"{self.path} has no tensor {name!r}; it has {', '.join(self._tensors)}; {MADE_ANEW}."
            )
        return self._tensors[name]


def sort_metadata(path: Path | str) -> None:
    """Put the header's free-form strings in the order of their names, in place.

    The safetensors library writes them in an order of its own, another in every process.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = orjson.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(_LENGTH_BYTES)
        file.write(orjson.dumps(header).ljust(length))


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 given as uint16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def order_preserving_integers(values: NDArray[np.floating] | NDArray[np.uint16]) -> NDArray[np.signedinteger]:
    """Map floating-point numbers, or a bfloat16's bits, to signed integers of their size in the same order.

    IEEE 754 stores a sign and a magnitude, and magnitudes have the order of their bits: the integer is the
    magnitude's bits with the sign, so that −0 and 0 are equal. Not for NaN, which has no order.
    """
    bits = values.view(f"<i{values.itemsize}")
    sign = bits >> (8 * values.itemsize - 1)  # 0, or −1 where negative
    magnitude = bits & np.iinfo(bits.dtype).max
    magnitude ^= sign
    magnitude -= sign
    return magnitude
