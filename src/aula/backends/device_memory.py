"""Memory beside a session's own, on its GPU and its stream: what several sessions work on, and what a host looks at."""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda, Pinned
from aula.backends.device_tensor import DeviceTensor, Shape, byte_count, numpy_dtype
from aula.core.errors import BackendError, DeviceLostError


class DeviceMemory:
    """Everything is done in the order of the stream, and given back by `close`, before the session that it is beside is
    closed."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self.stream = cuda, stream
        self._back = contextlib.ExitStack()

    def use(self) -> None:
        """This thread speaks to its GPU from now on."""
        self._cuda.use()

    def tensor(self, shape: Shape, dtype: str) -> DeviceTensor:
        """Nothing but noughts: what was there before could be no number."""
        self._cuda.use()
        count = byte_count(shape, dtype)
        made = DeviceTensor(self._cuda.allocate(count), shape, dtype)
        self._back.callback(self._cuda.free, made.address)
        self.clear(made)
        return made

    def mirror(self, shape: Shape, dtype: str) -> "Mirror":
        self._cuda.use()
        pinned = self._cuda.pinned(shape, numpy_dtype(dtype))
        self._back.callback(pinned.free)
        pinned.array[...] = 0
        return Mirror(self, self.tensor(shape, dtype), pinned)

    def copy(self, target: DeviceTensor, source: DeviceTensor) -> None:
        """Of one shape, or with fewer of the last axis but one in the source: the others stay as they are."""
        fits = source.dtype == target.dtype and source.shape[-1] == target.shape[-1]
        if not fits or source.bytes > target.bytes or source.shape[-2] > target.shape[-2]:
            raise BackendError(
                f"{source.dtype}{list(source.shape)} does not fit into {target.dtype}{list(target.shape)}",
                next_step="build both engines anew, for the same sizes: aula build MODEL --target ...",
            )
        row = byte_count(source.shape[-1:], source.dtype)
        width, apart = row * source.shape[-2], row * target.shape[-2]
        lines = int(np.prod(source.shape[:-2], dtype=np.int64))
        self._cuda.copy_lines(target.address, apart, source.address, width, lines, self.stream)

    def clear(self, tensor: DeviceTensor) -> None:
        self._cuda.clear(tensor.address, tensor.bytes, self.stream)

    def up(self, tensor: DeviceTensor, address: int) -> None:
        self._cuda.upload(tensor.address, address, tensor.bytes, self.stream)

    def down(self, address: int, tensor: DeviceTensor) -> None:
        self._cuda.download(address, tensor.address, tensor.bytes, self.stream)

    def wait(self) -> None:
        """Until all that was started is done."""
        self._cuda.use()
        self._cuda.synchronise(self.stream)

    def close(self) -> None:
        """A lost device has taken it already."""
        with contextlib.suppress(DeviceLostError), self._back:
            self.wait()


class Mirror:
    """A tensor on the device, and `array` on the host, which `up` and `down` make alike. The array must be left alone
    from an `up` or a `down` on until the memory was waited for."""

    def __init__(self, memory: DeviceMemory, tensor: DeviceTensor, pinned: Pinned) -> None:
        self._memory, self.tensor, self._pinned = memory, tensor, pinned
        self.array: NDArray[Any] = pinned.array

    def up(self) -> None:
        self._memory.up(self.tensor, self._pinned.address)

    def down(self, first: int = 0, count: int | None = None) -> None:
        """So many of the outermost axis."""
        some = self.tensor.part(first, len(self.array) - first if count is None else count)
        offset = some.address - self.tensor.address
        self._memory.down(self._pinned.address + offset, some)
