"""The engine's process: opens what it is ordered to, answers one run after the other, ends with its host.

    python -P -m aula.backends.hosting.child SOCKET INPUTS OUTPUTS HOST

The first three are inherited file descriptors, the last is the host's process number. Whatever libraries print goes to
standard error, whose last lines the host keeps.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import os
import pickle
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from aula.backends.hosting.memory import SharedMemory, lay_out
from aula.backends.hosting.wire import Failure, Kind, Layout, Loaded, Message, Order, Wire, decode, encode
from aula.backends.session import BACKENDS, Session
from aula.core.errors import DeviceLostError, ProcessLostError
from aula.core.types import TensorSpec

_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG (linux/prctl.h)"""
_OUT_OF_MEMORY_FIRST = "500"
"""Of -1000 to 1000 (proc_pid_oom_score_adj(5)): when memory runs out, this process goes before its host."""


class Engine:
    """A session, and the memory through which it is fed."""

    def __init__(self, session: Session, inputs: SharedMemory, outputs: SharedMemory) -> None:
        self._session = session
        self._inputs, self._outputs = inputs, outputs
        self._last = b""
        self._given: dict[str, NDArray[Any]] = {}

    def answer(self, message: Message) -> tuple[Kind, bytes]:
        if message.kind is Kind.PRECISIONS:
            return Kind.TOLD, encode(self._session.precisions())
        if message.kind is Kind.SETTLE:
            self._session.settle()
            return Kind.TOLD, b""
        if message.reset:
            self._session.reset()
        if message.body != self._last:
            # While sizes stay the same, arrays do too: runtimes keep inputs bound that they know.
            layout = decode(message.body, Layout)
            self._inputs.follow(layout.bytes)
            names = [place.name for place in layout.places]
            self._given = dict(zip(names, self._inputs.arrays(layout.places), strict=True))
            self._last = message.body
        produced = self._session.run(self._given)
        places, size = lay_out(produced)
        self._outputs.grow(size)
        for array, place in zip(self._outputs.arrays(places), places, strict=True):
            array[...] = produced[place.name]
        return Kind.PRODUCED, encode(Layout(places, self._outputs.bytes))


def describe(session: Session) -> Loaded:
    """With states, which the session itself hides."""
    specs = {name: session._specs[name] for name in session._specs}
    states = [
        TensorSpec(pair.output, specs[pair.input].dtype, specs[pair.input].shape) for pair in session.options.states
    ]
    inputs = tuple(TensorSpec(name, spec.dtype, session._names[name]) for name, spec in specs.items())
    return Loaded(session.backend, inputs, (*session.outputs, *states), session.options)


def serve(wire: Wire, session: Session, inputs: SharedMemory, outputs: SharedMemory) -> None:
    """Until the host is gone, or an error after which this process is of no use."""
    engine = Engine(session, inputs, outputs)
    while (message := wire.receive()) is not None:
        fatal = False
        try:
            kind, body = engine.answer(message)
        except Exception as error:  # the host raises it again, and has the next run
            fatal = isinstance(error, (DeviceLostError, ProcessLostError, MemoryError))
            kind, body = Kind.ERROR, encode(Failure.of(error, fatal=fatal))
        wire.send(Message(message.serial, kind, body))
        if fatal:
            return


def main(arguments: list[str]) -> None:
    connection, inputs, outputs, host = map(int, arguments)
    _die_with(host)
    for descriptor in (connection, inputs, outputs):
        os.set_inheritable(descriptor, False)
    os.dup2(2, 1)
    faulthandler.enable()
    # Dumping the memory of an engine takes seconds, and the host would hear of the death only after them.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_FIRST, encoding="ascii")
    wire = Wire(socket.socket(fileno=connection))
    first = wire.receive()
    if first is not None and first.kind is Kind.PREPARE:
        importlib.import_module(BACKENDS[decode(first.body, str)].module)
        first = wire.receive()
    if first is None:
        return
    try:
        order: Order = pickle.loads(first.body)  # noqa: S301 - written by our own host
        if order.memory_bytes:
            _limit(order.memory_bytes)
        session = order.open()
    except Exception as error:  # the host raises it again
        wire.send(Message(first.serial, Kind.ERROR, encode(Failure.of(error, fatal=True))))
        return
    with session:
        wire.send(Message(first.serial, Kind.LOADED, encode(describe(session))))
        serve(wire, session, SharedMemory.attach(inputs), SharedMemory.attach(outputs))


def _die_with(host: int) -> None:
    """The system ends this process with its host, whatever it is doing then. Where it cannot, the end of the socket
    ends it between two runs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != host:
        sys.exit(0)  # it was gone before


def _limit(bytes_: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    least = bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the host went while it was answered
        main(sys.argv[1:])
