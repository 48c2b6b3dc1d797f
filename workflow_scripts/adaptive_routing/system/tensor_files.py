"""Reading slices of safetensors files with NumPy alone.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, a JSON header, the
data. safetensors' own NumPy reader knows no bfloat16, and importing torch for it would cost every metrics
job more time than its arithmetic. A bfloat16 is the upper half of a float32, so reading it needs a shift.
"""

import contextlib
import math
from pathlib import Path

import numpy as np
import orjson
from safetensors import safe_open

from adaptive_routing.system.files import reading

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

    def __init__(self, path):
        self.path = Path(path)
        with reading(self.path), contextlib.ExitStack() as on_failure:
            self._file = on_failure.enter_context(open(self.path, "rb"))
            with safe_open(self.path, "numpy") as whole:  # which it checks
                self.metadata = whole.metadata() or {}
            length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
            header = orjson.loads(self._file.read(length))
            header.pop("__metadata__", None)
            self._data_start = _LENGTH_BYTES + length
            self._tensors = {
                name: (entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][0])
                for name, entry in header.items()
            }
            on_failure.pop_all()

    def metadata_json(self, key):
        """The value that the metadata hold as JSON under a key; InputError where there is none."""
        with reading(self.path):
            return orjson.loads(self.metadata[key])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._file.close()

    def __contains__(self, name):
        return name in self._tensors

    def keys(self):
        return list(self._tensors)

    def shape(self, name):
        return self._entry(name)[1]

    def dtype(self, name):
        """Return the stored dtype's safetensors name, such as "BF16"."""
        return self._entry(name)[0]

    def read(self, name, start=0, stop=None):
        """Read rows [start, stop) of a tensor as a new array; bfloat16 comes as float32, without rounding."""
        values = self._read_stored(name, start, stop)
        return bfloat16_to_float32(values) if self.dtype(name) == "BF16" else values

    def read_order(self, name, start=0, stop=None):
        """Read rows [start, stop) of a floating-point tensor as integers that compare as the numbers do.

        For what needs only the order, this is cheaper than numbers: a bfloat16 stays 16 bits wide.
        """
        return order_preserving_integers(self._read_stored(name, start, stop))

    def _read_stored(self, name, start, stop):
        dtype, shape, data_start = self._entry(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        rows = max(stop - start, 0)
        row_size = math.prod(shape[1:])
        stored = np.dtype(_DTYPES[dtype])
        self._file.seek(self._data_start + data_start + start * row_size * stored.itemsize)
        return np.fromfile(self._file, dtype=stored, count=rows * row_size).reshape(rows, *shape[1:])

    def _entry(self, name):
        with reading(self.path):
            return self._tensors[name]


def sort_metadata(path):
    """Put the header's free-form strings in the order of their names, in place.

    The safetensors library writes them in an order of its own, another in every process.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = orjson.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(_LENGTH_BYTES)
        file.write(orjson.dumps(header).ljust(length))


def bfloat16_to_float32(bits):
    """Widen bfloat16 given as uint16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def order_preserving_integers(values):
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
