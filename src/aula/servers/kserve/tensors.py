"""Tensors on the wire. Raw ones are little-endian, row by row, as every machine here keeps them: they are read where
they lie. In JSON and in gRPC's typed lists they are numbers, flat or nested as the shape is."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from aula.core.errors import InputError

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""By the names of the protocol."""
RAW_ONLY = frozenset({"FP16", "BF16"})
"""The protocol has no numbers of these in JSON or in lists."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 4
"""Before each string of a raw BYTES tensor."""
MOST_STRINGS = 1 << 16
MOST_NUMBERS = 1 << 19
"""Elements of a BYTES tensor, and of one that comes or goes as numbers: each becomes an object, while everybody else
waits. Raw bytes have no such limit."""
MOST_AXES = 32
_LONGEST_AXIS = 1 << 31


def datatype_of(dtype: np.dtype[Any] | str) -> str:
    """The protocol's name; "" for a dtype that is not known yet. Raises InputError for one that it has no name for."""
    if dtype == "":
        return ""
    found = np.dtype(dtype) if dtype != "bfloat16" else DTYPES["BF16"]
    if found.kind in "OSU":
        return "BYTES"
    if found not in _NAMES:
        raise InputError(
            f"the protocol has no name for {found.name}", available=list(DTYPES), next_step="use another engine"
        )
    return _NAMES[found]


def checked_shape(name: str, shape: Sequence[int]) -> int:
    """How many elements it holds. Raises InputError for what is no shape."""
    if len(shape) > MOST_AXES or any(not 0 <= size < _LONGEST_AXIS for size in shape):
        raise InputError(
            f"the shape of {name[:80]!r} is {list(shape)[:MOST_AXES]}",
            available=[f"up to {MOST_AXES} sizes from 0"],
            next_step="send the sizes of the tensor itself, like [1, 16]",
        )
    return math.prod(shape)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: Any) -> Array:
    """A view of the bytes where their place in memory suits the numbers, else a copy. Raises InputError."""
    dtype = _dtype_of(name, datatype)
    count = checked_shape(name, shape)
    size = len(raw)
    if datatype == "BYTES":
        return _strings(name, count, memoryview(raw)).reshape(shape)
    if size != count * dtype.itemsize:
        raise InputError(
            f"{name[:80]!r} is {datatype} {list(shape)}, which are {count * dtype.itemsize} bytes, and {size} came",
            next_step="send as many bytes as the shape takes",
        )
    array: Array = np.frombuffer(raw, dtype).reshape(shape)
    if datatype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise InputError(f"{name[:80]!r} is BOOL, and some of its bytes are not 0 or 1", next_step="send 0 or 1")
    return array if array.flags.aligned else array.copy()


