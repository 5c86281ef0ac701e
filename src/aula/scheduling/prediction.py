"""Would a request be in time, on any rung that may serve it? Else it is refused at once, with when to come back."""

import math

from aula.scheduling.ladder import Ladder
from aula.scheduling.queue import Queue
from aula.scheduling.tickets import Reason, Refusal, Ticket
from aula.scheduling.workers import Workers


def unit_ms(ticket: Ticket) -> float:
    """What it adds to the backlog: its part of a full batch on the best rung that is in order; 0 where none is."""
    best = ticket.route.choose()
    return 0.0 if best is None else ticket.route.costs.unit(best, ticket.bucket)


def predicted_refusal(ticket: Ticket, queue: Queue, workers: Workers, now: float) -> Refusal | None:
    route = ticket.route
    soonest = math.inf
    idle: list[str] = []
    for name in route.ladder.names:
        if route.admits(name):
            worker = route.ladder.worker_of[name]
            free_in_s = workers.free_in_s(worker, now)
            if free_in_s == 0.0 and not queue.tiers[ticket.tier].length:
                idle.append(name)
            wait = predicted_finish_s(ticket, queue, name, workers.capacity[worker], free_in_s)
            if now + wait <= ticket.deadline:
                ticket.unit_ms = route.costs.unit(name, ticket.bucket)
                return None
            soonest = min(soonest, wait)
    if soonest == math.inf:
        return no_rung(route.ladder, now)
    for name in idle:
        route.costs.relax(name, ticket.bucket)
    # As much later as it would be late, and never "at once".
    return Refusal(Reason.PREDICTED_LATE, max(0.001, min(soonest, now + soonest - ticket.deadline)))


def no_rung(ladder: Ladder, now: float) -> Refusal:
    due = ladder.next_canary()
    return Refusal(Reason.NO_RUNG, max(0.001, due - now) if due < math.inf else 1.0)


def predicted_finish_s(ticket: Ticket, queue: Queue, rung: str, workers: int, free_in_s: float) -> float:
    """Seconds from now until the ticket would be answered, if the load stays as it is.

    A tenant waits for the whole tier, or, where others wait with more, only for its own fair part of it: somebody
    inside its share is let in however long a greedy neighbour's queue has become. `free_in_s` is when a worker is.
    """
    costs = ticket.route.costs
    tier = queue.tiers[ticket.tier]
    fair = tier.fair
    weight = fair.weight(ticket.tenant)
    active = fair.active_weight + (0.0 if fair.is_busy(ticket.tenant) else weight)
    own = tier.tenant_backlog_ms.get(ticket.tenant, 0.0) * active / weight
    before_ms = min(tier.backlog_ms, own) / queue.share_now(ticket.tier)
    wait_ms = before_ms / workers
    batch = min(tier.lane_length(ticket.lane) + 1, costs.most(rung, ticket.bucket))
    # While work waits, batches are full, and this one starts behind another.
    if wait_ms > 0:
        batch = costs.most(rung, ticket.bucket)
    return free_in_s + (wait_ms + costs.promise(rung, ticket.bucket, batch)) / 1e3
