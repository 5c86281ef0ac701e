"""What an idle worker takes: whoever is next, and those who can share the batch. No timer runs.

Batches form because work waits. Under overload the tickets that come up are those with the least time left; were each
batch made small enough for them, the device would do less and less. So while more waits than one batch holds, batches
are full, and a ticket that has no time left for a full one is dropped (Nexus, SOSP'19: drop by batch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aula.core.types import Why
from aula.scheduling.queue import LaneKey, Queue, Runnable, TierQueue
from aula.scheduling.routes import Route
from aula.scheduling.tickets import State, Ticket


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tickets that run together on one rung; none at all is a canary, which the owner runs on an input of its own."""

    route: Route
    rung: str
    bucket: int
    tickets: tuple[Ticket, ...]
    started: float
    predicted_ms: float
    unit_ms: float = 0.0
    """What each ticket was billed when it started."""
    owed: str | None = None
    """The tier that it was owed to, and that pays for it; None where it was served out of what is left over."""

    @property
    def is_canary(self) -> bool:
        return not self.tickets

    @property
    def worker(self) -> str:
        return self.route.ladder.worker_of[self.rung]


class Rooms(Protocol):
    """Whether a worker is idle, and in how many seconds one is."""

    def idle(self, name: str) -> bool: ...

    def free_in_s(self, name: str, now: float) -> float: ...


def next_batch(queue: Queue, rooms: Rooms, now: float, drop: Callable[[Ticket], None], *, shared: bool) -> Batch | None:
    """Take the next batch out of the queue, if any; `drop` is called for tickets that can no longer be in time.

    `shared`: all rungs run on the same workers, of which one is idle. Else a ticket comes up only where the worker of
    its rung is idle; one that has no time to wait for its best rung goes to a lower one.
    """

    def rung_of(ticket: Ticket) -> str | None:
        route, bucket = ticket.route, ticket.bucket
        slack_ms = (ticket.deadline - now) * 1e3

        def fits(name: str) -> bool:
            waits_ms = 0.0 if shared else 1e3 * rooms.free_in_s(route.ladder.worker_of[name], now)
            return waits_ms + route.costs.promise(name, bucket, 1) <= slack_ms

        return route.choose(ticket.below, fits)

    def can_go(ticket: Ticket) -> bool:
        rung = rung_of(ticket)
        return rung is None or rooms.idle(ticket.route.ladder.worker_of[rung])

    runnable: Runnable | None = None if shared else can_go
    while (turn := queue.choose(runnable)) is not None:
        tier, is_spare = turn
        first = tier.next(runnable)
        if first is None:
            raise RuntimeError(f"tier {tier.name} counts {tier.length} tickets and holds none")
        rung = rung_of(first)
        if rung is None:
            drop(first)
            continue
        taken = _fill(queue, tier, first.lane, rung, now, drop)
        if taken:
            costs, bucket = first.route.costs, first.bucket
            predicted, unit = costs.predict(rung, bucket, len(taken)), costs.unit(rung, bucket)
            owed = None if is_spare else tier.name
            return Batch(first.route, rung, bucket, tuple(taken), now, predicted, unit, owed)
    return None


def _fill(
    queue: Queue, tier: TierQueue, key: LaneKey, rung: str, now: float, drop: Callable[[Ticket], None]
) -> list[Ticket]:
    """Its own tier first, then others whose work fits the same batch: their places would be empty else."""
    route, bucket, below = key
    costs = route.costs
    most = 1 if below < 0 else costs.most(rung, bucket)
    others = [other for other in queue.tiers.values() if other is not tier]
    unit = costs.unit(rung, bucket)
    taken: list[Ticket] = []
    earliest = float("inf")
    for source in (tier, *others):
        while len(taken) < most and (ticket := source.head(key)) is not None:
            crowded = len(taken) + source.lane_length(key) > most
            batch = most if crowded and source is tier else len(taken) + 1
            ends = now + costs.promise(rung, bucket, batch) / 1e3
            if ends > ticket.deadline and (source is tier or now >= ticket.deadline):
                if taken and not crowded and now + costs.promise(rung, bucket, 1) / 1e3 <= ticket.deadline:
                    return taken  # it has time for a small batch, which another worker may take now
                drop(ticket)
                continue
            if ends > min(earliest, ticket.deadline):
                break
            ticket.state = State.RUNNING
            ticket.why = _why(ticket, rung)
            source.fair.chosen(ticket.tenant)
            source.leave(ticket)
            queue.bill(ticket.tenant, unit)
            earliest = min(earliest, ticket.deadline)
            taken.append(ticket)
    return taken


def _why(ticket: Ticket, rung: str) -> Why:
    """Why not the best rung of its ladder, where it is not."""
    ladder, only = ticket.route.ladder, ticket.route.only
    best = ladder.names[0]
    if rung == best:
        return Why.BEST
    if ladder.overridden is not None:
        return Why.OVERRIDE
    if only is not None and best not in only:
        return Why.LANGUAGE
    if ticket.error is not None:
        return Why.RETRIED
    return Why.TIME if ladder.usable(best) else Why.OUT_OF_ORDER
