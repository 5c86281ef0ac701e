"""The Session contract: tensors in, tensors out; `open_session` loads a backend by name on first use."""

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from aula.backends.hosting.records import Hosting
from aula.backends.onnx_file import check_file, unknown_node
from aula.backends.sizes import Bounds, bounded, check_sizes
from aula.core.errors import BackendError
from aula.core.types import TensorSpec

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class StatePair:
    """An output that becomes an input of the next run and stays with the session (a detector's memory).

    `in_place`: every element of the output depends on no other element of the state that the graph has overwritten by
    then, so that a device may write it where it reads it (a cache into whose slots new keys are put). Where that is not
    so, two buffers take turns.
    """

    input: str
    output: str
    initial: float = 0.0
    in_place: bool = False


PRECISIONS = ("fp32", "bf16", "fp16", "any")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """`threads` 0 means one per physical core. `precision` is the arithmetic a backend may use on the graph:
    "fp32" forbids it to round more than the graph says, "any" lets it choose.
    "bf16" and "fp16" ask for it where the graph does not say otherwise.
    `state_shapes` gives the fixed shape of every state input that has a free dimension.
    `bounds` gives least and greatest size of every axis of the inputs it names: a session need not serve others, and
    may be compiled for these alone; equal bounds fix an axis. Fixed sizes take 4 to 7 % less time than free ones for
    BERT-base in int8, 24 % less for MiniLM, 9 % less for EfficientNet-B0.
    `digest` is the SHA-256 of the file, for backends whose engines are executable content; `device` is the number of
    the GPU; `weights` is the ONNX file that fills an engine which comes without its own. A CPU's backend has no use for
    any of them.
    `dynamic_quantisation` lets a backend round activations to int8 as well where the graph has int8 weights alone:
    how many values share a scale, 0 for never, None for the runtime's habit. BERT-base 1x32 on OpenVINO, processor
    time of one AVX-512 VNNI core: 63 ms with 0, 27 by habit, 21 with 64, 24 with 768. Whisper's step likes 768.
    `hosted` opens the engine in a process of its own (`backends.hosted`); None in this one."""

    threads: int = 0
    precision: str = "fp32"
    states: tuple[StatePair, ...] = ()
    state_shapes: Mapping[str, tuple[int, ...]] | None = None
    bounds: Bounds = field(default_factory=dict)
    dynamic_quantisation: int | None = None
    digest: str = ""
    device: int = 0
    weights: Path | None = None
    hosted: Hosting | None = None


