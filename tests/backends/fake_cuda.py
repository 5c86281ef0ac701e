"""`cuda.bindings.runtime` without a GPU: calls answer (error, value …), and device memory is memory of this process.

What is started on a stream is not done before somebody waits, as on a device: a host buffer that is written again too
early is seen. Between begin and end of a capture, work is noted in the graph; every launch does it again.
"""

# ruff: noqa: N801, N802, N815 - the names are CUDA's

import ctypes
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

Work = Callable[[], None]


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorECCUncorrectable = 214
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorIllegalAddress = 700
    cudaErrorHardwareStackError = 714
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


_WORDS = {2: b"out of memory", 700: b"an illegal memory access was encountered", 719: b"unspecified launch failure"}


class FakeCuda:
    """One process's CUDA with `devices` GPUs of `total` bytes.

    `fail(name, code, after)` lets the call of that name answer `code` once, after so many of its calls went well, and
    `fail_at(place, code)` whichever call is that one from now on. A sticky code is what every later call answers too.
    `refuse_capture` says with which error captures end.
    """

    cudaError_t: Any = cudaError_t
    cudaMemcpyKind: Any = cudaMemcpyKind
    cudaStreamCaptureMode: Any = cudaStreamCaptureMode
    cudaDeviceAttr: Any = cudaDeviceAttr

    def __init__(self, devices: int = 1, total: int = 1 << 30) -> None:
        self.devices, self.total = devices, total
        self.capability = (8, 9)
        self.current = -1
        self.calls: Counter[str] = Counter()
        self.device_memory: dict[int, Any] = {}
        self.host_memory: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.events: dict[int, int] = {}
        self.refuse_capture = 0
        self.lost = 0
        self.failed = ""
        self._spoilt: set[int] = set()
        self._failures: dict[str, tuple[int, int]] = {}
        self._place = 0
        self._fails_at = (0, 0)
        self._next = 0x1000
        self._clock = 0

    # What tests do and see.

    def fail(self, name: str, code: int, after: int = 0) -> None:
        self._failures[name] = (code, self.calls[name] + after)

    def fail_at(self, place: int, code: int) -> None:
        self._fails_at = (self._place + place, code)

    @property
    def made(self) -> int:
        """How many calls there have been."""
        return self._place

    def held(self) -> dict[str, int]:
        """What was not given back."""
        kinds = {
            "device": self.device_memory,
            "host": self.host_memory,
            "streams": self.streams,
            "graphs": self.graphs,
            "executables": self.executables,
            "events": self.events,
        }
        return {name: len(held) for name, held in kinds.items() if held}

    def forget(self) -> None:
        """The process is replaced."""
        self.lost = 0
        for held in (self.device_memory, self.host_memory, self.streams, self.graphs, self.executables, self.events):
            held.clear()

    def submit(self, stream: int, work: Work) -> None:
        """Work of an engine on a stream: noted, done when somebody waits, or captured."""
        (self.capturing[stream] if stream in self.capturing else self.streams[stream]).append(work)

    def spoil_capture(self, stream: int) -> None:
        """Something was called that no graph can hold."""
        self._spoilt.add(stream)

    def find(self, address: int, count: int) -> int:
        """The address, after it was made sure that all of it lies in device memory."""
        for start, buffer in self.device_memory.items():
            if start <= address and address + count <= start + len(buffer):
                return address
        raise AssertionError(f"{count} bytes at {address:#x} are no device memory")

    # The runtime.

    def _answer(self, name: str, work: Callable[[], Any] | None = None) -> Any:
        self.calls[name] += 1
        self._place += 1
        code = self.lost
        if not code and name in self._failures and self.calls[name] > self._failures[name][1]:
            code = self._failures.pop(name)[0]
        if not code and self._place == self._fails_at[0]:
            code = self._fails_at[1]
        if code and not self.lost:
            self.failed = name
        if code in (214, 700, 714, 719):
            self.lost = code
        if code:
            return (cudaError_t(code), None) if work else (cudaError_t(code),)
        if work is None:
            return (cudaError_t(0),)
        try:
            value = work()
        except _Refused as refused:
            return (cudaError_t(refused.code), None)
        return (cudaError_t(0), *value) if isinstance(value, tuple) else (cudaError_t(0), value)

    def _done(self, name: str, work: Callable[[], Any]) -> Any:
        """A call that has no value."""
        return self._answer(name, work)[:1]

    def _number(self) -> int:
        self._next += 1
        return self._next

    def cudaGetDeviceCount(self) -> Any:
        if not self.devices:
            return (cudaError_t.cudaErrorNoDevice, None)
        return self._answer("cudaGetDeviceCount", lambda: self.devices)

    def cudaSetDevice(self, device: int) -> Any:
        def work() -> None:
            _must(0 <= device < self.devices, 101)
            self.current = device

        return self._done("cudaSetDevice", work)

    def cudaGetErrorString(self, code: Any) -> Any:
        return (cudaError_t(0), _WORDS.get(int(code), code.name.encode()))

    def cudaGetLastError(self) -> Any:
        return (cudaError_t(self.lost),)

    def _allocate(self, held: dict[int, Any], count: int) -> int:
        _must(sum(map(len, self.device_memory.values())) + count <= self.total or held is self.host_memory, 2)
        _must(not self.capturing, 900)
        buffer = (ctypes.c_ubyte * count)(*([0xAB] * min(count, 64)))  # never zero by chance
        held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _release(self, held: dict[int, Any], address: int) -> None:
        _must(address in held, 1)
        self._drain_all()
        del held[address]

    def cudaMalloc(self, count: int) -> Any:
        return self._answer("cudaMalloc", lambda: self._allocate(self.device_memory, count))

    def cudaFree(self, address: int) -> Any:
        return self._done("cudaFree", lambda: self._release(self.device_memory, address))

    def cudaMallocHost(self, count: int) -> Any:
        return self._answer("cudaMallocHost", lambda: self._allocate(self.host_memory, count))

    def cudaFreeHost(self, address: int) -> Any:
        return self._done("cudaFreeHost", lambda: self._release(self.host_memory, address))

    def cudaMemGetInfo(self) -> Any:
        used = sum(map(len, self.device_memory.values()))
        return self._answer("cudaMemGetInfo", lambda: (self.total - used, self.total))

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: Any, stream: int) -> Any:
        assert isinstance(kind, cudaMemcpyKind)

        def work() -> None:
            _must(stream in self.streams, 400)
            if kind in (2, 3):
                self.find(source, count)
            if kind in (1, 3):
                self.find(target, count)
            self.submit(stream, lambda: _move(target, source, count))

        return self._done("cudaMemcpyAsync", work)

    def cudaMemcpy2DAsync(
        self, target: int, apart: int, source: int, pitch: int, width: int, lines: int, kind: Any, stream: int
    ) -> Any:
        assert kind == cudaMemcpyKind.cudaMemcpyDeviceToDevice

        def work() -> None:
            _must(stream in self.streams, 400)
            _must(width <= apart and width <= pitch, 1)
            self.find(source, pitch * (lines - 1) + width)
            self.find(target, apart * (lines - 1) + width)
            for line in range(lines):
                self.submit(stream, partial(_move, target + line * apart, source + line * pitch, width))

        return self._done("cudaMemcpy2DAsync", work)

    def cudaMemsetAsync(self, target: int, byte: int, count: int, stream: int) -> Any:
        def work() -> None:
            _must(stream in self.streams, 400)
            self.find(target, count)
            self.submit(stream, lambda: _fill(target, byte, count))

        return self._done("cudaMemsetAsync", work)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        def work() -> int:
            number = self._number()
            self.streams[number] = []
            return number

        return self._answer("cudaStreamCreateWithFlags", work)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        def work() -> None:
            _must(stream in self.streams, 400)
            if stream in self.capturing:
                self._spoilt.add(stream)
                raise _Refused(900)
            self._drain(stream)

        return self._done("cudaStreamSynchronize", work)

    def cudaStreamDestroy(self, stream: int) -> Any:
        def work() -> None:
            _must(stream in self.streams, 400)
            self._drain(stream)
            del self.streams[stream]

        return self._done("cudaStreamDestroy", work)

    def _drain(self, stream: int) -> None:
        works, self.streams[stream] = self.streams[stream], []
        for work in works:
            work()

    def _drain_all(self) -> None:
        for stream in list(self.streams):
            self._drain(stream)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert isinstance(mode, cudaStreamCaptureMode)

        def work() -> None:
            _must(stream in self.streams and stream not in self.capturing, 401)
            self.capturing[stream] = []

        return self._done("cudaStreamBeginCapture", work)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        def work() -> int:
            _must(stream in self.capturing, 401)
            noted = self.capturing.pop(stream)
            if stream in self._spoilt or self.refuse_capture:
                self._spoilt.discard(stream)
                raise _Refused(self.refuse_capture or 901)
            number = self._number()
            self.graphs[number] = noted
            return number

        return self._answer("cudaStreamEndCapture", work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        def work() -> int:
            number = self._number()
            self.executables[number] = list(self.graphs[graph])
            return number

        return self._answer("cudaGraphInstantiate", work)

    def cudaGraphDestroy(self, graph: int) -> Any:
        return self._done("cudaGraphDestroy", lambda: self.graphs.pop(graph))

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        def work() -> None:
            for each in self.executables[executable]:
                self.submit(stream, each)

        return self._done("cudaGraphLaunch", work)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        return self._done("cudaGraphExecDestroy", lambda: self.executables.pop(executable))

    def cudaEventCreate(self) -> Any:
        def work() -> int:
            number = self._number()
            self.events[number] = 0
            return number

        return self._answer("cudaEventCreate", work)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        def work() -> None:
            self._clock += 1
            self.events[event] = self._clock

        return self._done("cudaEventRecord", lambda: self.submit(stream, work))

    def cudaEventSynchronize(self, event: int) -> Any:
        return self._done("cudaEventSynchronize", self._drain_all)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        return self._answer("cudaEventElapsedTime", lambda: float(self.events[end] - self.events[start]))

    def cudaEventDestroy(self, event: int) -> Any:
        return self._done("cudaEventDestroy", lambda: self.events.pop(event))

    def cudaDeviceGetAttribute(self, kind: Any, device: int) -> Any:
        assert isinstance(kind, cudaDeviceAttr)
        return self._answer("cudaDeviceGetAttribute", lambda: self.capability[int(kind) - 75])

    def cudaDriverGetVersion(self) -> Any:
        return self._answer("cudaDriverGetVersion", lambda: 12080)


class _Refused(Exception):  # noqa: N818
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _must(lawful: bool, code: int) -> None:
    if not lawful:
        raise _Refused(code)


def _move(target: int, source: int, count: int) -> None:
    ctypes.memmove(target, source, count)


def _fill(target: int, byte: int, count: int) -> None:
    ctypes.memset(target, byte, count)


def as_module(fake: FakeCuda) -> Any:
    """What `from cuda.bindings import runtime` would find in a package that holds the fake."""
    return SimpleNamespace(runtime=fake)
