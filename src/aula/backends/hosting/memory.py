"""Memory that two processes share: nameless, so that nothing is left behind however either of them ends.

One side writes tensors, one after the other; the other reads them where they lie. The writer makes it larger when it
must, and says how large it is with every message.
"""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.device_tensor import numpy_dtype
from aula.core.errors import BackendError

LEAST = 1 << 16
ALIGNMENT = 64
"""Bytes of a cache line; vector instructions want no more."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in the memory: where it begins, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def lay_out(tensors: Mapping[str, NDArray[Any]]) -> tuple[tuple[Place, ...], int]:
    """A place for each, in order, and the bytes that all take. Raises BackendError for arrays of Python objects."""
    places, end = [], 0
    for name, array in tensors.items():
        if array.dtype.hasobject or array.dtype.names is not None:
            raise BackendError(
                f"{name} is {array.dtype}, which cannot be shared between processes",
                next_step="open this engine in the same process, or export it with numbers alone",
            )
        start = -(-end // ALIGNMENT) * ALIGNMENT
        places.append(Place(name, array.dtype.name, array.shape, start))
        end = start + array.nbytes
    return tuple(places), end


class SharedMemory:
    """Not for two threads at once. Its arrays stay good after it has grown, and after `close`."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the file descriptor."""
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self.bytes = 0

    @classmethod
    def create(cls) -> "SharedMemory":
        """Raises BackendError where the system gives none."""
        with contextlib.ExitStack() as undo:
            try:
                descriptor = _nameless()
            except OSError as error:
                raise _refused(LEAST, error) from error
            memory = cls(descriptor)
            undo.callback(memory.close)
            memory.grow(LEAST)
            undo.pop_all()
        return memory

    @classmethod
    def attach(cls, descriptor: int) -> "SharedMemory":
        """What the other side has made. Takes over the file descriptor."""
        memory = cls(descriptor)
        memory.follow(os.fstat(descriptor).st_size)
        return memory

    def grow(self, wanted: int) -> None:
        """At least so many bytes: twice as many as before, where that suffices. Raises BackendError where there are not
        so many."""
        if wanted <= self.bytes:
            return
        size = max(wanted, 2 * self.bytes)
        try:
            if wanted > (free := _available_bytes()):
                # Pages are taken when they are written, and nobody is asked then: the system ends a process.
                raise OSError(f"{free} are free")
            os.ftruncate(self.descriptor, size)
            self._remap(size)
        except (OSError, OverflowError, ValueError) as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.bytes)
            raise _refused(size, error) from error

    def follow(self, size: int) -> None:
        """The other side has made it that large. Raises BackendError where this process may map no more."""
        if size > self.bytes:
            try:
                self._remap(size)
            except (OSError, OverflowError, ValueError) as error:
                raise _refused(size, error) from error

    def arrays(self, places: Sequence[Place]) -> list[NDArray[Any]]:
        """The tensors at those places, where they lie."""
        assert self._map is not None
        return [
            np.ndarray(place.shape, numpy_dtype(place.dtype), buffer=self._map, offset=place.offset) for place in places
        ]

    def close(self) -> None:
        """Lawful twice. The system takes the pages back when the last array is gone, in both processes."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._map = None

    def _remap(self, size: int) -> None:
        self._map = mmap.mmap(self.descriptor, size)
        self.bytes = size


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("aula-tensors", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # has no name either, where the system is no Linux
        return os.dup(file.fileno())


def _available_bytes() -> int:
    """What can be had without swapping (proc_meminfo(5)); where the system does not tell, an address space."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 1 << 47


def _refused(size: int, error: Exception) -> BackendError:
    return BackendError(
        f"the system gives no {size} bytes of shared memory ({error})",
        next_step="free memory, or send smaller tensors",
    )