class Session:
    """A loaded engine. Not for two threads at once. `close` is lawful twice; a run after it is an error.

    A subclass gives `inputs`, `outputs` and `_run`; this class checks what comes in and keeps the states, unless the
    subclass `keeps_states` itself, on its device.
    """

    backend = "none"
    keeps_states = False

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: SessionOptions) -> None:
        self.options = options
        state_inputs = {pair.input for pair in options.states}
        state_outputs = {pair.output for pair in options.states}
        self._names = {spec.name: spec.shape for spec in inputs}
        self._specs = {spec.name: spec for spec in bounded(inputs, options.bounds)}
        self.inputs = tuple(spec for spec in self._specs.values() if spec.name not in state_inputs)
        self.outputs = tuple(spec for spec in outputs if spec.name not in state_outputs)
        missing = (state_inputs - self._specs.keys()) | (state_outputs - {spec.name for spec in outputs})
        if missing:
            raise BackendError(
                f"the graph has no tensor {', '.join(sorted(missing))} for the declared states",
                available=[spec.name for spec in (*inputs, *outputs)],
                next_step="correct the recipe's state pairs",
            )
        self._states: dict[str, NDArray[Any]] = {}
        self._seen: dict[str, tuple[NDArray[Any], tuple[int, ...], np.dtype[Any]]] = {}
        self._closed = False
        self.reset()

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """One inference: arrays by input name in, arrays by output name out (states excluded on both sides).

        Raises BackendError for a wrong name, dtype or shape, before the runtime sees it.
        """
        if self._closed:
            raise BackendError("this session is closed", next_step="open a new one with open_session()")
        tensors = self._accepted(tensors)
        self._check(tensors)
        if self.keeps_states:
            return self._run(tensors)
        produced = self._run({**tensors, **self._states})
        for pair in self.options.states:
            self._states[pair.input] = produced.pop(pair.output)
        return produced

    def borrow(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """As `run`; but the arrays may be the session's own memory, which the next run uses again. Large outputs are
        then neither allocated nor copied: the cross keys and values of Whisper-small's 30 s window are 110 MB."""
        return self.run(tensors)

    def settle(self) -> None:
        """Give back memory that only loading and the first runs needed. Lawful at any time."""

    def reset(self) -> None:
        """Set every state to its initial value: a new utterance begins."""
        for pair in self.options.states:
            spec = self._specs[pair.input]
            shape = (self.options.state_shapes or {}).get(pair.input, spec.shape)
            if not all(isinstance(size, int) for size in shape):
                raise BackendError(
                    f"state {pair.input} has the free shape {list(shape)}",
                    next_step="give its size in SessionOptions.state_shapes",
                )
            self._states[pair.input] = np.full(cast(tuple[int, ...], shape), pair.initial, dtype=spec.dtype)

    def dtype_of(self, name: str) -> str:
        """The element type of an input or a state. Raises BackendError for another name."""
        if name not in self._specs:
            raise BackendError(
                f"the engine has no input {name!r}", available=list(self._specs), next_step="name one of these"
            )
        return self._specs[name].dtype

    def precisions(self) -> dict[str, int]:
        """How many of the matrix products and convolutions truly run in each precision, as the runtime tells;
        {} where it does not tell."""
        return {}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._states.clear()
            self._seen.clear()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, tensors: Tensors) -> None:
        wanted = {spec.name for spec in self.inputs}
        if tensors.keys() != wanted:
            raise BackendError(
                f"a run was given {sorted(tensors)} but the engine takes {sorted(wanted)}",
                next_step="pass exactly those tensors",
            )
        for spec in self.inputs:
            got = tensors[spec.name]
            seen = self._seen.get(spec.name)
            # A decoder's step brings fifty arrays that were checked the step before.
            if seen is not None and seen[0] is got and seen[1] == got.shape and seen[2] == got.dtype:
                continue
            check_sizes(spec.name, got.shape, self._names[spec.name], self.options.bounds.get(spec.name, ()))
            if not self._fits(spec, got):
                raise BackendError(
                    f"input {spec.name} is {got.dtype}{list(got.shape)} but the engine takes "
                    f"{spec.dtype}{list(spec.shape)}",
                    next_step="convert the array before the run",
                )
            self._seen[spec.name] = (got, got.shape, got.dtype)

    def _fits(self, spec: TensorSpec, array: NDArray[Any]) -> bool:
        return array.dtype == np.dtype(spec.dtype) and spec.admits(array.shape)

    def _accepted(self, tensors: Tensors) -> Tensors:
        """What a backend takes in another form than it was given, converted."""
        return tensors

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def _close(self) -> None:
        pass


class Opener(Protocol):
    def __call__(self, model: Path, options: SessionOptions) -> Session: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """`module` of aula.backends defines `open_model`; `runtime` is the package it needs; `device` is what it runs on,
    `suffix` what its engines end in; packages `instead` of the runtime open its engines too, but build none."""

    name: str
    module: str
    runtime: str
    install: str
    device: str = "cpu"
    suffix: str = ".onnx"
    instead: tuple[str, ...] = ()

    @property
    def installed(self) -> str:
        """The package that is here: the runtime, or one that serves instead; "" for none. Imports nothing."""
        return next((name for name in (self.runtime, *self.instead) if _is_here(name)), "")


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is part of
        return False


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("openvino", "aula.backends.openvino", "openvino", "pip install openvino"),
        Backend("onnxruntime", "aula.backends.onnxrt", "onnxruntime", "pip install onnxruntime"),
        Backend(
            "tensorrt",
            "aula.backends.tensorrt",
            "tensorrt",
            'pip install "aula[gpu]"',
            "gpu",
            ".plan",
            ("tensorrt_lean",),
        ),
        Backend(
            "kernels", "aula.backends.kernel_session", "cuda.bindings", 'pip install "aula[gpu]"', "gpu", ".kernels"
        ),
    )
}


