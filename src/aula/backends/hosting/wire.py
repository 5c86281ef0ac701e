"""What a host and its engine's process say to each other: a head of fixed size, then a body. Tensors go by memory.

    host  ->  prepare     a backend's name: import it; only to a spare, before its order
    host  ->  order       pickled: who opens the engine, memory limit; once
    child ->  loaded      what the engine takes and gives; or error
    host  ->  run         where the inputs lie, and how large their memory is now
    child ->  produced    where the outputs lie, likewise; or error
    host  ->  precisions; or settle
    child ->  told

A run's body is the same bytes while sizes are the same, and both sides know the last one.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from aula.backends.hosting.memory import Place
from aula.backends.session import Session, SessionOptions
from aula.core import errors
from aula.core.errors import AulaError, BackendError
from aula.core.types import TensorSpec

if TYPE_CHECKING:
    import socket

HEAD = struct.Struct("<IQB?")
"""Bytes of the body, serial number, kind, and whether states are reset before the run."""
T = TypeVar("T")


class Kind(IntEnum):
    ORDER = 0
    LOADED = 1
    RUN = 2
    PRODUCED = 3
    PRECISIONS = 4
    TOLD = 5
    ERROR = 6
    PREPARE = 7
    SETTLE = 8


@dataclass(frozen=True, slots=True)
class Message:
    serial: int
    kind: Kind
    body: bytes = b""
    reset: bool = False

    def packed(self) -> bytes:
        return HEAD.pack(len(self.body), self.serial, self.kind, self.reset) + self.body


@dataclass(frozen=True, slots=True)
class Order:
    """What the process is started for; `open` must be importable there."""

    open: Callable[[], Session]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine's own description, states included."""

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Layout:
    """Where tensors lie in a memory of `bytes`."""

    places: tuple[Place, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An error on its way home. `fatal`: the process ends after it."""

    kind: str
    what: str
    next_step: str
    available: tuple[str, ...] = ()
    fatal: bool = False

    @classmethod
    def of(cls, error: BaseException, *, fatal: bool = False) -> "Failure":
        if isinstance(error, AulaError):
            return cls(type(error).__name__, error.what, error.next_step, error.available, fatal)
        if isinstance(error, MemoryError):
            return cls(
                "ProcessMemoryError",
                f"the engine's process had no memory left ({error})" if str(error) else
                "the engine's process had no memory left",
                "send smaller tensors, or allow the process more memory (Hosting.memory_bytes)",
                fatal=fatal,
            )  # fmt: skip
        return cls(
            "BackendError",
            f"the engine's process failed: {type(error).__name__}: {error}",
            "run it in this process to see more (isolate = never)",
            fatal=fatal,
        )

    def error(self) -> AulaError:
        """As it was raised there; a kind that is not ours becomes a BackendError."""
        kind = getattr(errors, self.kind, BackendError)
        if not (isinstance(kind, type) and issubclass(kind, AulaError)) or kind is errors.OverloadError:
            kind = BackendError
        return kind(self.what, next_step=self.next_step, available=self.available)


def encode(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=str)


def decode(body: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(body, type=kind, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


class Wire:
    """Messages over one end of a connected socket. One thread reads and one writes at a time."""

    def __init__(self, connection: "socket.socket") -> None:
        self.socket = connection
        self._got = bytearray()

    def send(self, message: Message) -> None:
        """Raises OSError where the other side is gone."""
        self.socket.sendall(message.packed())

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message; None where the other side is gone. Raises TimeoutError when nothing came for so long; what
        had come by then is kept for the next call."""
        self.socket.settimeout(None if seconds is None else max(seconds, 1e-6))
        while True:
            if len(self._got) >= HEAD.size:
                length, serial, kind, reset = HEAD.unpack_from(self._got)
                end = HEAD.size + length
                if len(self._got) >= end:
                    body = bytes(self._got[HEAD.size : end])
                    del self._got[:end]
                    return Message(serial, Kind(kind), body, reset)
            try:
                part = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError:
                return None
            if not part:
                return None
            self._got += part
