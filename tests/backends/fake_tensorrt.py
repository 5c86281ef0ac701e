"""The module tensorrt without a GPU, as releases 8.6 to 11 have it: what is gone in one does not exist there.

Names and numbers were read from the bindings 8.6.1, 10.3.0, 10.12.0.36 and 11.0.0.114, loaded over empty libraries.
Its plans are JSON; its engines compute each output by a formula over the inputs, in fake device memory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from tests.backends.fake_cuda import FakeCuda

RELEASES = ("8.6", "10.3", "10.12", "11.0")
VERSIONS = {"8.6": "8.6.1", "10.3": "10.3.0", "10.12": "10.12.0.36", "11.0": "11.0.0.114"}

_EIGHT, _TEN_3, _TEN_12, _ELEVEN = RELEASES
_TENS = {
    "DEBUG": 2, "TF32": 6, "SPARSE_WEIGHTS": 7, "REFIT": 4, "VERSION_COMPATIBLE": 13, "EXCLUDE_LEAN_RUNTIME": 14,
    "FP16": 0, "INT8": 1, "FP8": 15, "BF16": 17, "OBEY_PRECISION_CONSTRAINTS": 9, "STRIP_PLAN": 19,
    "REFIT_IDENTICAL": 20,
}  # fmt: skip
_SOURCES = {"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2, "EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4}
_LEVELS = {"NONE": 0, "AMPERE_PLUS": 1}
_SAME = {**_LEVELS, "SAME_COMPUTE_CAPABILITY": 2}
_TYPES = {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5, "FP8": 6}
_MORE_TYPES = {**_TYPES, "BF16": 7, "INT64": 8, "INT4": 9}


def _everywhere(members: dict[str, int]) -> dict[str, dict[str, int]]:
    return dict.fromkeys(RELEASES, members)


NAMES: dict[str, dict[str, dict[str, int]]] = {
    "NetworkDefinitionCreationFlag": {
        _EIGHT: {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
        _TEN_3: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        _TEN_12: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_JIT_PYTHON_PLUGINS": 2},
        _ELEVEN: {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
    },
    "BuilderFlag": {
        _EIGHT: {
            "FP16": 0, "INT8": 1, "DEBUG": 2, "STRICT_TYPES": 4, "REFIT": 5, "TF32": 7, "SPARSE_WEIGHTS": 8,
            "OBEY_PRECISION_CONSTRAINTS": 10, "VERSION_COMPATIBLE": 15, "EXCLUDE_LEAN_RUNTIME": 16, "FP8": 17,
        },
        _TEN_3: _TENS,
        _TEN_12: {**_TENS, "FP4": 26},
        _ELEVEN: {
            "DEBUG": 2, "REFIT": 4, "TF32": 6, "SPARSE_WEIGHTS": 7, "VERSION_COMPATIBLE": 12,
            "EXCLUDE_LEAN_RUNTIME": 13, "STRIP_PLAN": 18, "REFIT_IDENTICAL": 19,
        },
    },
    "TacticSource": {
        **_everywhere(_SOURCES),
        _ELEVEN: {"EDGE_MASK_CONVOLUTIONS": 0, "JIT_CONVOLUTIONS": 1},
    },
    "HardwareCompatibilityLevel": {_EIGHT: _LEVELS, _TEN_3: _LEVELS, _TEN_12: _SAME, _ELEVEN: _SAME},
    "ProfilingVerbosity": _everywhere({"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2}),
    "LayerInformationFormat": _everywhere({"ONELINE": 0, "JSON": 1}),
    "TensorIOMode": _everywhere({"NONE": 0, "INPUT": 1, "OUTPUT": 2}),
    "DataType": {**_everywhere(_MORE_TYPES), _EIGHT: _TYPES},
}  # fmt: skip
_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity: Any = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


@dataclass
class Behaviour:
    """What goes wrong in this TensorRT, and what it was asked to do."""

    no_gpu: bool = False
    crashed: bool = False
    context_refused: str = ""
    run_refused: str = ""
    address_refused: str = ""
    spoils_capture: bool = False
    parser_errors: tuple[str, ...] = ()
    build_refused: tuple[str, ...] = ()
    inspected: str = ""
    deserialised: list[bytes] = field(default_factory=list)
    contexts: WeakSet[Any] = field(default_factory=WeakSet)
    built: list[dict[str, Any]] = field(default_factory=list)
    addresses: list[dict[str, int]] = field(default_factory=list)


def fake_tensorrt(release: str, cuda: FakeCuda | None = None) -> Any:
    """The module, on that GPU. `behaviour` is the tests' own and no part of it."""
    trt = SimpleNamespace(__version__=VERSIONS[release], behaviour=Behaviour(), ILogger=ILogger)
    for name, members in NAMES.items():
        kind = Enum(name, members[release], module=__name__)  # type: ignore[misc]
        kind.__int__ = lambda member: member.value  # type: ignore[attr-defined]
        setattr(trt, name, kind)
    trt.EngineInspector = Inspector
    trt.Runtime = lambda logger: Runtime(trt, release, cuda or FakeCuda(), logger)
    trt.Builder = lambda logger: _builder(trt, release, logger)
    trt.OnnxParser = lambda network, logger: OnnxParser(trt, release, network)
    return trt


