"""Runs on a process that may end at any moment: one after the other, each answered exactly once."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from aula.backends.hosting.keeper import Keeper
from aula.backends.hosting.line import Line
from aula.backends.hosting.process import EngineProcess
from aula.backends.hosting.records import Hosting, HostStatistics
from aula.backends.hosting.wire import Failure, Kind, Message, decode
from aula.backends.session import Tensors
from aula.core.clock import Clock
from aula.core.errors import BackendError, DeadlineError, ProcessAwayError, ProcessLostError

_OBITUARY_SECONDS = 0.5
"""How long a lost run's error waits to say how the process ended; a large one needs a while to give its memory back."""


class Runs:
    """For any number of threads: first come, first served. `stateful`: the process keeps states between runs, which
    are lost with it, and in doubt after a run whose answer nobody heard; then nothing runs before `reset`."""

    def __init__(self, keeper: Keeper, line: Line, hosting: Hosting, clock: Clock, *, stateful: bool) -> None:
        self._keeper, self._line, self._hosting, self._clock = keeper, line, hosting, clock
        self._stateful = stateful
        self._home: EngineProcess | None = None  # which process holds states that have moved
        self._doubt = self._reset = False
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._owner = os.getpid()

    def run(self, tensors: Tensors, deadline: float | None, steady: Container[str] = ()) -> dict[str, NDArray[Any]]:
        """Raises DeadlineError, ProcessAwayError, ProcessLostError, and what the engine itself raises."""
        self._count("submitted")
        end = "failed"
        try:
            with self._turn(deadline) as process:
                self._check_states(process)
                self._home = process if self._stateful else None
                answer = self._exchange(process, lambda: self._send(process, tensors, steady), deadline)
                produced = process.produced(answer.body)
            end = "answered"
            return produced
        except ProcessAwayError:
            end = "refused"
            raise
        except ProcessLostError:
            end = "lost"
            raise
        except DeadlineError:
            end = "late"
            raise
        finally:
            self._count(end)

    def precisions(self) -> dict[str, int]:
        with self._turn(None) as process:
            answer = self._exchange(process, lambda: process.send(Kind.PRECISIONS), None)
            return decode(answer.body, dict[str, int])

    def settle(self) -> None:
        with self._turn(None) as process:
            self._exchange(process, lambda: process.send(Kind.SETTLE), None)

    def reset(self) -> None:
        """Before the next run; needs no process, since a new one begins with reset states."""
        self._home, self._doubt, self._reset = None, False, self._stateful

    def statistics(self) -> HostStatistics:
        with self._counting:
            counts = self._counts.copy()
        ends = {name: counts[name] for name in ("answered", "refused", "failed", "lost", "late")}
        return HostStatistics(
            submitted=counts["submitted"],
            **ends,
            in_flight=counts["submitted"] - sum(ends.values()),
            starts=self._keeper.counts["starts"],
            deaths=self._keeper.counts["deaths"],
            hung=self._keeper.counts["hung"],
            shared_bytes=self._keeper.shared_bytes,
        )

    def _send(self, process: EngineProcess, tensors: Tensors, steady: Container[str]) -> None:
        process.send_run(tensors, reset=self._reset, steady=steady)
        self._reset = False

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    @contextmanager
    def _turn(self, deadline: float | None) -> Iterator[EngineProcess]:
        """One's turn in the line, with a process that owes nobody an answer."""
        if os.getpid() != self._owner:
            raise BackendError(
                "this session belongs to the process that opened it, and this is a fork of that",
                next_step="open a session of its own in each process",
            )
        if not self._line.enter(self._left(deadline)):
            raise _late("before the run's turn came")
        try:
            process = self._keeper.process()
            if process.owed is not None:
                self._settle(process, process.owed, deadline)
            self._left(deadline)
            yield process
        finally:
            self._line.leave()

    def _left(self, deadline: float | None) -> float | None:
        """Seconds. Raises DeadlineError where there are none."""
        if deadline is None:
            return None
        left = deadline - self._clock.now()
        if not left > 0:
            raise _late("before the run could start")
        return left

    def _settle(self, process: EngineProcess, owed: float, deadline: float | None) -> None:
        """Wait for the answer to a run that nobody waits for any more; it must come by the moment `owed`."""
        until = owed if deadline is None else min(owed, deadline)
        try:
            answer = process.answer(lambda: until - self._clock.now())
        except TimeoutError:
            if until < owed:
                raise _late("while the engine was busy with a run that came too late") from None
            self._keeper.hung(process)
            answer = None
        if answer is None:
            process.reason = process.reason or "it ended by itself"
            process.buried.wait(_OBITUARY_SECONDS)
            self._keeper.process()  # raises ProcessAwayError
            raise process.lost("before the run could start")
        process.owed = None
        self._note_fatal(process, answer)
        self._keeper.process()

    def _exchange(self, process: EngineProcess, send: Callable[[], None], deadline: float | None) -> Message:
        hang_at = self._clock.now() + self._hosting.hang_s
        until = hang_at if deadline is None else min(hang_at, deadline)
        try:
            send()
        except OSError:
            raise self._lost(process) from None
        except BackendError:
            raise  # there was no memory for the tensors, and nothing was sent
        except BaseException:
            process.end("the run was interrupted while it was sent")
            raise
        try:
            answer = process.answer(lambda: until - self._clock.now())
        except TimeoutError:
            if until < hang_at:
                self._abandon(process, hang_at)
                raise _late("before the engine answered") from None
            self._keeper.hung(process)
            answer = None
        except BaseException:
            self._abandon(process, hang_at)
            raise
        if answer is None:
            raise self._lost(process)
        if answer.kind is Kind.ERROR:
            self._note_fatal(process, answer)
            raise decode(answer.body, Failure).error()
        return answer

    def _abandon(self, process: EngineProcess, hang_at: float) -> None:
        """Its answer will come later, to nobody. The keeper sees to it that it comes at all."""
        self._doubt = self._stateful
        process.owed = hang_at
        self._keeper.ring()

    def _note_fatal(self, process: EngineProcess, answer: Message) -> None:
        if answer.kind is Kind.ERROR and (failure := decode(answer.body, Failure)).fatal:
            process.end(failure.what)

    def _lost(self, process: EngineProcess) -> ProcessLostError:
        process.reason = process.reason or "it ended by itself"
        process.buried.wait(_OBITUARY_SECONDS)
        return process.lost("during the run")

    def _check_states(self, process: EngineProcess) -> None:
        if self._doubt or (self._home is not None and self._home is not process):
            why = "a run moved them whose answer nobody heard" if self._doubt else "they ended with its process"
            raise ProcessLostError(
                f"the states of this session are lost: {why}", next_step="reset() it, and begin anew (the utterance)"
            )


def _late(when: str) -> DeadlineError:
    return DeadlineError(f"the deadline passed {when}", next_step="ask again, or allow more time")
