"""What this door can over HTTP, for /docs. Its own records of messages have no data yet when they are read; these say
what all of them hold."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from aula.servers.describing import JSON, Answer, Operation
from aula.servers.kserve.calls import ABILITY
from aula.servers.kserve.messages import IndexOptions, OutputWish, Parameters

BYTES = "application/octet-stream"


class ProtocolFault(Struct):
    error: str


class ServerMetadata(Struct):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct):
    """-1 in `shape` is a free size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfig(Struct):
    """Triton's model configuration."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[Parameters]
    output: list[Parameters]
    version_policy: Parameters
    model_transaction_policy: Parameters
    dynamic_batching: Parameters | UnsetType = UNSET


class ModelStatistics(Struct):
    """Triton's: `inference_stats` has a count and nanoseconds for each stage."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, dict[str, int]]


class Statistics(Struct):
    model_stats: list[ModelStatistics]


class IndexRow(Struct):
    name: str
    version: str
    state: str
    reason: str


class InputTensor(Struct):
    """`data` flat or nested as the shape is, or `binary_data_size` among its parameters and bytes behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | UnsetType = UNSET


class InferRequest(Struct):
    """Parameters: `timeout` (microseconds), `tier` or `priority`, `tenant`, `binary_data_output`."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: Parameters | None = None
    outputs: list[OutputWish] | None = None


class OutputTensor(Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: Parameters | UnsetType = UNSET


class InferReply(Struct):
    """`data` for each output, or `binary_data_size` among its parameters."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET


_NAMES = {"model": "an engine's name", "version": "what it was made from, as its metadata tell"}
_EMPTY = Answer("", bytes)
_EXAMPLE = """curl {base}/v2/models/minilm/infer -H "Authorization: Bearer $AULA_API_KEY" -d '{"inputs": [
  {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [101, 2486, 102]},
  {"name": "attention_mask", "shape": [1, 3], "datatype": "INT64", "data": [1, 1, 1]}]}'"""


def _of_one_engine(path: str) -> Iterator[Operation]:
    names = {name: what for name, what in _NAMES.items() if f"{{{name}}}" in path}

    def get(rest: str, summary: str, *answers: Answer, unwell: Answer | None = None) -> Operation:
        return Operation(
            "GET", path + rest, summary, ABILITY, answers, fault=ProtocolFault, path_parameters=names, unwell=unwell
        )

    out_of_order = Answer("", bytes, "no rung of its ladder is in order")
    yield get("", "What an engine takes and gives.", Answer(kind=ModelMetadata))
    yield get("/config", "The same in the words of Triton's configuration.", Answer(kind=ModelConfig))
    yield get("/ready", "Whether it is in order.", _EMPTY, unwell=out_of_order)
    yield get("/stats", "What came of its requests.", Answer(kind=Statistics))
    yield Operation(
        "POST",
        f"{path}/infer",
        "Tensors in, tensors out; as JSON, or as bytes behind it (Inference-Header-Content-Length).",
        ABILITY,
        (Answer(kind=InferReply), Answer(BYTES, bytes)),
        body=InferRequest,
        fault=ProtocolFault,
        path_parameters=names,
        example="" if "version" in names else _EXAMPLE,
    )


_OPERATIONS = (
    Operation("GET", "/v2", "The Open Inference Protocol: who answers.", None, (Answer(kind=ServerMetadata),)),
    Operation("GET", "/v2/health/live", "Whether it lives.", None, (_EMPTY,)),
    Operation(
        "GET",
        "/v2/health/ready",
        "Whether every engine is in order.",
        None,
        (_EMPTY,),
        unwell=Answer("", bytes, "one of them is not"),
    ),
    Operation(
        "POST",
        "/v2/repository/index",
        "Every engine that there is.",
        ABILITY,
        (Answer(JSON, list[IndexRow]),),
        body=IndexOptions,
        fault=ProtocolFault,
    ),
    Operation(
        "GET",
        "/v2/models/stats",
        "What came of everybody's requests.",
        ABILITY,
        (Answer(kind=Statistics),),
        fault=ProtocolFault,
    ),
    *_of_one_engine("/v2/models/{model}"),
    *_of_one_engine("/v2/models/{model}/versions/{version}"),
)
OPERATIONS = tuple(replace(one, has_deadline=False) for one in _OPERATIONS)
"""Their deadline is the parameter `timeout`."""