# Engines.


@dataclass(frozen=True)
class Output:
    """`formula` is over the inputs' names; -1 in `shape` is a size that only the computation knows. `scrambles`: what
    was at the output's place is gone before the inputs are read, as where an engine must not write in place."""

    formula: str
    like: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    scrambles: bool = True


Input = tuple[str, tuple[int, ...]]
Shapes = Mapping[str, Sequence[Sequence[int]]]


def plan(release: str, inputs: Mapping[str, Input], outputs: Mapping[str, Output], profiles: Sequence[Shapes]) -> bytes:
    """An engine's file. Inputs by name: dtype and shape, -1 where it is free; profiles: least, usual and greatest shape
    of every input with a free axis."""
    told = {name: vars(output) for name, output in outputs.items()}
    return json.dumps({"release": release, "inputs": inputs, "outputs": told, "profiles": profiles}).encode()


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: Any, release: str, cuda: FakeCuda, logger: ILogger) -> None:
        self._trt, self._release, self._cuda, self._logger = trt, release, cuda, logger
        self._null = trt.behaviour.no_gpu
        if self._null:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")

    def __setattr__(self, name: str, value: Any) -> None:
        assert not getattr(self, "_null", False), "a segmentation fault: this runtime holds nothing"
        super().__setattr__(name, value)

    def __del__(self) -> None:
        self._trt.behaviour.crashed |= self._null

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        assert not self._null, "a segmentation fault: this runtime holds nothing"
        self._trt.behaviour.deserialised.append(content)
        try:
            told = json.loads(content)
        except ValueError:
            self._logger.log(Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        if told["release"] != self._release:
            self._logger.log(Severity.WARNING, "a warning that explains nothing")
            self._logger.log(Severity.ERROR, f"The engine plan file is of {told['release']}, expecting {self._release}")
            self._logger.log(Severity.ERROR, "Engine deserialization failed.")
            return None
        return Engine(self._trt, self._release, self._cuda, self._logger, told)


class Engine:
    def __init__(self, trt: Any, release: str, cuda: FakeCuda, logger: ILogger, told: dict[str, Any]) -> None:
        self.trt, self.release, self.cuda, self.logger = trt, release, cuda, logger
        self.inputs = {name: (dtype, tuple(shape)) for name, (dtype, shape) in told["inputs"].items()}
        self.outputs = {name: Output(**output) for name, output in told["outputs"].items()}
        self.profiles = told["profiles"]
        self.names = [*self.inputs, *self.outputs]
        if release == "8.6":
            self.num_bindings = len(self.names)

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, place: int) -> str:
        return str(self.names[place])

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        dtype = self.dtype(name)
        return self.trt.DataType[_DTYPES.get(dtype, dtype.upper())]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.inputs:
            return self.inputs[name][1]
        output = self.outputs[name]
        return self.inputs[output.like][1] if output.like else tuple(output.shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self.profiles[profile].get(name, [self.inputs[name][1]] * 3)
        return [tuple(shape) for shape in shapes]

    def create_execution_context(self) -> Any:
        if self.trt.behaviour.context_refused:
            self.logger.log(Severity.ERROR, self.trt.behaviour.context_refused)
            return None
        context = Context(self)
        self.trt.behaviour.contexts.add(context)
        return context

    def create_engine_inspector(self) -> Any:
        return self.trt.EngineInspector(self)

    def dtype(self, name: str) -> str:
        return str(self.inputs[name][0]) if name in self.inputs else self.outputs[name].dtype


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, form: Any) -> str:
        assert form is self._engine.trt.LayerInformationFormat.JSON
        return str(self._engine.trt.behaviour.inspected)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._profile = 0
        self._shapes = {name: shape for name, (_, shape) in engine.inputs.items() if -1 not in shape}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.engine.cuda.streams
        if not 0 <= profile < len(self.engine.profiles):
            return self._error("profileIndex is out of range")
        if profile != self._profile:
            self._profile = profile
            self._shapes = {name: shape for name, (_, shape) in self.engine.inputs.items() if -1 not in shape}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self.engine.get_tensor_profile_shape(name, self._profile)
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True)
        )
        if not fits:
            return self._error(f"Set dimensions {list(shape)} of {name} do not satisfy any optimization profiles.")
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.inputs:
            return self._shapes.get(name, self.engine.inputs[name][1])
        output = self.engine.outputs[name]
        return self.get_tensor_shape(output.like) if output.like else tuple(output.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name == self.engine.trt.behaviour.address_refused:
            return self._error(f"Given invalid address for {name}")
        assert name in self.engine.names
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, behaviour = self.engine, self.engine.trt.behaviour
        if behaviour.run_refused:
            return self._error(behaviour.run_refused)
        missing = [name for name in engine.names if name not in self._addresses]
        if missing or self._shapes.keys() != engine.inputs.keys():
            return self._error(f"not all shapes and addresses are specified: {missing}")
        if stream in engine.cuda.capturing and behaviour.spoils_capture:
            engine.cuda.spoil_capture(stream)
        addresses, shapes = dict(self._addresses), {name: self.get_tensor_shape(name) for name in engine.names}
        behaviour.addresses.append(addresses)

        def work() -> None:
            places = {name: self._array(name, addresses[name], shapes[name]) for name in engine.names}
            for name, output in engine.outputs.items():
                if output.scrambles:
                    places[name].view(np.uint8)[...] = 0x7F
            read = {name: places[name].copy() for name in engine.inputs}
            made = {name: eval(output.formula, {"np": np}, read) for name, output in engine.outputs.items()}
            for name, values in made.items():
                places[name][...] = values

        engine.cuda.submit(stream, work)
        return True

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        import ctypes

        import ml_dtypes  # noqa: F401 - lets numpy know bfloat16

        dtype = np.dtype(self.engine.dtype(name))
        count = int(np.prod(shape)) * dtype.itemsize
        raw: Any = (ctypes.c_ubyte * count).from_address(self.engine.cuda.find(address, count))
        array: NDArray[Any] = np.frombuffer(raw, dtype=np.uint8).view(dtype).reshape(shape)
        return array

    def _error(self, text: str) -> bool:
        self.engine.logger.log(Severity.ERROR, text)
        return False


# Builders.


class _Strict:
    """What has only the attributes that it declares, as pybind11's objects do."""

    _known: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._known:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__setattr__(name, value)


def _builder(trt: Any, release: str, logger: ILogger) -> Any:
    if trt.behaviour.no_gpu:
        logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    return Builder(trt, release, logger)


class Builder(_Strict):
    def __init__(self, trt: Any, release: str, logger: ILogger) -> None:
        self._trt, self._release, self._logger = trt, release, logger

    def create_network(self, flags: int = 0) -> "Network":
        known = {1 << int(flag): flag.name for flag in self._trt.NetworkDefinitionCreationFlag}
        names = {name for bit, name in known.items() if flags & bit}
        assert flags == sum(bit for bit in known if flags & bit), f"flags {flags:b} are unknown to {self._release}"
        assert self._release != "8.6" or names == {"EXPLICIT_BATCH"}, "8.6 reads ONNX into explicit batches only"
        return Network(names)

    def create_builder_config(self) -> "BuilderConfig":
        return BuilderConfig(self._trt, self._release, self._logger)

    def create_optimization_profile(self) -> "OptimizationProfile":
        return OptimizationProfile()

    def build_serialized_network(self, network: "Network", config: "BuilderConfig") -> bytes | None:
        for text in self._trt.behaviour.build_refused:
            self._logger.log(Severity.ERROR, text)
        if self._trt.behaviour.build_refused:
            return None
        told = {"release": self._release, "network": sorted(network.flags), "path": network.path, **config.told()}
        self._trt.behaviour.built.append(told)
        config.timings.content += b"+timings"
        return HostMemory(json.dumps(told).encode())


class HostMemory(bytes):
    """A buffer."""


class Network(_Strict):
    def __init__(self, flags: set[str]) -> None:
        self._flags = flags
        self._path = ""

    @property
    def flags(self) -> set[str]:
        return self._flags

    @property
    def path(self) -> str:
        return self._path

    def read(self, path: str) -> None:
        self._path = path


class OnnxParser(_Strict):
    def __init__(self, trt: Any, release: str, network: Network) -> None:
        self._trt, self._release, self._network = trt, release, network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, place: int) -> str:
        return self._errors[place]

    def parse(self, content: bytes, path: str = "") -> bool:
        import onnx

        self._errors = list(self._trt.behaviour.parser_errors)
        model = onnx.load_model_from_string(content)
        if self._release == "8.6" and model.opset_import[0].version > 17:
            self._errors.append("No importer registered for that opset")
        self._network.read(path)
        return not self._errors


