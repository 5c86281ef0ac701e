"""What is said in JSON: requests as they come in, answers as they go out."""

from collections.abc import Mapping
from typing import Any

import msgspec

from aula.core.errors import InputError
from aula.runtime import EngineInfo
from aula.servers.kserve.asking import Asked
from aula.servers.kserve.bodies import Body
from aula.servers.kserve.tensors import Array, datatype_of, from_json, from_raw, to_list, to_raw

Parameters = dict[str, Any]
_NONE: Parameters = {}
_WIRE = frozenset({"binary_data", "binary_data_output", "binary_data_size"})


class InputTensor(msgspec.Struct, gc=False):
    """`data` stays as it is, nothing where there is none, until its datatype is known."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw = msgspec.Raw()


class OutputWish(msgspec.Struct, gc=False):
    name: str
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, gc=False):
    inputs: list[InputTensor]
    id: str = ""
    parameters: Parameters | None = None
    outputs: list[OutputWish] | None = None


class IndexOptions(msgspec.Struct):
    """`ready`: only those that are."""

    ready: bool = False


_REQUESTS = msgspec.json.Decoder(InferRequest)
_INDEX = msgspec.json.Decoder(IndexOptions)
_encode = msgspec.json.Encoder().encode


def as_json(content: Any) -> bytes:
    return _encode(content)


def read_request(body: Body) -> InferRequest:
    """Raises InputError with the path to what is wrong."""
    return _decoded(_REQUESTS, body.json)  # type: ignore[no-any-return]


def read_options(body: Body) -> IndexOptions:
    """An object that may be absent."""
    return _decoded(_INDEX, body.json) if body.json else IndexOptions()


def asked(request: InferRequest, body: Body) -> Asked:
    """Raises InputError."""
    inputs: dict[str, Array] = {}
    place = 0
    told: Parameters = {}
    for one in request.inputs:
        if one.name in inputs:
            raise InputError(f"the input {one.name[:80]!r} comes twice", next_step="send each once")
        if one.parameters:
            told |= one.parameters
        size = (one.parameters or _NONE).get("binary_data_size")
        if size is None:
            if not one.data:
                raise InputError(
                    f"the input {one.name[:80]!r} has neither data nor binary_data_size", next_step="send one of them"
                )
            inputs[one.name] = from_json(one.name, one.datatype, one.shape, one.data)
            continue
        if type(size) is not int or not 0 <= size <= len(body.tensors) - place or one.data:
            raise InputError(
                f"{one.name[:80]!r} has {str(size)[:40]} binary bytes, and {len(body.tensors) - place} are left",
                next_step="send the bytes of the inputs behind the JSON, in its order, and no data beside them",
            )
        inputs[one.name] = from_raw(one.name, one.datatype, one.shape, body.tensors[place : place + size])
        place += size
    if place != len(body.tensors):
        raise InputError(
            f"{len(body.tensors) - place} bytes behind the JSON belong to no input",
            next_step="give each binary input its binary_data_size",
        )
    wishes = request.outputs or ()
    for wish in wishes:
        told |= wish.parameters or _NONE
    told |= request.parameters or _NONE
    parameters = {name: value for name, value in told.items() if name not in _WIRE}
    return Asked(inputs, tuple(wish.name for wish in wishes), parameters)


def answer(engine: EngineInfo, request: InferRequest, made: Mapping[str, Array]) -> list[Any]:
    """The JSON, and behind it the bytes of the tensors that are wanted so. Raises InputError for those that have no
    numbers in JSON."""
    usual = (request.parameters or _NONE).get("binary_data_output") is True
    wishes = {wish.name: (wish.parameters or _NONE).get("binary_data", usual) is True for wish in request.outputs or ()}
    outputs: list[Parameters] = []
    raw: list[Any] = []
    for name, array in made.items():
        told: Parameters = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
        if wishes.get(name, usual):
            content = to_raw(array)
            raw.append(content)
            told["parameters"] = {"binary_data_size": len(content)}
        else:
            told["data"] = to_list(name, array)
        outputs.append(told)
    head: Parameters = {"model_name": engine.name, "model_version": engine.version, "outputs": outputs}
    if request.id:
        head["id"] = request.id
    return [_encode(head), *raw]


def _decoded(decoder: Any, text: memoryview) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"the body is no such request: {str(error)[:200]}",
            next_step='send JSON like {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}',
        ) from error
