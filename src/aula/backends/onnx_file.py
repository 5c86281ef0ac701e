"""What an ONNX file says of itself, read without a runtime: is it whole, what its sizes are called, who its nodes are.

Only lengths are followed and weights are stepped over, so that a file of gigabytes takes milliseconds. Field numbers:
onnx.proto3 of ONNX 1.20; wire format: protobuf.dev/programming-guides/encoding.
"""

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aula.core.errors import BackendError
from aula.core.types import TensorSpec

_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_IR_VERSION, _GRAPH = 1, 7
_NODE, _INITIALISER, _INPUT, _OUTPUT = 1, 5, 11, 12
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""TensorProto.DataType that numpy knows."""
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5

Bytes = mmap.mmap | bytes


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    operator: str
    domain: str

    def __str__(self) -> str:
        return f"{self.domain}::{self.operator}" if self.domain else self.operator


class _BrokenError(Exception):
    """A field that cannot be: its number, and how many bytes are wanting (0 where the form itself is wrong)."""

    def __init__(self, field: int, wanting: int) -> None:
        super().__init__(field, wanting)
        self.field, self.wanting = field, wanting


def check_file(path: Path, backend: str) -> None:
    """Raises BackendError for a file that is empty, cut short, or no ONNX at all. Runtimes say less of these,
    and OpenVINO writes on standard error while it tries other formats."""
    fault = _fault(path)
    if fault:
        raise BackendError(
            f"{backend} cannot load {path.name}: {fault}",
            next_step="copy or download the file again, or build the engine anew",
        )


def dimension_names(path: Path) -> dict[str, tuple[str, ...]]:
    """The name of every axis of every input, "" where it has none: OpenVINO forgets them. {} for an unreadable file."""
    try:
        with _mapped(path) as data:
            return {
                _text(data, spans, 1): tuple(_text(data, [dimension], 2) for dimension in _dimensions(data, spans))
                for spans in ([span] for span in _graph(data, _INPUT))
            }
    except (_BrokenError, OSError, ValueError):
        return {}


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a graph takes and gives. A dtype that numpy does not know is "", a free axis without a name is called after
    its tensor. Nothing of an unreadable file."""
    try:
        with _mapped(path) as data:
            weights = {_text(data, [span], 8) for span in _graph(data, _INITIALISER)}
            inputs, outputs = ([_spec(data, [span]) for span in _graph(data, field)] for field in (_INPUT, _OUTPUT))
            return tuple(spec for spec in inputs if spec.name not in weights), tuple(outputs)
    except (_BrokenError, OSError, ValueError):
        return (), ()


def unknown_node(path: Path, complaint: str) -> Node | None:
    """The first node whose operator a runtime's `complaint` is about, if it is about an operator at all."""
    if not re.search(r"not a registered|No Op registered|No conversion rule|find an implementation", complaint):
        return None
    text = complaint.replace(path.name, "")
    try:
        with _mapped(path) as data:
            for span in _graph(data, _NODE):
                node = Node(_text(data, [span], 3), _text(data, [span], 4), _text(data, [span], 7))
                if re.search(rf"(?<![A-Za-z0-9_]){re.escape(node.operator)}(?![A-Za-z0-9_])", text):
                    return Node(node.name or _text(data, [span], 2), node.operator, node.domain)
    except (_BrokenError, OSError, ValueError):
        pass
    return None


def _fault(path: Path) -> str:
    size = path.stat().st_size
    if not size:
        return "the file is empty"
    try:
        with _mapped(path) as data:
            seen = {field for field, _, _ in _fields(data, 0, size)}
    except OSError as error:
        return error.strerror or str(error)
    except _BrokenError as broken:
        # Writers put the version first and the graph, nearly all of the file, after it.
        if broken.field == _GRAPH and broken.wanting:
            return f"the file is cut short: {broken.wanting} bytes are missing at its end"
        return "this is no ONNX file, or its first bytes are damaged"
    if not seen <= _MODEL_FIELDS or _GRAPH not in seen:
        return "this is no ONNX file, or one without a graph"
    return ""


@contextmanager
def _mapped(path: Path) -> Iterator[Bytes]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


Span = tuple[int, int]


def _fields(data: Bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every field between two places; raises _BrokenError."""
    while place < end:
        tag, place = _number(data, place, end, 0)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            start = place
            _, place = _number(data, place, end, field)
        elif kind == _COUNTED:
            length, start = _number(data, place, end, field)
            place = start + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            start = place
            place += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise _BrokenError(field, 0)
        if place > end:
            raise _BrokenError(field, place - end)
        yield field, start, place


def _number(data: Bytes, place: int, end: int, field: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        if place + count >= end:
            raise _BrokenError(field, 1)
        byte = data[place + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    raise _BrokenError(field, 0)


def _inside(data: Bytes, spans: list[Span], field: int) -> list[Span]:
    return [(start, end) for span in spans for number, start, end in _fields(data, *span) if number == field]


def _graph(data: Bytes, field: int) -> list[Span]:
    return _inside(data, _inside(data, [(0, len(data))], _GRAPH), field)


def _dimensions(data: Bytes, value: list[Span]) -> list[Span]:
    """ValueInfo 2 type, Type 1 tensor, Tensor 2 shape, Shape 1 dimension."""
    for field in (2, 1, 2, 1):
        value = _inside(data, value, field)
    return value


def _spec(data: Bytes, spans: list[Span]) -> TensorSpec:
    """ValueInfo 1 name, 2 type; Type 1 tensor; Tensor 1 element type; Dimension 1 size, 2 name."""
    name = _text(data, spans, 1)
    tensor = _inside(data, _inside(data, spans, 2), 1)
    elements = [_number(data, start, end, 1)[0] for start, end in _inside(data, tensor, 1)]
    shape: list[int | str] = []
    for axis, dimension in enumerate(_dimensions(data, spans)):
        sizes = [_number(data, start, end, 1)[0] for start, end in _inside(data, [dimension], 1)]
        shape.append(sizes[0] if sizes else _text(data, [dimension], 2) or f"{name}_{axis}")
    return TensorSpec(name, _DTYPES.get(elements[0] if elements else 0, ""), tuple(shape))


def _text(data: Bytes, spans: list[Span], field: int) -> str:
    for start, end in _inside(data, spans, field)[:1]:
        return data[start:end].decode("utf-8", "replace")
    return ""
