"""TensorRT on an NVIDIA GPU: a plan in, a session out. One stream and one context a session; TensorRT 8.6 to 11.

A run is one CUDA graph: inputs from pinned memory, the engine, outputs into pinned memory, captured when the same
shapes come for the second time and replayed with one call from then on. Other shapes end it, since a graph knows its
context as it was. Where something in the engine cannot be captured, the same is started piece by piece, and
`statistics` says why.

States never leave the GPU. A pair that is `in_place` is read and written at one address; any other has two buffers that
take turns, with a graph for each turn. What one session makes and another takes (`attach`) does not leave it either.
"""

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda, Pinned
from aula.backends.device_tensor import DeviceTensor, Shape, byte_count, numpy_dtype
from aula.backends.plan_profiles import choose_profile
from aula.backends.session import Session, SessionOptions, Tensors
from aula.backends.tensorrt_runtime import Runtime, layer_precisions
from aula.core.errors import BackendError, DeviceLostError
from aula.core.types import TensorSpec

Key = tuple[tuple[Shape, ...], int, frozenset[tuple[str, int]]]
"""What a CUDA graph is for: the inputs' shapes, whose turn it is among double buffers, and where attached tensors
lie."""


@dataclass(frozen=True, slots=True)
class GraphStatistics:
    """How the runs of a session were started: replayed from a graph, or piece by piece, and why."""

    captured: int
    replayed: int
    plain: int
    refusals: tuple[str, ...]


