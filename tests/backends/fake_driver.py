"""`cuda.bindings.driver` beside FakeCuda: modules, functions, launches. What a kernel does is a Python function.

An image is the kernels' source: each function is found by the line that makes it, MACRO(name, numbers...), and
`kinds[MACRO](memory, numbers, values, grid)` is started on the stream. `memory(address, dtype, shape)` is an array over
device memory.
"""

# ruff: noqa: N802 - the names are CUDA's

import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.backends.fake_cuda import FakeCuda

Kernel = Callable[["Memory", list[str], tuple[int, ...], tuple[int, int, int]], None]
_LINE = re.compile(r"^(\w+)\((\w+), (.*)\)$", re.MULTILINE)
MOST_SHARED = 227 << 10


class Memory:
    """Arrays over device memory; a null pointer is None."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def __call__(self, address: int, dtype: Any, *shape: int) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_ubyte * count).from_address(self._cuda.find(address, count))
        return np.frombuffer(raw, dtype=dtype).reshape(shape)


@dataclass
class FakeDriver:
    cuda: FakeCuda
    kinds: Mapping[str, Kernel]
    modules: dict[int, dict[str, tuple[str, list[str]]]] = field(default_factory=dict)
    launches: list[tuple[str, bool]] = field(default_factory=list)
    """Kernels that were launched, and whether each could begin early."""
    shared: dict[str, int] = field(default_factory=dict)
    """The most shared memory that each was allowed."""
    fail: dict[str, int] = field(default_factory=dict)
    CUlaunchConfig: Any = SimpleNamespace
    CUfunction_attribute: Any = int
    CUlaunchAttributeID: Any = int

    def CUlaunchAttribute(self) -> Any:
        return SimpleNamespace(id=None, value=SimpleNamespace(programmaticStreamSerializationAllowed=0))

    def cuModuleLoadData(self, image: bytes) -> Any:
        if code := self.fail.get("cuModuleLoadData"):
            return (code, None)
        number = len(self.modules) + 1
        text = image.decode()
        self.modules[number] = {name: (macro, rest.split(", ")) for macro, name, rest in _LINE.findall(text)}
        return (0, number)

    def cuModuleUnload(self, module: int) -> Any:
        del self.modules[module]
        return (0,)

    def cuModuleGetFunction(self, module: int, name: bytes) -> Any:
        known = self.modules[module]
        return (0, (name.decode(), *known[name.decode()])) if name.decode() in known else (500, None)

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> Any:
        assert attribute == 8, "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        if value > MOST_SHARED:
            return (1,)
        self.shared[function[0]] = value
        return (0,)

    def cuLaunchKernelEx(self, config: Any, function: Any, parameters: Any, extra: int) -> Any:
        assert extra == 0
        if code := self.fail.get("cuLaunchKernelEx"):
            return (code,)
        name, macro, numbers = function
        values, kinds = parameters
        assert len(values) == len(kinds)
        assert config.sharedMemBytes <= self.shared.get(name, 48 << 10), "more shared memory than was asked for"
        grid = (config.gridDimX, config.gridDimY, config.gridDimZ)
        assert 0 < config.blockDimX <= 1024
        self.launches.append((name, bool(getattr(config, "attrs", []))))
        memory = Memory(self.cuda)
        self.cuda.submit(config.hStream, lambda: self.kinds[macro](memory, numbers, values, grid))
        return (0,)
