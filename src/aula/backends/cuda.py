"""What sessions on an NVIDIA GPU need of CUDA, over cuda-python: memory, streams, graphs, and typed errors.

Every call's error becomes a BackendError. Two kinds have types of their own: a card that is full (the caller can free
something or step down), and a device that is lost. After an illegal access, a failed assertion or an uncorrectable
memory error the CUDA context of this process answers every later call with the same error: only a new process helps.
"""

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import BackendError, DeviceLostError, DeviceMemoryError

STICKY = frozenset(
    {
        214,  # ECCUncorrectable
        220,  # NvlinkUncorrectable
        700,  # IllegalAddress
        702,  # LaunchTimeout
        709,  # ContextIsDestroyed
        710,  # Assert
        714,  # HardwareStackError
        715,  # IllegalInstruction
        716,  # MisalignedAddress
        717,  # InvalidAddressSpace
        718,  # InvalidPc
        719,  # LaunchFailure
        721,  # Contained
        999,  # Unknown
    }
)
"""Errors after which the context is spoilt (CUDA Runtime API, error types: "must be terminated and relaunched")."""
OUT_OF_MEMORY = 2
_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3
_CAPTURE_THREAD_LOCAL = 1
_NON_BLOCKING = 1
LEAST_BYTES = 256
"""An empty tensor has an address too."""