class TensorRtSession(Session):
    backend = "tensorrt"
    keeps_states = True

    def __init__(
        self, plan: Path, options: SessionOptions, *, runtime: Runtime | None = None, cuda: Cuda | None = None
    ) -> None:
        with contextlib.ExitStack() as undo:
            # 1. The plan's own words: nothing is deserialised that nobody vouches for. CUDA comes first, since it says
            # plainly what a machine without a GPU lacks.
            self._cuda = cuda or Cuda.open(options.device)
            self._runtime = runtime or Runtime.load()
            self._cuda.use()
            engine = self._runtime.deserialise(plan, options.digest, options.weights)
            self._engine: Any = engine
            names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
            modes = {name: engine.get_tensor_mode(name) for name in names}
            self._taken = [name for name in names if modes[name] == self._runtime.trt.TensorIOMode.INPUT]
            self._made = [name for name in names if name not in self._taken]
            self._specs_of = {name: self._spec(name) for name in names}
            # 2. A context for the profile that serves these sizes, at its greatest sizes.
            self._profile = choose_profile(engine, self._taken, options, plan)
            self._stream = self._cuda.stream()
            undo.callback(self._destroy_stream, self._stream)
            self._context: Any = self._runtime.context(engine, plan)
            self._choose_profile(plan)
            self._graphs: dict[Key, int] = {}
            self._refusals: dict[Key, str] = {}
            self._run_before: set[Key] = set()
            self._shapes: tuple[Shape, ...] = ()
            self._produced: dict[str, Shape] = {}
            self._greatest = self._sizes(options)
            self._shapes = ()  # nothing was run yet
            # 3. Memory for these.
            self._pairs = {pair.input: pair for pair in options.states}
            self._returned = {pair.output: pair for pair in options.states}
            self._attached: dict[str, DeviceTensor] = {}
            self._places: frozenset[tuple[str, int]] = frozenset()
            self._held: dict[tuple[str, int], DeviceTensor] = {}
            self._pinned: dict[str, Pinned] = {}
            self._counts: Counter[str] = Counter()
            self._turn = 0
            self._pending = False
            undo.callback(self._free)
            super().__init__(
                [self._specs_of[name] for name in self._taken], [self._specs_of[name] for name in self._made], options
            )
            self._undo = undo.pop_all()

    # What a caller may ask beyond the contract.

    def device_tensor(self, name: str) -> DeviceTensor:
        """Where the engine reads or writes a tensor or keeps a state, at its greatest size. Raises BackendError for a
        name that it does not have, or a state that has two places."""
        self._enter()
        self._check_name(name)
        pair = self._pairs.get(name) or self._returned.get(name)
        if pair is not None and not pair.in_place:
            raise BackendError(
                f"the state {name} has two buffers that take turns", next_step="declare it in place, or read_state()"
            )
        return self._memory(pair.input if pair else name)

    def attach(self, name: str, tensor: DeviceTensor) -> None:
        """Read an input, write an output or keep a state at memory that another session owns. From then on the tensor
        belongs to no run: the caller neither gives nor gets it. A state is attached by its input's name, and must be
        written in place. What is attached must be written on this session's stream (`follow`), or be there already.

        Raises BackendError for a tensor of another dtype, or one that is too small.
        """
        self._enter()
        self._check_name(name)
        if name in self._returned:
            raise BackendError(
                f"{name} is what the state {self._returned[name].input} becomes",
                next_step=f"attach {self._returned[name].input}",
            )
        wanted = self._greatest[name]
        dtype = self._specs_of[name].dtype
        if tensor.dtype != dtype or tensor.bytes < byte_count(wanted, dtype):
            raise BackendError(
                f"{name} is {dtype}{list(wanted)}, but {tensor.dtype}{list(tensor.shape)} was attached to it",
                next_step="build both engines for the same rows and sizes",
            )
        pair = self._pairs.get(name)
        if pair is not None and not pair.in_place:
            raise BackendError(f"the state {name} is not written in place", next_step="let its session keep it")
        self._attached[name] = tensor
        if pair is not None:
            self._attached[pair.output] = tensor
        self._places = frozenset((known, other.address) for known, other in self._attached.items())
        self.inputs = tuple(spec for spec in self.inputs if spec.name != name)
        self.outputs = tuple(spec for spec in self.outputs if spec.name != name)

    def follow(self, other: "TensorRtSession") -> None:
        """Start on the other's stream from now on: what it was told to write is there before this session reads it.
        The other must stay open as long as this one."""
        self._enter()
        other._check_open()
        self._cuda.synchronise(self._stream)
        self._forget_graphs()
        self._stream = other._stream

    def enqueue(self, tensors: Tensors) -> None:
        """Start a run and do not wait for it; runs on one stream happen one after the other. Raises as `run` does."""
        self._check_open()
        tensors = self._accepted(tensors)
        self._check(tensors)
        self._start(tensors)

    def collect(self) -> dict[str, NDArray[Any]]:
        """Wait for all that was started, and take the last run's outputs. Raises BackendError before the first."""
        self._enter()
        self._check_begun()
        self._cuda.synchronise(self._stream)
        self._pending = False
        return {name: self._staged(name, shape).copy() for name, shape in self._produced.items() if self._leaves(name)}

    def read_state(self, name: str) -> NDArray[Any]:
        """A copy of a state, after all that was started."""
        self._enter()
        self._check_state(name)
        shape = self._greatest[name]
        self._down(name, shape)
        self._cuda.synchronise(self._stream)
        return self._staged(name, shape).copy()

    def write_state(self, name: str, array: NDArray[Any]) -> None:
        """Set a state; what was started before still sees the old. Raises BackendError for another shape or dtype."""
        self._enter()
        self._check_state(name)
        spec, shape = self._specs_of[name], self._greatest[name]
        if array.shape != shape or array.dtype != numpy_dtype(spec.dtype):
            raise BackendError(
                f"the state {name} is {spec.dtype}{list(shape)}, not {array.dtype}{list(array.shape)}",
                next_step="convert the array before it is set",
            )
        self._cuda.synchronise(self._stream)  # what was staged last may still be on its way
        np.copyto(self._staged(name, shape), array)
        self._up(name, shape)

    def device_milliseconds(self, repetitions: int) -> list[float]:
        """Time on the device, copies included, of each repetition of the last run. States go on meanwhile."""
        self._enter()
        self._check_begun()
        for _ in range(4):  # each turn of double buffers has its graph, captured by its second run, before the clock
            self._go()
        start, end = self._cuda.event(), self._cuda.event()
        try:
            return [self._timed(start, end) for _ in range(repetitions)]
        finally:
            for event in (start, end):
                self._cuda.destroy_event(event)

    def statistics(self) -> GraphStatistics:
        reasons = tuple(dict.fromkeys(self._refusals.values()))
        return GraphStatistics(len(self._graphs), self._counts["replayed"], self._counts["plain"], reasons)

    def layers(self) -> list[dict[str, Any]]:
        """What the engine inspector says of every layer; [] for a plan that was built without it."""
        return self._runtime.layers(self._engine)

    def precisions(self) -> dict[str, int]:
        return layer_precisions(self.layers())

    # The contract.

    def reset(self) -> None:
        self._enter()
        for name, pair in self._pairs.items():
            shape, dtype = self._greatest[name], self._specs_of[name].dtype
            if pair.initial:
                self.write_state(name, np.full(shape, pair.initial, dtype=numpy_dtype(dtype)))
            else:
                self._cuda.clear(self._address(name), byte_count(shape, dtype), self._stream)

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self._start(tensors)
        return self.collect()

    def _close(self) -> None:
        self._undo.close()

    def _accepted(self, tensors: Tensors) -> Tensors:
        """TensorRT 8.6 reads int64 as int32. Raises BackendError for numbers that do not fit."""
        narrow = {spec.name for spec in self.inputs if spec.dtype == "int32"}
        return {
            name: _narrowed(name, array) if name in narrow and array.dtype == np.int64 else array
            for name, array in tensors.items()
        }

    # A run.

    def _start(self, tensors: Tensors) -> None:
        self._cuda.use()
        if tensors and self._pending:
            self._cuda.synchronise(self._stream)  # what was started before may still read the staging memory
        for name, array in tensors.items():
            np.copyto(self._staged(name, array.shape), array)
        self._tell_shapes(tensors)
        self._pending = True
        self._go()

    def _go(self) -> None:
        key = (self._shapes, self._turn, self._places)
        if key in self._graphs:
            self._cuda.launch(self._graphs[key], self._stream)
            self._counts["replayed"] += 1
        else:
            # TensorRT wants a plain run after shapes changed; what comes once more is worth a graph.
            self._once()
            self._counts["plain"] += 1
            if key in self._run_before and key not in self._refusals:
                self._capture(key)
            self._run_before.add(key)
        if any(not pair.in_place for pair in self._pairs.values()):
            self._turn ^= 1

    def _capture(self, key: Key) -> None:
        self._cuda.synchronise(self._stream)
        try:
            self._cuda.begin_capture(self._stream)
            self._once()
            self._graphs[key] = self._cuda.end_capture(self._stream)
        except DeviceLostError:
            raise
        except BackendError as refusal:
            self._cuda.abandon_capture(self._stream)
            self._refusals[key] = refusal.what

    def _once(self) -> None:
        """Copies in, the engine, copies out: started on the stream, or noted in the graph that is being captured."""
        for name, shape in zip(self._taken, self._shapes, strict=True):
            if name not in self._pairs and name not in self._attached:
                self._up(name, shape)
        for name in (*self._taken, *self._made):
            self._must(
                self._context.set_tensor_address(name, self._address(name)), f"does not take the place of {name}"
            )
        self._must(self._context.execute_async_v3(self._stream), "failed in a run")
        for name, shape in self._produced.items():
            if self._leaves(name):
                self._down(name, shape)

    def _tell_shapes(self, tensors: Tensors) -> None:
        shapes = tuple(tensors[name].shape if name in tensors else self._greatest[name] for name in self._taken)
        if shapes != self._shapes:
            self._set_shapes(shapes)

    def _set_shapes(self, shapes: tuple[Shape, ...]) -> None:
        self._shapes = ()
        for name, shape in zip(self._taken, shapes, strict=True):
            told = self._context.set_input_shape(name, shape)
            self._must(told, f"does not take {name} of shape {list(shape)}", "pad or cut it to the engine's profile")
        produced = {name: tuple(map(int, self._context.get_tensor_shape(name))) for name in self._made}
        for name, shape in produced.items():
            if min(shape, default=0) < 0:
                raise BackendError(
                    f"how large {name} becomes depends on what the engine reads, not only on sizes: {list(shape)}",
                    next_step="export the model without that output, or build for the CPU: --target cpu",
                )
        # A graph knows what the context was like when it was captured.
        self._forget_graphs()
        self._shapes, self._produced = shapes, produced

    def _timed(self, start: Any, end: Any) -> float:
        self._cuda.record(start, self._stream)
        self._go()
        self._cuda.record(end, self._stream)
        return self._cuda.milliseconds(start, end)

    # What is opened.

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple(
            int(size) if size >= 0 else f"free_{axis}" for axis, size in enumerate(self._engine.get_tensor_shape(name))
        )
        dtype = self._runtime.dtype(self._engine.get_tensor_dtype(name))
        numpy_dtype(dtype)  # refused here, not in the first run
        return TensorSpec(name, dtype, shape)

    def _choose_profile(self, plan: Path) -> None:
        if self._engine.num_optimization_profiles > 1:
            chosen = self._context.set_optimization_profile_async(self._profile, self._stream)
            self._must(chosen, f"does not open profile {self._profile} of {plan.name}", "close the other session on it")
            self._cuda.synchronise(self._stream)

    def _sizes(self, options: SessionOptions) -> dict[str, Shape]:
        """The greatest size of every tensor: of inputs as the profile says, of outputs as the context follows."""
        states = options.state_shapes or {}
        taken = {}
        for name in self._taken:
            shape = tuple(map(int, self._engine.get_tensor_shape(name)))
            if -1 in shape:
                bounds = options.bounds.get(name)
                widest = self._engine.get_tensor_profile_shape(name, self._profile)[2]
                shape = tuple(greatest for _, greatest in bounds) if bounds else tuple(map(int, widest))
            taken[name] = tuple(states.get(name, shape))
        self._set_shapes(tuple(taken.values()))
        return {**taken, **self._produced}

    # Memory.

    def _leaves(self, name: str) -> bool:
        return name not in self._attached and name not in self._returned

    def _memory(self, name: str, turn: int = 0) -> DeviceTensor:
        if name in self._attached:
            return self._attached[name]
        if (name, turn) not in self._held:
            shape, dtype = self._greatest[name], self._specs_of[name].dtype
            self._held[name, turn] = DeviceTensor(self._cuda.allocate(byte_count(shape, dtype)), shape, dtype)
        return self._held[name, turn]

    def _address(self, name: str) -> int:
        """Where the engine reads or writes now: states that are not in place by turn, others always there."""
        pair = self._pairs.get(name)
        if pair is not None:
            return self._memory(name, 0 if pair.in_place else self._turn).address
        behind = self._returned.get(name)
        if behind is not None:
            return self._memory(behind.input, 0 if behind.in_place else self._turn ^ 1).address
        return self._memory(name).address

    def _staging(self, name: str) -> Pinned:
        """Pinned memory for a tensor's greatest size; smaller ones lie at its beginning, so that nothing grows."""
        if name not in self._pinned:
            dtype = numpy_dtype(self._specs_of[name].dtype)
            self._pinned[name] = self._cuda.pinned(self._greatest[name], dtype)
        return self._pinned[name]

    def _staged(self, name: str, shape: Shape) -> NDArray[Any]:
        """The staging memory as an array of that shape."""
        return self._staging(name).array.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)

    def _up(self, name: str, shape: Shape) -> None:
        count = byte_count(shape, self._specs_of[name].dtype)
        self._cuda.upload(self._address(name), self._staging(name).address, count, self._stream)

    def _down(self, name: str, shape: Shape) -> None:
        count = byte_count(shape, self._specs_of[name].dtype)
        self._cuda.download(self._staging(name).address, self._address(name), count, self._stream)

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            self._cuda.destroy_graph(graph)
        self._graphs.clear()
        self._refusals.clear()
        self._run_before.clear()

    def _free(self) -> None:
        """Give everything back, in an order in which nothing is still used. What fails does not keep the rest. A lost
        device has taken it already."""
        with contextlib.suppress(DeviceLostError), contextlib.ExitStack() as back:
            for pinned in self._pinned.values():
                back.callback(pinned.free)
            for memory in self._held.values():
                back.callback(self._cuda.free, memory.address)
            for graph in self._graphs.values():
                back.callback(self._cuda.destroy_graph, graph)
            back.callback(self._cuda.synchronise, self._stream)
            back.callback(self._cuda.use)
        self._graphs.clear()
        self._held.clear()
        self._pinned.clear()
        self._attached.clear()
        self._context = self._engine = None

    def _destroy_stream(self, stream: int) -> None:
        with contextlib.suppress(DeviceLostError):
            self._cuda.destroy_stream(stream)

    # Refusals.

    def _must(
        self, done: Any, what: str, next_step: str = "aula doctor tries the GPU; or build the engine anew"
    ) -> None:
        if not done:
            raise BackendError(f"TensorRT {what}: {self._runtime.said()}", next_step=next_step)

    def _enter(self) -> None:
        """Before anything that a caller asks for: the session is open, and this thread speaks to its GPU."""
        self._check_open()
        self._cuda.use()

    def _check_begun(self) -> None:
        if not self._shapes:
            raise BackendError("nothing was run yet", next_step="run the session once with usual inputs")

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this session is closed", next_step="open a new one with open_session()")

    def _check_name(self, name: str) -> None:
        if name not in self._specs_of:
            raise BackendError(
                f"the engine has no tensor {name!r}", available=list(self._specs_of), next_step="name one of these"
            )

    def _check_state(self, name: str) -> None:
        if name not in self._pairs:
            raise BackendError(f"{name!r} is no state", available=list(self._pairs), next_step="name one of these")


def _narrowed(name: str, array: NDArray[Any]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise BackendError(
            f"input {name} holds numbers beyond int32, in which this engine counts",
            next_step="use an engine of TensorRT 10 or later, or one for the CPU",
        )
    return array.astype(np.int32)


def open_model(model: Path, options: SessionOptions) -> Session:
    return TensorRtSession(model, options)
