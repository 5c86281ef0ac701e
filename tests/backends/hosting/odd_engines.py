"""Engines that misbehave on demand: what the first number of x asks for. Opened in a hosted session's process."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from enum import IntEnum, auto
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from aula.backends.selecting import SelectingSession
from aula.backends.session import Session, SessionOptions, StatePair, Tensors, open_session
from aula.backends.sizes import Bounds
from aula.core.errors import BundleError, DeviceLostError
from aula.core.types import TensorSpec
from tests.backends.fake_tensorrt import Output
from tests.backends.gpu_engines import Machine


class Odd(IntEnum):
    """Any other number: y = 2 x."""

    HANG = 901
    HANG_WITH_THE_LOCK = auto()
    KILLED = auto()
    CRASH = auto()
    LEAVE = auto()
    NO_MEMORY = auto()
    EAT_MEMORY = auto()
    LOSE_DEVICE = auto()
    DEFECT = auto()
    WAIT = auto()
    STRINGS = auto()
    DEAF = auto()


class OddSession(Session):
    backend = "odd"

    def __init__(self, gate: Path | None = None) -> None:
        """WAIT reads the FIFO `gate`: it goes on when somebody has written there."""
        self._gate = gate
        spec = [TensorSpec("x", "float32", ("n",))], [TensorSpec("y", "float32", ("n",))]
        super().__init__(*spec, SessionOptions())

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        x = tensors["x"]
        asked = int(x[0]) if x.size else 0
        if asked == Odd.WAIT:
            assert self._gate is not None
            self._gate.read_bytes()
        elif asked == Odd.STRINGS:
            return {"y": np.array(["a"], dtype=object)}
        elif asked in tuple(Odd):
            _misbehave(Odd(asked))
        return {"y": x + x}


def _misbehave(how: Odd) -> None:
    match how:
        case Odd.HANG:
            threading.Event().wait()
        case Odd.HANG_WITH_THE_LOCK:
            ctypes.PyDLL(None).pause()
        case Odd.KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        case Odd.CRASH:
            faulthandler._sigsegv()  # type: ignore[attr-defined]
        case Odd.LEAVE:
            print("this goes to standard output", flush=True)
            print("I have had enough", file=sys.stderr, flush=True)
            os._exit(3)
        case Odd.NO_MEMORY:
            raise MemoryError
        case Odd.EAT_MEMORY:
            kept = [bytearray(1 << 24) for _ in range(1 << 16)]
            raise AssertionError(f"{len(kept)} times 16 MiB were to be had")
        case Odd.LOSE_DEVICE:
            raise DeviceLostError("GPU 0 is lost", next_step="replace the process")
        case Odd.DEFECT:
            raise ZeroDivisionError("a defect of ours")
        case Odd.DEAF:
            os.closerange(3, 64)
            threading.Event().wait()


class Total(Session):
    """total' = total + x, y = total'; a wrong x (below 0) is refused after the states were read."""

    backend = "total"

    def __init__(self, gate: Path | None = None) -> None:
        self._gate = gate
        inputs = [TensorSpec("x", "float32", (1,)), TensorSpec("total", "float32", (1,))]
        outputs = [TensorSpec("y", "float32", (1,)), TensorSpec("total_next", "float32", (1,))]
        super().__init__(inputs, outputs, SessionOptions(states=(StatePair("total", "total_next", initial=10.0),)))

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        if tensors["x"][0] == 1000 and self._gate is not None:
            self._gate.read_bytes()
        total = tensors["total"] + tensors["x"]
        return {"y": total, "total_next": total}


def refuse() -> NoReturn:
    raise BundleError("this bundle is for another machine", available=("cpu", "sm75"), next_step="build the right one")


def refuse_oddly() -> NoReturn:
    raise ZeroDivisionError("not one of ours")


def die_loading() -> NoReturn:
    print("the driver said no", file=sys.stderr, flush=True)
    os._exit(7)


def hang_loading() -> NoReturn:
    threading.Event().wait()
    raise AssertionError


def load_once(marker: Path) -> Session:
    """Loads the first time, is refused the second, loads again from the third time on."""
    times = len(marker.read_bytes()) if marker.exists() else 0
    marker.write_bytes(b"." * (times + 1))
    if times == 1:
        refuse()
    return OddSession()


def several_sizes(path: Path) -> Session:
    """Of one graph: for one row, and for up to eight."""
    bounds: dict[str, Bounds] = {"one": {"x": ((1, 1), (4, 4))}, "many": {"x": ((1, 8), (4, 4))}}
    openers = {
        name: partial(open_session, "onnxruntime", path, SessionOptions(threads=1, bounds=limits))
        for name, limits in bounds.items()
    }
    return SelectingSession(bounds, openers)


def fake_plan(folder: Path, *, stateful: bool = False, lost_after: int | None = None) -> Session:
    """A TensorRT session on a fake GPU; with `lost_after` the card is lost after so many runs."""
    folder.mkdir(exist_ok=True)
    machine = Machine(folder / str(os.getpid()))
    machine.folder.mkdir()
    session = machine.counting(in_place=True) if stateful else machine.doubling()
    if lost_after is not None:
        machine.gpu.fail("cudaStreamSynchronize", 700, lost_after)
    return session


def old_plan(folder: Path) -> Session:
    """TensorRT 8.6, which counts in int32: y = x + 1."""
    machine = Machine(folder, "8.6")
    plan = machine.save({"x": ("int32", (2,))}, {"y": Output("x + 1", like="x", dtype="int32")})
    return machine.open(plan)
