"""What an idle worker takes: whoever is next, and those who can share the batch. No timer runs.

Batches form because work waits. Under overload the tickets that come up are those with the least time left; were each
batch made small enough for them, the device would do less and less. So while more waits than one batch holds, batches
are full, and a ticket that has no time left for a full one is dropped (Nexus, SOSP'19: drop by batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.queue import LaneKey, Queue, TierQueue
from aula.scheduling.tickets import State, Ticket


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tickets that run together on one rung; none at all is a canary, which the owner runs on an input of its own."""

    rung: str
    bucket: int
    tickets: tuple[Ticket, ...]
    started: float
    predicted_ms: float
    owed: str | None = None
    """The tier that it was owed to, and that pays for it; None where it was served out of what is left over."""

    @property
    def is_canary(self) -> bool:
        return not self.tickets


def next_batch(
    queue: Queue, costs: CostTable, ladder: Ladder, now: float, drop: Callable[[Ticket], None]
) -> Batch | None:
    """Take the next batch out of the queue, if any; `drop` is called for tickets that can no longer be in time."""
    while (turn := queue.choose()) is not None:
        tier, is_spare = turn
        first = tier.next()
        if first is None:
            raise RuntimeError(f"tier {tier.name} counts {tier.length} tickets and holds none")
        key = (first.bucket, first.below)
        slack_ms = (first.deadline - now) * 1e3
        rung = ladder.choose(first.below, lambda name: costs.promise(name, key[0], 1) <= slack_ms)  # noqa: B023
        if rung is None:
            drop(first)
            continue
        taken = _fill(queue, tier, key, rung, costs, now, drop)
        if taken:
            predicted = costs.predict(rung, key[0], len(taken))
            return Batch(rung, key[0], tuple(taken), now, predicted, None if is_spare else tier.name)
    return None


def _fill(
    queue: Queue, tier: TierQueue, key: LaneKey, rung: str, costs: CostTable, now: float, drop: Callable[[Ticket], None]
) -> list[Ticket]:
    """Its own tier first, then others whose work fits the same batch: their places would be empty else."""
    bucket = key[0]
    most = costs.most(rung, bucket)
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
            source.fair.chosen(ticket.tenant)
            source.leave(ticket)
            queue.bill(ticket.tenant, unit)
            earliest = min(earliest, ticket.deadline)
            taken.append(ticket)
    return taken
