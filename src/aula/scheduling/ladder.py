"""Which rung serves. A breaker per rung: down at once, up slowly.

An open breaker is not asked by students. After a while canaries are sent, one at a time; several good ones in a row
close it, and one bad one doubles the while. A process that is gone comes back by itself, and says so: then one
canary is sent at once, and is enough. Deadlines missed and a full memory open a breaker only where a lower rung
can serve: a slow answer is better than none. Failures open the last one too, since it gives no answers.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aula.core.clock import Clock
from aula.core.errors import SettingsError


class Breaker(StrEnum):
    CLOSED = "closed"
    OPEN = "open"


class Cause(StrEnum):
    FAILURES = "failures"
    DEADLINES = "deadlines"
    LOAD = "load"
    HUNG = "hung"
    PROCESS = "process"
    SWAP = "swap"
    MEMORY = "memory"
    CANARIES = "canaries"
    OVERRIDE = "override"


@dataclass(frozen=True, slots=True)
class Policy:
    """`failures` batches in a row, or `misses` of the last `window`, open a breaker; `canaries` in a row close it."""

    failures: int = 3
    misses: int = 10
    window: int = 20
    wait_s: float = 2.0
    longest_wait_s: float = 60.0
    canaries: int = 3
    canary_every_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A breaker that opened or closed, or an override that was set (`rung` None: lifted)."""

    moment: float
    rung: str | None
    state: Breaker
    cause: Cause


class _Rung:
    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.state = Breaker.CLOSED
        self.failures = 0
        self.recent: deque[bool] = deque(maxlen=policy.window)
        self.missed = 0
        self.wait_s = policy.wait_s
        self.canary_at = math.inf
        self.good_canaries = 0
        self.wanted_canaries = policy.canaries
        self.pressed = False

    def seen(self, *, missed: bool) -> None:
        if len(self.recent) == self.recent.maxlen:
            self.missed -= self.recent[0]
        self.recent.append(missed)
        self.missed += missed


class Ladder:
    """Rungs by name, best first. `workers` says where each runs; without it all share one kind of worker."""

    def __init__(
        self,
        rungs: Sequence[str],
        clock: Clock,
        policy: Policy | None = None,
        on_change: Callable[[Change], None] | None = None,
        workers: Mapping[str, str] | None = None,
    ) -> None:
        if not rungs or len(set(rungs)) != len(rungs):
            raise SettingsError(f"rungs must have names of their own: {list(rungs)}", next_step="name each once")
        self.names = tuple(rungs)
        self.changes: deque[Change] = deque(maxlen=256)
        self.worker_of = {name: (workers or {}).get(name, "") for name in rungs}
        self._clock = clock
        self._policy = policy or Policy()
        self._rungs = {name: _Rung(name, self._policy) for name in rungs}
        self._override: str | None = None
        self._on_change = on_change

    def usable(self, name: str) -> bool:
        """An operator's override names the one rung that serves, whatever its breaker says."""
        return name == self._override if self._override is not None else self._rungs[name].state is Breaker.CLOSED

    @property
    def overridden(self) -> str | None:
        return self._override

    def state(self, name: str) -> Breaker:
        return self._rungs[name].state

    def index(self, name: str) -> int:
        return self.names.index(name)

    def override(self, name: str | None) -> None:
        if name is not None and name not in self._rungs:
            raise SettingsError(f"there is no rung {name!r}", available=self.names, next_step="name one of these")
        self._override = name
        self._tell(name, Breaker.CLOSED, Cause.OVERRIDE)

    def succeeded(self, name: str, *, missed_deadline: bool = False) -> None:
        """A batch came back; `missed_deadline` where the rung itself was slower than was promised."""
        rung = self._rungs[name]
        rung.failures = 0
        rung.seen(missed=missed_deadline)
        if rung.missed >= self._policy.misses and self._lower_serves(name):
            self._open(rung, Cause.DEADLINES)

    def failed(self, name: str) -> None:
        rung = self._rungs[name]
        rung.failures += 1
        if rung.failures >= self._policy.failures:
            self._open(rung, Cause.FAILURES)

    def load_failed(self, name: str) -> None:
        self._open(self._rungs[name], Cause.LOAD)

    def hung(self, name: str) -> None:
        """It did not come back. Three such waits would be two too many."""
        self._open(self._rungs[name], Cause.HUNG)

    def lost(self, name: str) -> None:
        """The engine's process is gone: whoever asked it now would ask in vain."""
        self._open(self._rungs[name], Cause.PROCESS)

    def returned(self, name: str) -> None:
        """The process is there again: try it now, whatever the breaker waits for."""
        rung = self._rungs[name]
        if rung.state is Breaker.OPEN and rung.wanted_canaries == 1:
            rung.canary_at, rung.wait_s = self._clock.now(), self._policy.wait_s

    def memory(self, name: str, *, pressed: bool) -> None:
        """The device is nearly full, or no longer; while it is, no canary is sent."""
        rung = self._rungs[name]
        rung.pressed = pressed
        if pressed and self._lower_serves(name):
            self._open(rung, Cause.MEMORY)

    def due_canary(self, idle: Callable[[str], bool] | None = None) -> str | None:
        """The rung that wants one now, and whose worker is idle; asking is taking."""
        now = self._clock.now()
        for rung in self._rungs.values():
            due = rung.state is Breaker.OPEN and rung.canary_at <= now and not rung.pressed
            if due and (idle is None or idle(self.worker_of[rung.name])):
                rung.canary_at = math.inf
                return rung.name
        return None

    def next_canary(self) -> float:
        """The moment from which one will be due."""
        open_rungs = (rung for rung in self._rungs.values() if rung.state is Breaker.OPEN and not rung.pressed)
        return min((rung.canary_at for rung in open_rungs), default=math.inf)

    def canary(self, name: str, *, good: bool) -> None:
        rung, now = self._rungs[name], self._clock.now()
        if rung.state is Breaker.CLOSED:
            return
        if not good:
            rung.good_canaries = 0
            rung.wait_s = min(2 * rung.wait_s, self._policy.longest_wait_s)
            rung.canary_at = now + rung.wait_s
            return
        rung.good_canaries += 1
        rung.canary_at = now + self._policy.canary_every_s
        if rung.good_canaries >= rung.wanted_canaries:
            rung.state, rung.canary_at = Breaker.CLOSED, math.inf
            rung.wait_s = self._policy.wait_s
            self._tell(name, Breaker.CLOSED, Cause.CANARIES)

    def swapped(self, name: str) -> None:
        """Another model has taken the rung's place, and was tried: what the old one did is not held against it."""
        was = self._rungs[name].state
        self._rungs[name] = _Rung(name, self._policy)
        if was is Breaker.OPEN:
            self._tell(name, Breaker.CLOSED, Cause.SWAP)

    def _lower_serves(self, name: str) -> bool:
        return any(self._rungs[lower].state is Breaker.CLOSED for lower in self.names[self.index(name) + 1 :])

    def _open(self, rung: _Rung, cause: Cause) -> None:
        if rung.state is Breaker.OPEN:
            return
        rung.state = Breaker.OPEN
        rung.failures = rung.good_canaries = rung.missed = 0
        rung.wanted_canaries = 1 if cause is Cause.PROCESS else self._policy.canaries
        rung.recent.clear()
        rung.canary_at = self._clock.now() + rung.wait_s
        self._tell(rung.name, Breaker.OPEN, cause)

    def _tell(self, name: str | None, state: Breaker, cause: Cause) -> None:
        change = Change(self._clock.now(), name, state, cause)
        self.changes.append(change)
        if self._on_change is not None:
            self._on_change(change)