def from_json(name: str, datatype: str, shape: Sequence[int], text: Any) -> Array:
    """`text` is the JSON of the data alone, so that it is read once, as what it must be. Raises InputError."""
    dtype = _dtype_of(name, datatype)
    count = _listed(name, datatype, checked_shape(name, shape))
    if datatype in RAW_ONLY:
        raise InputError(
            f"{name[:80]!r} is {datatype}, which JSON has no numbers for", next_step="send it as binary data"
        )
    element: Any = {"b": bool, "i": int, "u": int, "f": float, "O": str}[dtype.kind]
    nested: Any = list[element]
    try:
        try:
            flat = msgspec.json.decode(text, type=nested)
        except msgspec.ValidationError:
            if len(shape) < 2:
                raise
            for _ in shape[1:]:
                nested = list[nested]
            flat = msgspec.json.decode(text, type=nested)
            for _ in shape[1:]:
                flat = [one for row in flat for one in row]
        if dtype.kind == "O":
            flat = [one.encode() for one in flat]
        return _filled(name, dtype, count, flat).reshape(shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_such_data(name, datatype, str(error)) from error


def from_list(name: str, datatype: str, shape: Sequence[int], values: Any) -> Array:
    """From a list of numbers, or of bytes, that is as long as the shape says. Raises InputError."""
    dtype = _dtype_of(name, datatype)
    count = _listed(name, datatype, checked_shape(name, shape))
    if datatype in RAW_ONLY:
        raise InputError(f"{name[:80]!r} is {datatype}, which has no list", next_step="send it as raw contents")
    return _filled(name, dtype, count, values).reshape(shape)


def to_raw(array: Array) -> Any:
    """What has the array's bytes; the array itself where it has no holes."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    parts = [as_bytes(one) for one in array.reshape(-1)]
    return b"".join(part for one in parts for part in (len(one).to_bytes(_LENGTH_BYTES, "little"), one))


def to_list(name: str, array: Array) -> list[Any]:
    """For JSON, flat. A number that is none, or infinite, becomes null: JSON has no other. Raises InputError."""
    _listed(name, datatype_of(array.dtype), array.size)
    if array.dtype.kind in "OSU":
        try:
            return [as_bytes(one).decode() for one in array.reshape(-1)]
        except UnicodeDecodeError as error:
            raise InputError(
                f"output {name!r} holds bytes that are no text", next_step="ask for it as binary data"
            ) from error
    if datatype_of(array.dtype) in RAW_ONLY:
        raise InputError(
            f"output {name!r} is {datatype_of(array.dtype)}, which JSON has no numbers for",
            next_step="ask for it as binary data",
        )
    return list(array.reshape(-1).tolist())


def _listed(name: str, datatype: str, count: int) -> int:
    """The count, if a list may be so long. Raises InputError."""
    most = MOST_STRINGS if datatype == "BYTES" else MOST_NUMBERS
    if count > most:
        raise InputError(
            f"{name[:80]!r} has {count} elements, and a list at most {most}",
            next_step="send it, or ask for it, as binary data",
        )
    return count


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InputError(
            f"the datatype of {name[:80]!r} is {datatype[:40]!r}",
            available=list(DTYPES),
            next_step="name one of these",
        )
    return dtype


def _filled(name: str, dtype: np.dtype[Any], count: int, values: Sequence[Any]) -> Array:
    if len(values) != count:
        raise InputError(
            f"the shape of {name[:80]!r} holds {count} elements, and {len(values)} came",
            next_step="send as many as the shape holds",
        )
    if dtype.kind == "O":
        return _objects(values)
    try:
        with np.errstate(over="raise"):  # a number beyond FP32 is no infinity
            return np.fromiter(values, dtype, count)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise _no_such_data(name, _NAMES[dtype], str(error)) from error


def _objects(values: Iterable[bytes]) -> Array:
    """numpy would make a string type of bytes, which cuts zeros off their ends."""
    listed = list(values)
    array = np.empty(len(listed), np.object_)
    array[:] = listed
    return array


def _strings(name: str, count: int, raw: memoryview) -> Array:
    """Each behind its length. They take four bytes at least, so that no shape asks for more memory than came."""
    if count * _LENGTH_BYTES > len(raw) or count > MOST_STRINGS:
        raise InputError(
            f"the shape of {name[:80]!r} holds {count} strings, and {len(raw)} bytes came",
            available=[f"up to {MOST_STRINGS} strings"],
            next_step="send each behind its length in four bytes",
        )
    found: list[bytes] = []
    place = 0
    for _ in range(count):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(raw[place:start], "little")
        if place > len(raw):
            break
        found.append(bytes(raw[start:place]))
    if len(found) != count or place != len(raw):
        raise InputError(
            f"the bytes of {name[:80]!r} are not {count} strings",
            next_step="send each behind its length in four bytes, little-endian",
        )
    return _objects(found)


def _no_such_data(name: str, datatype: str, why: str) -> InputError:
    return InputError(
        f"the data of {name[:80]!r} are no {datatype}: {why[:200]}",
        next_step="send numbers of that datatype, flat or nested as the shape is",
    )
