"""What sessions on an NVIDIA GPU have in common, whatever computes there: TensorRT's plans, or kernels of our own.

A run is one CUDA graph: inputs from pinned memory, the engine, outputs into pinned memory, captured when the same
shapes come for the second time and replayed with one call from then on. Other shapes end it, since a graph knows its
engine as it was. Where something in the engine cannot be captured, the same is started piece by piece, and
`statistics` says why.

States never leave the GPU. A pair that is `in_place` is read and written at one address; any other has two buffers that
take turns, with a graph for each turn. What one session makes and another takes (`attach`) does not leave it either.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda, Pinned
from aula.backends.device_memory import DeviceMemory
from aula.backends.device_tensor import DeviceTensor, Shape, byte_count, numpy_dtype
from aula.backends.session import Session, SessionOptions, Tensors
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


class DeviceSession(Session):
    """One stream and one engine a session. A subclass opens the engine between `_open` and `_begin`, and gives
    `_resize` and `_execute`."""

    keeps_states = True

    def _open(self, options: SessionOptions, cuda: Cuda | None) -> None:
        """CUDA comes first, since it says plainly what a machine without a GPU lacks."""
        self._cuda = cuda or Cuda.open(options.device)
        self._cuda.use()
        self._undo = contextlib.ExitStack()
        self._graphs: dict[Key, int] = {}
        self._refusals: dict[Key, str] = {}
        self._run_before: set[Key] = set()
        self._shapes: tuple[Shape, ...] = ()
        self._produced: dict[str, Shape] = {}
        self._attached: dict[str, DeviceTensor] = {}
        self._places: frozenset[tuple[str, int]] = frozenset()
        self._held: dict[tuple[str, int], DeviceTensor] = {}
        self._pinned: dict[str, Pinned] = {}
        self._counts: Counter[str] = Counter()
        self._turn = 0
        self._pending = False

    def _open_stream(self) -> None:
        self._stream = self._cuda.stream()
        self._undo.callback(self._destroy_stream, self._stream)

    def _begin(
        self,
        taken: Sequence[TensorSpec],
        made: Sequence[TensorSpec],
        greatest: Mapping[str, Shape],
        options: SessionOptions,
    ) -> None:
        """The engine is open: `greatest` is the greatest size of every input."""
        self._taken, self._made = [spec.name for spec in taken], [spec.name for spec in made]
        self._specs_of = {spec.name: spec for spec in (*taken, *made)}
        self._set_shapes(tuple(greatest[name] for name in self._taken))
        self._greatest = {**greatest, **self._produced}
        self._shapes = ()  # nothing was run yet
        self._pairs = {pair.input: pair for pair in options.states}
        self._returned = {pair.output: pair for pair in options.states}
        self._undo.callback(self._free)
        super().__init__(taken, made, options)

    def _resize(self, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
        """Take inputs of these shapes, in the order of `_taken`, from now on: the shapes of the outputs."""
        raise NotImplementedError

    def _execute(self) -> None:
        """Start the engine on the stream, with every tensor at its `_address`."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of the engine, when nothing uses it any more."""
        raise NotImplementedError

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

    def shape_of(self, name: str) -> Shape:
        """The greatest shape of an input, an output or a state."""
        self._enter()
        self._check_name(name)
        return self._greatest[name]

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

    def follow(self, other: "DeviceSession") -> None:
        """Start on the other's stream from now on: what it was told to write is there before this session reads it.
        The other must stay open as long as this one."""
        self._enter()
        other._check_open()
        self._cuda.synchronise(self._stream)
        self._forget_graphs()
        self._stream = other._stream

    def memory_beside(self) -> DeviceMemory:
        """Memory on this GPU, whose copies happen on this session's stream; to be closed before the session is."""
        self._enter()
        return DeviceMemory(self._cuda, self._stream)

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
            # Engines want a plain run after shapes changed; what comes once more is worth a graph.
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
        self._execute()
        for name, shape in self._produced.items():
            if self._leaves(name):
                self._down(name, shape)

    def _tell_shapes(self, tensors: Tensors) -> None:
        shapes = tuple(tensors[name].shape if name in tensors else self._greatest[name] for name in self._taken)
        if shapes != self._shapes:
            self._set_shapes(shapes)

    def _set_shapes(self, shapes: tuple[Shape, ...]) -> None:
        self._shapes = ()
        produced = self._resize(shapes)
        # A graph knows what the engine was like when it was captured.
        self._forget_graphs()
        self._shapes, self._produced = shapes, produced

    def _timed(self, start: Any, end: Any) -> float:
        self._cuda.record(start, self._stream)
        self._go()
        self._cuda.record(end, self._stream)
        return self._cuda.milliseconds(start, end)

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
        self._release()

    def _destroy_stream(self, stream: int) -> None:
        with contextlib.suppress(DeviceLostError):
            self._cuda.destroy_stream(stream)

    # Refusals.

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