class Cuda:
    """One GPU of this process. Methods are thin: names are the runtime's own, errors are ours."""

    def __init__(self, runtime: Any, device: int = 0) -> None:
        """`runtime` is `cuda.bindings.runtime`, or in tests something that answers like it."""
        self._rt = runtime
        self.device = device
        self.use()

    @classmethod
    def open(cls, device: int = 0) -> "Cuda":
        """Raises BackendError where cuda-python is not installed, or finds no such GPU."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(
                "GPU engines need the package cuda-python, which is not installed", next_step='pip install "aula[gpu]"'
            ) from error
        count = runtime.cudaGetDeviceCount()
        found = int(count[1]) if int(count[0]) == 0 else 0
        if not 0 <= device < found:
            raise BackendError(
                f"there is no GPU {device} here" if found else "this machine has no GPU that CUDA can use",
                available=[str(number) for number in range(found)],
                next_step="aula doctor says what is missing; engines for the CPU need none: --target cpu",
            )
        return cls(runtime, device)

    def use(self) -> None:
        """Let this thread speak to this GPU. Said each time: another session may have told it of another GPU since."""
        self.call("cudaSetDevice", self.device)

    def call(self, name: str, *arguments: Any) -> Any:
        """One call of the runtime; its result without the error code, None, one value or a tuple."""
        error, *values = getattr(self._rt, name)(*arguments)
        if int(error) != 0:
            raise self.failure(name, int(error))
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def failure(self, name: str, code: int) -> BackendError:
        """What a call that answered `code` means."""
        text = str(code)
        with contextlib.suppress(ValueError):  # a code that this release of cuda-python has no name for
            told = self._rt.cudaGetErrorString(self._code(code))
            if int(told[0]) == 0:
                text = told[1].decode() if isinstance(told[1], bytes) else str(told[1])
        if code in STICKY:
            return DeviceLostError(
                f"GPU {self.device} is lost to this process: {text} (CUDA error {code} in {name})",
                next_step="replace the process; engines in a child process (hosted sessions) come back by themselves",
            )
        if code == OUT_OF_MEMORY:
            return DeviceMemoryError(
                f"GPU {self.device} has no memory left ({name})",
                next_step="close other sessions, build for fewer rows, or serve this engine on the CPU",
            )
        return BackendError(f"CUDA says: {text} (error {code} in {name})", next_step="aula doctor tries the GPU")

    def _code(self, code: int) -> Any:
        kind = getattr(self._rt, "cudaError_t", int)
        return kind(code)

    # Memory.

    def allocate(self, count: int) -> int:
        """Device memory of `count` bytes: its address."""
        return int(self.call("cudaMalloc", max(count, LEAST_BYTES)))

    def free(self, address: int) -> None:
        self.call("cudaFree", address)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> "Pinned":
        """Host memory that the GPU reads and writes by itself."""
        return Pinned(self, tuple(shape), dtype)

    def free_memory(self) -> tuple[int, int]:
        """Free and total bytes of the card."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def upload(self, target: int, source: int, count: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", target, source, count, self._kind(_HOST_TO_DEVICE), stream)

    def download(self, target: int, source: int, count: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", target, source, count, self._kind(_DEVICE_TO_HOST), stream)

    def copy(self, target: int, source: int, count: int, stream: int) -> None:
        self.call("cudaMemcpyAsync", target, source, count, self._kind(_DEVICE_TO_DEVICE), stream)

    def copy_lines(self, target: int, apart: int, source: int, width: int, lines: int, stream: int) -> None:
        """`lines` pieces of `width` bytes that lie one behind the other, to where they begin `apart` bytes apart."""
        kind = self._kind(_DEVICE_TO_DEVICE)
        self.call("cudaMemcpy2DAsync", target, apart, source, width, width, lines, kind, stream)

    def clear(self, target: int, count: int, stream: int) -> None:
        self.call("cudaMemsetAsync", target, 0, count, stream)

    def _kind(self, kind: int) -> Any:
        return getattr(self._rt, "cudaMemcpyKind", int)(kind)

    # Streams and graphs.

    def stream(self) -> int:
        """One that does not wait for the default stream; graphs are captured on it."""
        return int(self.call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def synchronise(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self.call("cudaStreamDestroy", stream)

    def begin_capture(self, stream: int) -> None:
        mode = getattr(self._rt, "cudaStreamCaptureMode", int)(_CAPTURE_THREAD_LOCAL)
        self.call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """An executable graph of what was started since `begin_capture`."""
        graph = self.call("cudaStreamEndCapture", stream)
        try:
            return int(self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed: the error of the end is that of the failure, and is forgotten."""
        error, graph = (*self._rt.cudaStreamEndCapture(stream), None)[:2]
        if int(error) == 0 and graph:
            self._rt.cudaGraphDestroy(graph)
        self._rt.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        self.call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self.call("cudaGraphExecDestroy", graph)

    # Time on the device.

    def event(self) -> Any:
        return self.call("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        self.call("cudaEventRecord", event, stream)

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two recorded events; waits for the second."""
        self.call("cudaEventSynchronize", end)
        return float(self.call("cudaEventElapsedTime", start, end))

    def destroy_event(self, event: Any) -> None:
        self.call("cudaEventDestroy", event)

    # What this GPU is.

    def capability(self) -> str:
        """Like "9.0"."""
        kinds = getattr(self._rt, "cudaDeviceAttr", None)
        major, minor = (kinds(75), kinds(76)) if kinds else (75, 76)
        return ".".join(str(self.call("cudaDeviceGetAttribute", kind, self.device)) for kind in (major, minor))

    def name(self) -> str:
        """The product's name, like "NVIDIA L4"."""
        told = self.call("cudaGetDeviceProperties", self.device).name
        return told.decode().rstrip("\0") if isinstance(told, bytes) else str(told)

    def count(self) -> int:
        """GPUs that this process may use."""
        return int(self.call("cudaGetDeviceCount"))

    def driver(self) -> str:
        """The newest CUDA that the driver serves, like "13.0"."""
        version = int(self.call("cudaDriverGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"


class Pinned:
    """A page-locked array. `array` is a view that lives as long as this object."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        self.bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(cuda.call("cudaMallocHost", max(self.bytes, LEAST_BYTES)))
        raw = (ctypes.c_byte * max(self.bytes, 1)).from_address(self.address)
        flat: NDArray[Any] = np.ctypeslib.as_array(raw).view(np.uint8)[: self.bytes]
        self.array: NDArray[Any] = flat.view(dtype).reshape(shape)

    def free(self) -> None:
        self.array = np.empty(0)
        self._cuda.call("cudaFreeHost", self.address)
