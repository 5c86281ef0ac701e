"""Any sequence of fates: each run ends once, in its own answer or a typed error, and states are never silently new."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Container
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.backends.hosting.keeper import Keeper
from aula.backends.hosting.line import Line
from aula.backends.hosting.process import EngineProcess
from aula.backends.hosting.records import Hosting
from aula.backends.hosting.runs import Runs
from aula.backends.hosting.wire import Failure, Kind, Message, encode
from aula.backends.session import Tensors
from aula.core.clock import FakeClock
from aula.core.errors import (
    AulaError,
    BackendError,
    DeadlineError,
    DeviceLostError,
    ProcessAwayError,
    ProcessLostError,
)

FATES = ("fine", "refused", "fatal", "late", "stuck", "hangs", "dies", "gone", "no memory", "interrupted", "reset")


class Process(EngineProcess):
    """An engine that gives back what it is sent, with states the sum of it all, without a process; `fate` says what
    becomes of the next run."""

    def __init__(self, *, stateful: bool) -> None:
        self.stateful = stateful
        self.reason, self.hung, self.pid = "", False, 1
        self.owed, self.obituary = None, None
        self.buried = threading.Event()
        self.buried.set()
        self.fate = "fine"
        self.total = 0.0
        self._serial = 0
        self._answers: deque[Message] = deque()

    def send_run(self, tensors: Tensors, *, reset: bool, steady: Container[str] = ()) -> None:
        if self.fate == "no memory":
            raise BackendError("no memory", next_step="send less")
        if self.fate == "gone":
            raise BrokenPipeError
        self._serial += 1
        if reset or not self.stateful:
            self.total = 0.0
        if self.fate in ("refused", "fatal"):
            error = DeviceLostError("lost", next_step="x") if self.fate == "fatal" else BackendError("no", next_step="")
            failure = Failure.of(error, fatal=self.fate == "fatal")
            self._answers.append(Message(self._serial, Kind.ERROR, encode(failure)))
            return
        self.total += float(tensors["x"][0])
        if self.fate not in ("stuck", "hangs", "dies"):
            self._answers.append(Message(self._serial, Kind.PRODUCED, encode(self.total)))

    def answer(self, left: Callable[[], float]) -> Message | None:
        if self.fate == "interrupted":
            self.fate = "fine"
            raise KeyboardInterrupt
        if self.fate == "late":
            self.fate = "fine"
            raise TimeoutError
        if self.fate in ("stuck", "hangs"):
            if self.reason:
                return None
            raise TimeoutError
        if self.fate == "dies" or self.reason:
            return None
        while (message := self._answers.popleft()).serial != self._serial:
            pass
        return message

    def produced(self, body: bytes) -> dict[str, NDArray[Any]]:
        import msgspec

        return {"y": np.array([msgspec.msgpack.decode(body)])}

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason


class Home:
    """A keeper that is away once after each death, then has a new process."""

    def __init__(self, *, stateful: bool) -> None:
        self.stateful = stateful
        self.current = Process(stateful=stateful)
        self.counts: Counter[str] = Counter()
        self.shared_bytes = 0
        self.rings = 0
        self._away = False

    def process(self) -> Process:
        if self.current.reason:
            self._away = not self._away
            if self._away:
                raise ProcessAwayError("away", next_step="wait", retry_after_s=0.1)
            self.current = Process(stateful=self.stateful)
        return self.current

    def hung(self, process: Process) -> None:
        process.hung = True
        process.end("hung")

    def ring(self) -> None:
        self.rings += 1


EXPECTED: dict[str, tuple[type[BaseException], ...]] = {
    "fine": (),
    "refused": (BackendError,),
    "fatal": (DeviceLostError,),
    "late": (DeadlineError,),
    "stuck": (DeadlineError,),
    "hangs": (ProcessLostError,),
    "dies": (ProcessLostError,),
    "gone": (ProcessLostError,),
    "no memory": (BackendError,),
    "interrupted": (KeyboardInterrupt,),
}


@pytest.mark.parametrize("stateful", [False, True])
@given(fates=st.lists(st.sampled_from(FATES), max_size=30))
def test_every_run_ends_once_as_it_must(stateful: bool, fates: list[str]) -> None:
    clock, home = FakeClock(), Home(stateful=stateful)
    runs = Runs(cast(Keeper, home), Line(), Hosting(), clock, stateful=stateful)
    seen: Counter[str] = Counter()
    unexpected: list[str] = []
    total: float | None = 0.0  # None: nobody knows it, and nobody may be told one
    for number, fate in enumerate(fates, start=1):
        if fate == "reset":
            runs.reset()
            total = 0.0
            continue
        process = home.current
        if not process.reason and process.owed is None:
            process.fate = fate
        timed = fate in ("late", "stuck")
        seen["submitted"] += 1
        try:
            made = runs.run({"x": np.array([number])}, clock.now() + 1.0 if timed else None)["y"][0]
        except ProcessAwayError:
            seen["refused"] += 1
        except ProcessLostError as error:
            seen["lost"] += 1
            if "states of this session are lost" in str(error):
                assert stateful
                assert total is None, "nothing had happened to them"
            else:
                total = None
        except DeadlineError:
            seen["late"] += 1
            total = None
        except (AulaError, KeyboardInterrupt) as error:
            seen["failed"] += 1
            unexpected += [] if isinstance(error, EXPECTED[fate]) else [repr(error)]
            if isinstance(error, DeviceLostError | KeyboardInterrupt):
                total = None
        else:
            seen["answered"] += 1
            if stateful:
                assert total is not None, "states were lost, and the run went on in silence"
                total += number
                assert made == total
            else:
                assert made == number
        assert not unexpected
        statistics = runs.statistics()
        assert {name: getattr(statistics, name) for name in seen} == seen
        assert statistics.in_flight == 0


@pytest.mark.parametrize("fate", sorted(EXPECTED))
def test_each_fate_alone(fate: str) -> None:
    clock, home = FakeClock(), Home(stateful=False)
    runs = Runs(cast(Keeper, home), Line(), Hosting(), clock, stateful=False)
    home.current.fate = fate
    deadline = clock.now() + 1.0 if fate in ("late", "stuck") else None
    if not EXPECTED[fate]:
        assert runs.run({"x": np.array([5])}, deadline)["y"] == 5
        return
    with pytest.raises(EXPECTED[fate]) as caught:
        runs.run({"x": np.array([5])}, deadline)
    assert type(caught.value) is EXPECTED[fate][0] or isinstance(caught.value, ProcessLostError)
    assert home.rings == (fate in ("late", "stuck", "interrupted")), "the keeper minds what is owed"
