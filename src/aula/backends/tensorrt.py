"""TensorRT on an NVIDIA GPU: a plan in, a session out. One context a session; TensorRT 8.6 to 11."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda
from aula.backends.device_session import DeviceSession
from aula.backends.device_tensor import Shape, numpy_dtype
from aula.backends.plan_profiles import choose_profile
from aula.backends.session import Session, SessionOptions, Tensors
from aula.backends.tensorrt_runtime import Runtime, layer_precisions
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class TensorRtSession(DeviceSession):
    backend = "tensorrt"

    def __init__(
        self, plan: Path, options: SessionOptions, *, runtime: Runtime | None = None, cuda: Cuda | None = None
    ) -> None:
        self._open(options, cuda)
        with self._undo:
            # 1. The plan's own words: nothing is deserialised that nobody vouches for.
            self._runtime = runtime or Runtime.load()
            engine = self._runtime.deserialise(plan, options.digest, options.weights)
            self._engine: Any = engine
            names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
            modes = {name: engine.get_tensor_mode(name) for name in names}
            taken = [name for name in names if modes[name] == self._runtime.trt.TensorIOMode.INPUT]
            specs = {name: self._spec(name) for name in names}
            # 2. A context for the profile that serves these sizes, at its greatest sizes.
            self._profile = choose_profile(engine, taken, options, plan)
            self._open_stream()
            self._context: Any = self._runtime.context(engine, plan)
            self._choose_profile(plan)
            # 3. Memory for these.
            made = [specs[name] for name in names if name not in taken]
            self._begin([specs[name] for name in taken], made, self._sizes(taken, options), options)
            self._undo = self._undo.pop_all()

    def layers(self) -> list[dict[str, Any]]:
        """What the engine inspector says of every layer; [] for a plan that was built without it."""
        return self._runtime.layers(self._engine)

    def precisions(self) -> dict[str, int]:
        return layer_precisions(self.layers())

    def _accepted(self, tensors: Tensors) -> Tensors:
        """TensorRT 8.6 reads int64 as int32. Raises BackendError for numbers that do not fit."""
        narrow = {spec.name for spec in self.inputs if spec.dtype == "int32"}
        return {
            name: _narrowed(name, array) if name in narrow and array.dtype == np.int64 else array
            for name, array in tensors.items()
        }

    def _execute(self) -> None:
        for name in (*self._taken, *self._made):
            self._must(
                self._context.set_tensor_address(name, self._address(name)), f"does not take the place of {name}"
            )
        self._must(self._context.execute_async_v3(self._stream), "failed in a run")

    def _resize(self, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
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
        return produced

    def _release(self) -> None:
        self._context = self._engine = None

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

    def _sizes(self, taken: list[str], options: SessionOptions) -> dict[str, Shape]:
        """The greatest size of every input, as the profile says."""
        states = options.state_shapes or {}
        sizes = {}
        for name in taken:
            shape = tuple(map(int, self._engine.get_tensor_shape(name)))
            if -1 in shape:
                bounds = options.bounds.get(name)
                widest = self._engine.get_tensor_profile_shape(name, self._profile)[2]
                shape = tuple(greatest for _, greatest in bounds) if bounds else tuple(map(int, widest))
            sizes[name] = tuple(states.get(name, shape))
        return sizes

    def _must(
        self, done: Any, what: str, next_step: str = "aula doctor tries the GPU; or build the engine anew"
    ) -> None:
        if not done:
            raise BackendError(f"TensorRT {what}: {self._runtime.said()}", next_step=next_step)


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
