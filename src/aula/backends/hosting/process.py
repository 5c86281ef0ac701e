"""One process of an engine, as its host sees it: started, spoken to, ended, and what is said of its end."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from aula.backends.hosting.memory import Place, SharedMemory, lay_out
from aula.backends.hosting.wire import Kind, Layout, Message, Wire, decode, encode
from aula.backends.session import Tensors
from aula.core.errors import BackendError, ProcessHungError, ProcessLostError, ProcessMemoryError

_LINES, _CHARACTERS = 12, 300
"""Of standard error, in an error: enough for the end of a traceback."""
_HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class Obituary:
    """How it ended, in words; whether memory had run out."""

    how: str
    said: str
    no_memory: bool

    def __str__(self) -> str:
        return f"{self.how}; it said: {self.said}" if self.said else self.how


class EngineProcess:
    """One thread at a time speaks to it; another may `end` it meanwhile, and looks after what it says (`watch`).

    `reason` is why it is of no use any more, "" while it is. `owed` is the moment by which an answer must come that
    nobody waits for. `buried` is set once it has ended and its `obituary` is known.
    """

    def __init__(self, bell: int) -> None:
        """Starts it; it loads nothing before its order comes. What is readable at the descriptor `bell` wakes `watch`.
        Raises BackendError where the system starts no process."""
        _check_system()
        self.reason = ""
        self.obituary: Obituary | None = None
        self.buried = threading.Event()
        self.hung = False
        self.owed: float | None = None
        self._bell = bell
        self._serial = 0
        self._shapes: list[Any] = []
        self._request = b""
        self._places: list[NDArray[Any]] = []
        self._laid: dict[str, Place] = {}
        self._there: dict[str, weakref.ref[NDArray[Any]]] = {}
        """Which steady arrays lie in the memory already."""
        self._reply = b""
        self._produced: dict[str, NDArray[Any]] = {}
        self._said: deque[str] = deque(maxlen=_LINES)
        self._cut = b""
        self._talks = True
        self._kills_before = _out_of_memory_kills()
        try:
            self._begin()
        except OSError as error:
            raise BackendError(
                f"no process can be started for the engine ({error})",
                next_step="allow more processes (ulimit -u) or file descriptors (ulimit -n), or set isolate = never",
            ) from error

    def _begin(self) -> None:
        with contextlib.ExitStack() as undo:
            self._inputs = SharedMemory.create()
            undo.callback(self._inputs.close)
            self._outputs = SharedMemory.create()
            undo.callback(self._outputs.close)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            self.wire = Wire(ours)
            self._errors, errors = os.pipe()
            undo.callback(os.close, self._errors)
            try:
                os.set_blocking(self._errors, False)
                self._popen = _start(theirs.fileno(), self._inputs.descriptor, self._outputs.descriptor, errors)
            finally:
                theirs.close()
                os.close(errors)
            self._sentinel = _sentinel(self._popen.pid)
            self._undo = undo.pop_all()
        self.pid = self._popen.pid

    @property
    def shared_bytes(self) -> int:
        return self._inputs.bytes + self._outputs.bytes

    # Speaking.

    def send(self, kind: Kind, body: bytes = b"", *, reset: bool = False) -> None:
        """Raises OSError where the process is gone."""
        self._serial += 1
        self.wire.send(Message(self._serial, kind, body, reset))

    def answer(self, left: Callable[[], float]) -> Message | None:
        """To what was sent last; None where the process is gone. Raises TimeoutError when no seconds are left."""
        while (message := self.wire.receive(left())) is not None and message.serial != self._serial:
            pass  # for somebody who was interrupted while he waited
        return message

    def send_run(self, tensors: Tensors, *, reset: bool, steady: Container[str] = ()) -> None:
        """Of the inputs called `steady`, an array that was sent before is not sent again. Raises BackendError where
        there is no memory for them, OSError where the process is gone."""
        if steady:
            # First, so that they stay where they lie when the others change their sizes.
            tensors = dict(sorted(tensors.items(), key=lambda item: item[0] not in steady))
        shapes = [(name, array.dtype, array.shape) for name, array in tensors.items()]
        if shapes != self._shapes:
            self._shapes = []
            places, size = lay_out(tensors)
            self._inputs.grow(size)
            self._places = self._inputs.arrays(places)
            self._request = encode(Layout(places, self._inputs.bytes))
            laid = {place.name: place for place in places}
            self._there = {name: there for name, there in self._there.items() if laid.get(name) == self._laid[name]}
            self._laid = laid
            self._shapes = shapes
        for place, (name, array) in zip(self._places, tensors.items(), strict=True):
            if name in steady and name in self._there and self._there[name]() is array:
                continue
            place[...] = array
            if name in steady:
                self._there[name] = weakref.ref(array)
        self.send(Kind.RUN, self._request, reset=reset)

    def produced(self, body: bytes) -> dict[str, NDArray[Any]]:
        """Copies of what the last run made; the next one writes there again."""
        if body != self._reply:
            layout = decode(body, Layout)
            self._outputs.follow(layout.bytes)
            names = [place.name for place in layout.places]
            self._produced = dict(zip(names, self._outputs.arrays(layout.places), strict=True))
            self._reply = body
        return {name: array.copy() for name, array in self._produced.items()}

    # Its end.

    def end(self, reason: str) -> None:
        """Kill it, and wake whoever waits for its answer. The first reason stays. Lawful at any time."""
        self.reason = self.reason or reason
        if not self.buried.is_set():
            self._popen.kill()
        self.hang_up()

    def hang_up(self) -> None:
        """It hears no more, ends politely, and nobody waits for its answer."""
        with contextlib.suppress(OSError):
            self.wire.socket.shutdown(socket.SHUT_RDWR)

    @property
    def lives(self) -> bool:
        return self._popen.poll() is None

    def watch(self, seconds: float | None, *, answers: bool = False) -> bool:
        """Wait until something happens: False where the time was over first. What it says is taken in; `answers`: a
        message of its own counts too."""
        poll = select.poll()
        poll.register(self.wire.socket, select.POLLIN if answers else 0)
        if self._talks:
            poll.register(self._errors, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        if self._sentinel is not None:
            poll.register(self._sentinel, select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else max(0.0, 1000 * seconds)))
        if self._errors in ready:
            self._listen()
        if self._sentinel in ready or ready.get(self.wire.socket.fileno(), 0) & _HANGUP:
            self.reason = self.reason or "it ended by itself"
        return bool(ready)

    def bury(self, seconds: float) -> Obituary:
        """Once nobody speaks to it any more: wait for its end, at most so long before it is killed, and let go of all
        that it had."""
        try:
            self._popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._listen()
        self.obituary = self._written(self._popen.returncode)
        self.buried.set()
        return self.obituary

    def lost(self, when: str) -> ProcessLostError:
        """The error of a run that it took along."""
        told = self.obituary
        what = f"the engine's process {self.pid} ended {when}: {self.reason}" + (f" ({told})" if told else "")
        if told is not None and told.no_memory:
            return ProcessMemoryError(what, next_step="free memory, build a smaller engine, or ask the next rung")
        if self.hung:
            return ProcessHungError(what, next_step="ask the next rung; it is started anew by itself")
        return ProcessLostError(what, next_step="ask the next rung; it is started anew by itself")

    def release(self) -> None:
        self._undo.close()
        if self._sentinel is not None:
            os.close(self._sentinel)
            self._sentinel = None
        self._places, self._produced = [], {}

    def _written(self, code: int) -> Obituary:
        no_memory = code == -signal.SIGKILL and _out_of_memory_kills() > self._kills_before
        how = f"exit code {code}" if code >= 0 else _signal_name(-code)
        if no_memory:
            how += ", as the system ended processes for want of memory"
        return Obituary(how, " | ".join(self._said), no_memory)

    def _listen(self) -> None:
        """Take in what it wrote on standard error, so that it never waits for us to read."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._errors, 1 << 16):
                *lines, self._cut = (self._cut + part).split(b"\n")
                self._cut = self._cut[-_CHARACTERS:]
                told = (line.decode("utf-8", "replace").strip()[:_CHARACTERS] for line in lines)
                self._said.extend(line for line in told if line)
            self._talks = False
            if self._cut:
                self._said.append(self._cut.decode("utf-8", "replace").strip())
                self._cut = b""


def _start(connection: int, inputs: int, outputs: int, errors: int) -> "subprocess.Popen[bytes]":
    """A fresh interpreter with this one's search path. Neither a fork, which CUDA and threads do not survive, nor
    multiprocessing, which would import the caller's main module."""
    path = os.pathsep.join(dict.fromkeys(str(part or Path.cwd()) for part in sys.path))
    command = [sys.executable, "-P", "-m", "aula.backends.hosting.child"]
    return subprocess.Popen(  # noqa: S603 - words of our own
        [*command, *map(str, (connection, inputs, outputs, os.getpid()))],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        pass_fds=(connection, inputs, outputs),
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C in a terminal is the host's alone
    )


def _check_system() -> None:
    if sys.platform == "win32" or not sys.executable:
        raise BackendError(
            "an engine in a process of its own needs a POSIX system and a Python interpreter to start",
            next_step="open it in this process: isolate = never",
        )


def _sentinel(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, even if something it started holds its socket."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no Linux, or a sandbox that forbids it: the socket's end must do
        return None


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _out_of_memory_kills() -> int:
    """How many processes the system has ended for want of memory so far (/proc/vmstat), 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
