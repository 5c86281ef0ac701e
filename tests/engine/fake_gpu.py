"""A GPU made of ONNX Runtime: "plans" are the very graphs that TensorRT would be given, sessions run them on the CPU.

What is tested with it is all that lies around TensorRT: the graphs' words and types, the proof, the gates, manifests,
and loops over states that stay with a device. Numbers are true, times are made up.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from aula.backends.device_tensor import DeviceTensor
from aula.backends.session import Session, SessionOptions, Tensors
from aula.backends.tensorrt_runtime import layer_precisions
from aula.core.errors import VerificationError
from aula.core.types import TensorSpec
from aula.engine.plans import Extents, Plan, PlanOptions, UnbuildableError
from aula.engine.preflight import Card
from aula.engine.workshop import Workshop

TENSORRT = "8.6.1"
CARD = Card("Fake H200", "9.0", "13.0")

_MEMORY: dict[int, NDArray[Any]] = {}
"""Device memory by address: arrays that sessions share when one is attached to another's."""


@dataclass
class FakeBuilder:
    """`without_kernel` are nodes for which there is none in int8; `built` notes what was asked for."""

    typed: bool = False
    without_kernel: Sequence[str] = ()
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    built: list[tuple[str, str]] = field(default_factory=list)

    def build(
        self,
        model: Path,
        precision: str,
        profiles: Sequence[Mapping[str, Sequence[Extents]]],
        options: PlanOptions,
        *,
        cache: bytes = b"",
    ) -> Plan:
        graph = onnx.load(str(model))
        version = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
        assert 19 <= version <= 22 if self.typed else version <= 17
        if self.typed:
            onnx.checker.check_model(graph, full_check=True)
        quantised = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
        for node in graph.graph.node:
            if node.name in self.without_kernel and quantised.intersection(node.input):
                refusal = UnbuildableError(f"no kernel for {node.name}", next_step="…")
                refusal.said = f"Could not find any implementation for node {node.name}."
                raise refusal
        self.built.append((model.stem, precision))
        wrapped = {"milliseconds": self.milliseconds.get(precision, 1.0), "precision": precision}
        content = json.dumps(wrapped).encode() + b"\n" + graph.SerializeToString()
        return Plan(content, cache + b"t")


class FakeDeviceSession(Session):
    """A session whose states and attached tensors live in `_MEMORY`."""

    backend = "tensorrt"
    keeps_states = True

    def __init__(self, plan: Path, options: SessionOptions) -> None:
        content = plan.read_bytes()
        if hashlib.sha256(content).hexdigest() != options.digest:
            raise VerificationError("the plan was changed", next_step="build it again")
        head, _, graph = content.partition(b"\n")
        self.told: dict[str, Any] = json.loads(head)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self._ort = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self._types = {t.name: _dtype(t.type) for t in (*self._ort.get_inputs(), *self._ort.get_outputs())}
        self._places: dict[str, int] = {}
        self._attached: set[str] = set()
        self._last: dict[str, NDArray[Any]] = {}
        self._given: dict[str, NDArray[Any]] = {}
        self._nodes = onnx.load_from_string(graph).graph.node
        self._sizes = {t.name: t.shape for t in (*self._ort.get_inputs(), *self._ort.get_outputs())}
        specs = [
            [TensorSpec(t.name, self._types[t.name], _shape(t.shape)) for t in tensors]
            for tensors in (self._ort.get_inputs(), self._ort.get_outputs())
        ]
        super().__init__(specs[0], specs[1], options)

    def device_tensor(self, name: str) -> DeviceTensor:
        array = self._memory(name)
        return DeviceTensor(self._places[name], array.shape, str(array.dtype))

    def attach(self, name: str, tensor: DeviceTensor) -> None:
        if tensor.address not in _MEMORY:  # a part of somebody's rows
            base = max(address for address in _MEMORY if address <= tensor.address)
            whole = _MEMORY[base]
            row = (tensor.address - base) // whole[0].nbytes
            _MEMORY[tensor.address] = whole[row : row + tensor.shape[0]]
        self._places[name] = tensor.address
        self._attached.add(name)
        self._attached |= {pair.output for pair in self.options.states if pair.input == name}
        self.inputs = tuple(spec for spec in self.inputs if spec.name not in self._attached)
        self.outputs = tuple(spec for spec in self.outputs if spec.name not in self._attached)

    def follow(self, other: Session) -> None:
        pass

    def enqueue(self, tensors: Tensors) -> None:
        self._check(tensors)
        self._last = self._run(tensors)

    def collect(self) -> dict[str, NDArray[Any]]:
        return self._last

    def read_state(self, name: str) -> NDArray[Any]:
        return self._memory(name).copy()

    def write_state(self, name: str, array: NDArray[Any]) -> None:
        assert array.dtype == self._types[name], (name, array.dtype, self._types[name])
        np.copyto(self._memory(name), array)

    def device_milliseconds(self, repetitions: int) -> list[float]:
        return [self.told["milliseconds"]] * repetitions

    def layers(self) -> list[dict[str, Any]]:
        kind = {"fp16": "FP16", "int8": "Int8", "fp32": "FP32", "bf16": "BF16"}[self.told["precision"]]
        return [{"Name": node.name, "LayerType": "Gemm", "Inputs": [{"Format/Datatype": kind}]} for node in self._nodes]

    def precisions(self) -> dict[str, int]:
        return layer_precisions(self.layers())

    def reset(self) -> None:
        for pair in self.options.states:
            self._memory(pair.input)[...] = pair.initial

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        given = dict(tensors)
        self._given |= given  # a device keeps what it was sent
        for value in self._ort.get_inputs():
            if value.name not in given:
                given[value.name] = self._memory(value.name)
        # A host tensor that another session reads on the device.
        for name, array in tensors.items():
            if name in self._places:
                np.copyto(self._memory(name), array)
        names = [value.name for value in self._ort.get_outputs()]
        made = dict(zip(names, self._ort.run(names, given), strict=True))
        for pair in self.options.states:
            np.copyto(self._memory(pair.input), made.pop(pair.output))
        for name in [name for name in made if name in self._attached]:
            np.copyto(self._memory(name), made.pop(name))
        return made

    def _memory(self, name: str) -> NDArray[Any]:
        if name not in self._places:
            bounds = self.options.bounds.get(name)
            shape = [greatest for _, greatest in bounds] if bounds else self._sizes[name]
            array = np.zeros(shape, dtype=self._types[name])
            address = max((place + kept.nbytes for place, kept in _MEMORY.items()), default=4096) + 64
            _MEMORY[address] = array
            self._places[name] = address
            if name in self._given and self._given[name].shape == array.shape:
                np.copyto(array, self._given[name])
        return _MEMORY[self._places[name]]


def fake_workshop(builder: FakeBuilder | None = None) -> Workshop:
    return Workshop(builder or FakeBuilder(), TENSORRT, CARD, FakeDeviceSession)


def _dtype(kind: str) -> str:
    return {"tensor(float)": "float32", "tensor(float16)": "float16"}.get(kind, kind[len("tensor(") : -1])


def _shape(sizes: Sequence[Any]) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)
