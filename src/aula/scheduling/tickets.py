"""A request on its way through the scheduler. Its state says on which side of the queue it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aula.core.errors import AulaError, OverloadError
from aula.core.types import Why

if TYPE_CHECKING:
    from aula.scheduling.routes import Route


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    ANSWERED = "answered"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"


IN_FLIGHT = frozenset({State.WAITING, State.RUNNING})


class Reason(StrEnum):
    """Why a request was refused; a label of the metrics, and so never more than these."""

    RATE = "rate"
    CONCURRENCY = "concurrency"
    DEVICE_TIME = "device_time"
    PREDICTED_LATE = "predicted_late"
    NO_RUNG = "no_rung"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not a failure: nothing was tried. `retry_after_s` is the earliest moment that makes sense, from now."""

    reason: Reason
    retry_after_s: float

    def error(self, tenant: str) -> OverloadError:
        return OverloadError(
            f"the request of {tenant!r} was refused ({self.reason})",
            reason=str(self.reason),
            retry_after_s=self.retry_after_s,
            next_step=f"ask again in {max(self.retry_after_s, 0.001):.3g} s",
        )


class Ticket:
    """One request. `on_done` is called once, when the state is final; it must not raise: its batch-mates come next.

    Compared by identity; an object rather than a record because the queue marks it in place, and a cancelled
    ticket is skipped where it lies instead of being dug out of a heap.
    """

    __slots__ = (
        "_on_done", "alone", "below", "bucket", "deadline", "error", "finished", "is_part", "payload", "refusal",
        "route", "rung", "state", "submitted", "tenant", "tier", "unit_ms", "value", "why",
    )  # fmt: skip

    def __init__(
        self,
        route: "Route",
        tenant: str,
        tier: str,
        bucket: int,
        deadline: float,
        submitted: float,
        payload: Any = None,
        on_done: "Callable[[Ticket], None] | None" = None,
        is_part: bool = False,
        alone: bool = False,
    ) -> None:
        self.route = route
        self.tenant = tenant
        self.tier = tier
        self.bucket = bucket
        self.deadline = deadline
        self.submitted = submitted
        self.payload = payload
        self.state = State.WAITING
        self.below = 0
        """Rungs before this index have failed it already."""
        self.unit_ms = 0.0
        """Its part of a full batch, in device milliseconds: what it adds to the backlog."""
        self.is_part = is_part
        """Of a request that was let in already: it waits its turn and is billed, but meets no quota again."""
        self.alone = alone
        """It was in a batch that took its process along: tried again, it shall harm nobody else."""
        self.rung: str | None = None
        self.why = Why.BEST
        self.value: Any = None
        self.error: AulaError | Exception | None = None
        self.refusal: Refusal | None = None
        self.finished: float | None = None
        self._on_done = on_done

    @property
    def lane(self) -> "tuple[Route, int, int]":
        """What it can share a batch with; below 0 for what shares none."""
        return (self.route, self.bucket, ~self.below if self.alone else self.below)

    @property
    def late(self) -> bool:
        return self.finished is not None and self.finished > self.deadline

    def end(self, state: State, now: float) -> None:
        """Make the state final. Ending twice is a defect of the scheduler's, and is said aloud."""
        if self.state not in IN_FLIGHT:
            raise RuntimeError(f"a ticket that was {self.state} cannot become {state}")
        self.state = state
        self.finished = now
        if self._on_done is not None:
            self._on_done(self)