def available_backends(device: str = "cpu") -> list[str]:
    """Names of the backends for a "cpu" or a "gpu" whose runtime is installed; imports none of them."""
    return [name for name, backend in BACKENDS.items() if backend.device == device and backend.installed]


def runtime_version(backend: str) -> str:
    """The version of a backend's runtime, also where it came in a package of another name (onnxruntime-gpu)."""
    runtime = BACKENDS[backend].installed or BACKENDS[backend].runtime
    try:
        return importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(runtime), "__version__", "unknown"))


def computes(backend: str, precision: str) -> bool:
    """Whether a CPU's backend that is installed has that arithmetic (a name of PRECISIONS) on this processor."""
    entry = BACKENDS[backend]
    told = entry.device == "cpu" and entry.installed
    return bool(told and importlib.import_module(entry.module).computes(precision))


def open_session(backend: str, model: Path, options: SessionOptions | None = None) -> Session:
    """Load `model` (an .onnx file) with the backend of that name.

    Raises BackendError for an unknown backend, one whose runtime is not installed, a missing or damaged file,
    or a graph that the runtime refuses.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"there is no backend {backend!r}", available=sorted(BACKENDS), next_step="choose one of these"
        )
    entry = BACKENDS[backend]
    if not entry.installed:
        raise BackendError(
            f"the {backend} backend needs the package {entry.runtime}, which is not installed",
            available=[*available_backends(), *available_backends("gpu")],
            next_step=entry.install,
        )
    if not model.is_file():
        raise BackendError(f"there is no engine file {model}", next_step="build it again: aula demo")
    options = options or SessionOptions()
    if options.hosted is not None:
        from aula.backends.hosted import HostedSession  # which imports this module

        return HostedSession(partial(open_session, backend, model, replace(options, hosted=None)), options.hosted)
    if options.precision not in PRECISIONS:
        raise BackendError(
            f"there is no precision {options.precision!r}", available=PRECISIONS, next_step="choose one of these"
        )
    if entry.suffix == ".onnx":
        check_file(model, entry.name)
    opener = cast(Opener, importlib.import_module(entry.module).open_model)
    return opener(model, options)


def refusing(backend: str, model: Path, load: Callable[[], Any]) -> Any:
    """Run a runtime's loading call; whatever it raises becomes a BackendError that names the file, and the operator
    with its node where that is what the runtime does not know."""
    try:
        return load()
    except Exception as error:  # the runtimes raise types of their own, RuntimeError among them
        node = unknown_node(model, str(error))
        if node is not None:
            raise BackendError(
                f"{backend} cannot load {model.name}: it has no operator {node}, which node {node.name!r} uses",
                next_step="try another backend, or export the model with other operators",
            ) from error
        raise BackendError(
            f"{backend} cannot load {model.name}: {_reason(error)}",
            next_step="the file may be damaged or foreign; build it again",
        ) from error


_NOISE = re.compile(
    r"Exception from |Check '|FrontEnd API failed|Model wasn't fully|Loading input model|Summary:|-- \w+-\d+ with"
)


def _reason(error: Exception) -> str:
    """The first line that says something; runtimes put source lines and codes of their own before it."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip() and not _NOISE.match(line.strip())]
    if not lines:
        return type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?", "", lines[0])
