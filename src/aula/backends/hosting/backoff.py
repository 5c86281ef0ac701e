"""When a process that died is started anew: at once where it had been whole for a while, else later and later."""

from aula.backends.hosting.records import Hosting
from aula.core.clock import Clock


class Backoff:
    """`moment` is when the next start is due."""

    def __init__(self, clock: Clock, hosting: Hosting) -> None:
        self._clock = clock
        self._hosting = hosting
        self._ready_at: float | None = None
        self._deaths = 0
        self.moment = clock.now()

    def ready(self) -> None:
        self._ready_at = self._clock.now()

    def died(self) -> None:
        """After `ready`, or without it where the process died while it loaded."""
        now = self._clock.now()
        if self._ready_at is not None and now - self._ready_at >= self._hosting.settled_s:
            self._deaths = 0
        self._ready_at = None
        self.moment = now + self._wait(self._deaths)
        self._deaths += 1

    def _wait(self, deaths: int) -> float:
        if not deaths:
            return 0.0
        # Doubling past the cap would overflow in the end.
        doublings = min(deaths - 1, 60)
        return float(min(self._hosting.wait_s * 2**doublings, self._hosting.longest_wait_s))