class OptimizationProfile(_Strict):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    @property
    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        return self._shapes

    def set_shape(self, name: str, least: Any, usual: Any, greatest: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(least, usual, greatest, strict=True)):
            raise ValueError("Shape provided is inconsistent with other profile data")
        self._shapes[name] = [tuple(least), tuple(usual), tuple(greatest)]


class TimingCache(_Strict):
    _known = frozenset({"content"})

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> HostMemory:
        return HostMemory(self.content)


class BuilderConfig(_Strict):
    _known = frozenset({"builder_optimization_level", "profiling_verbosity", "hardware_compatibility_level"})

    def __init__(self, trt: Any, release: str, logger: ILogger) -> None:
        self._trt, self._logger = trt, logger
        self._flags = {"TF32"}
        self._sources: int | None = None
        self._profiles: list[dict[str, list[tuple[int, ...]]]] = []
        self._timings: TimingCache | None = None
        self.builder_optimization_level = 3
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE

    @property
    def timings(self) -> TimingCache:
        assert self._timings is not None
        return self._timings

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, self._trt.BuilderFlag)
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        assert isinstance(flag, self._trt.BuilderFlag)
        self._flags.discard(flag.name)

    def set_tactic_sources(self, sources: int) -> bool:
        self._sources = sources
        return True

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        if not profile.shapes:
            return -1
        self._profiles.append(profile.shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return TimingCache(content or b"cache:sm89") if not content or content.startswith(b"cache:") else None

    def set_timing_cache(self, timings: TimingCache, ignore_mismatch: bool) -> bool:
        if not timings.content.startswith(b"cache:sm89") and not ignore_mismatch:
            self._logger.log(Severity.ERROR, "the timing cache is of another device")
            return False
        self._timings = timings
        return True

    def told(self) -> dict[str, Any]:
        named = {int(source): source.name for source in self._trt.TacticSource}
        sources = [name for bit, name in named.items() if self._sources is not None and self._sources >> bit & 1]
        return {
            "flags": sorted(self._flags),
            "sources": None if self._sources is None else sources,
            "profiles": self._profiles,
            "level": self.builder_optimization_level,
            "verbosity": self.profiling_verbosity.name,
            "compatibility": self.hardware_compatibility_level.name,
            "timings": self.timings.content.decode(),
        }
