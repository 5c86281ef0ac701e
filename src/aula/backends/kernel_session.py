"""Kernels of our own on an NVIDIA GPU: a program in, a session out. All else is as with plans."""

import contextlib
import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.cuda import Cuda
from aula.backends.device_session import DeviceSession
from aula.backends.device_tensor import Shape
from aula.backends.kernel_program import At, Launch, load_program
from aula.backends.session import Session, SessionOptions
from aula.core.errors import BackendError, DeviceLostError

ALIGNED = 256
_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_HABIT_SHARED = 48 * 1024
_PROGRAMMATIC = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_EARLY_FROM = (9, 0)
"""Compute capability from which a kernel can begin before the one before it has ended."""


class KernelModule:
    """Compiled kernels in a GPU's context, over `cuda.bindings.driver`."""

    def __init__(self, cuda: Cuda, image: bytes, driver: Any = None) -> None:
        self._cuda, self._driver = cuda, driver or _driver()
        cuda.use()
        self._module = self._call("cuModuleLoadData", image)
        self._functions: dict[str, Any] = {}

    def launch(self, launch: Launch, values: tuple[int, ...], stream: int, *, early: bool) -> None:
        """Start it on the stream; `early`: as soon as the kernel before it lets it."""
        function = self._function(launch)
        kinds = tuple(ctypes.c_longlong if isinstance(one, int) else ctypes.c_void_p for one in launch.arguments)
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block, 1, 1
        config.sharedMemBytes = launch.shared
        config.hStream = stream
        if early:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID(_PROGRAMMATIC)
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        self._call("cuLaunchKernelEx", config, function, (values, kinds), 0)

    def close(self) -> None:
        """A lost device has taken it already."""
        self._functions.clear()
        with contextlib.suppress(DeviceLostError):
            self._call("cuModuleUnload", self._module)

    def _function(self, launch: Launch) -> Any:
        if launch.kernel not in self._functions:
            function = self._call("cuModuleGetFunction", self._module, launch.kernel.encode())
            if launch.shared > _HABIT_SHARED:
                attribute = self._driver.CUfunction_attribute(_MOST_SHARED)
                self._call("cuFuncSetAttribute", function, attribute, launch.shared)
            self._functions[launch.kernel] = function
        return self._functions[launch.kernel]

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if int(error) != 0:
            raise self._cuda.failure(name, int(error))
        return values[0] if values else None


class KernelSession(DeviceSession):
    backend = "kernels"

    def __init__(self, path: Path, options: SessionOptions, *, cuda: Cuda | None = None, driver: Any = None) -> None:
        self._open(options, cuda)
        with self._undo:
            compiled = load_program(path, options.digest)
            here = self._cuda.capability()
            if compiled.capability != here:
                raise BackendError(
                    f"{path.name} is compiled for compute capability {compiled.capability}, this GPU has {here}",
                    next_step="build the engine for this GPU: aula build MODEL --target ...",
                )
            self._program = compiled.program
            self._early = self._program.early and tuple(map(int, here.split("."))) >= _EARLY_FROM
            self._open_stream()
            self._module = KernelModule(self._cuda, compiled.image, driver)
            self._undo.callback(self._module.close)
            self._lying = self._upload(self._program.weights)
            for name, count in self._program.scratch.items():
                self._lying[name] = self._room(count)
            program = self._program
            greatest = {spec.name: _fixed(spec.shape) for spec in program.inputs}
            self._begin(program.inputs, program.outputs, greatest, options)
            self._undo = self._undo.pop_all()

    def precisions(self) -> dict[str, int]:
        return dict(self._program.products)

    def layers(self) -> list[dict[str, Any]]:
        """Every launch, in order."""
        return [{"Name": launch.kernel, "LayerType": "kernel"} for launch in self._program.launches]

    def _resize(self, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
        for spec, shape in zip(self._program.inputs, shapes, strict=True):
            if shape != spec.shape:
                raise BackendError(
                    f"the engine takes {spec.name} of shape {list(spec.shape)} alone, not {list(shape)}",
                    next_step="pad it, or build a profile for these sizes",
                )
        return {spec.name: _fixed(spec.shape) for spec in self._program.outputs}

    def _execute(self) -> None:
        for place, launch in enumerate(self._program.launches):
            values = tuple(self._value(one) for one in launch.arguments)
            # The first follows copies, which let nothing begin early.
            self._module.launch(launch, values, self._stream, early=self._early and place > 0)

    def _release(self) -> None:
        self._lying.clear()

    def _value(self, argument: At | int | None) -> int:
        if argument is None:
            return 0
        if isinstance(argument, int):
            return argument
        base = self._lying.get(argument.name)
        return (self._address(argument.name) if base is None else base) + argument.offset

    def _room(self, count: int) -> int:
        address = self._cuda.allocate(count)
        self._undo.callback(self._give_back, address)
        return address

    def _give_back(self, address: int) -> None:
        with contextlib.suppress(DeviceLostError):
            self._cuda.free(address)

    def _upload(self, weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
        """All weights in one piece of memory, each aligned."""
        places, end = {}, 0
        for name, array in weights.items():
            places[name] = end
            end += -(-array.nbytes // ALIGNED) * ALIGNED
        base = self._room(end)
        for name, array in weights.items():
            self._cuda.upload(base + places[name], array.ctypes.data, array.nbytes, self._stream)
        self._cuda.synchronise(self._stream)
        return {name: base + place for name, place in places.items()}


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _fixed(shape: tuple[int | str, ...]) -> Shape:
    return tuple(int(size) for size in shape)


def open_model(model: Path, options: SessionOptions) -> Session:
    return KernelSession(model, options)
