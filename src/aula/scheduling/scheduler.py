"""Joins the parts: quota, would it be in time, tier, tenant, deadline, rung.

Everything happens inside `submit`, `cancel`, `finished` and `wake`, called from one thread; nothing waits and no timer
runs. `start` is handed a batch, must return at once, and whoever runs the batch calls `finished` when it is done.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import InputError, SettingsError
from aula.scheduling.admission import Quotas, predicted_finish_s
from aula.scheduling.batching import Batch, next_batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.queue import Queue
from aula.scheduling.tickets import Reason, Refusal, State, Ticket

SLOWER = 1.5
"""A rung is blamed for a missed deadline when its batch took that much longer than predicted, not where work waited."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """submitted = answered + refused + failed + cancelled + waiting + running. `late` ones are among the answered."""

    submitted: int
    answered: int
    late: int
    refused: Mapping[str, int]
    failed: int
    cancelled: int
    waiting: int
    running: int
    batches: int
    retried: int
    served_by: Mapping[str, int]
    tier_ms: Mapping[str, float]


class Scheduler:
    def __init__(
        self,
        start: Callable[[Batch], None],
        costs: CostTable,
        clock: Clock,
        *,
        workers: int = 1,
        ladder: Ladder | None = None,
        queue: Queue | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        if workers < 1:
            raise SettingsError(f"{workers} workers cannot serve", next_step="give at least 1")
        self.ladder = ladder or Ladder(costs.engines, clock)
        if unknown := set(self.ladder.names) - set(costs.engines):
            raise SettingsError(
                f"nothing is known of what {sorted(unknown)} costs", available=costs.engines, next_step="measure it"
            )
        self.costs = costs
        self.queue = queue or Queue()
        self._start = start
        self._clock = clock
        self._workers = workers
        self._quotas = quotas or Quotas()
        self._running: dict[Batch, float] = {}
        self._canaries = 0
        self._pumping = False
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._served_by: Counter[str] = Counter()
        self._tier_ms = dict.fromkeys(self.queue.tiers, 0.0)

    def submit(
        self,
        tenant: str,
        tier: str,
        size: int,
        deadline: float | None = None,
        payload: Any = None,
        on_done: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """A ticket that ends exactly once; a refused one has ended already. Impossible requests raise InputError.

        `deadline` is a moment of the clock; None means whenever.
        """
        if deadline is not None and math.isnan(deadline):
            raise InputError("the deadline is not a number", next_step="give a moment of the clock, or none")
        self.queue.tier(tier)
        now = self._clock.now()
        until = math.inf if deadline is None else deadline
        ticket = Ticket(tenant, tier, self.costs.bucket_of(size), until, now, payload, on_done)
        self._counts["submitted"] += 1
        refusal = self._quotas.check(tenant, now) or self._predict(ticket, now)
        if refusal is not None:
            self._refuse(ticket, refusal, now)
            return ticket
        self._quotas.enter(tenant, now)
        self.queue.tiers[tier].push(ticket)
        self._pump()
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a request; False if it had ended. One that runs is not interrupted, but nobody hears of its result."""
        if ticket.state is State.WAITING:
            self._withdraw(ticket)
            self._end(ticket, State.CANCELLED)
        elif ticket.state is State.RUNNING:
            self._end(ticket, State.CANCELLED)
        else:
            return False
        return True

    def finished(self, batch: Batch, values: Sequence[Any] = (), error: Exception | None = None) -> None:
        """A batch came back: one value a ticket, or the error that all of it met.

        A value that is itself an exception is that ticket's alone: its batch-mates are answered.
        """
        if batch not in self._running:
            raise RuntimeError("a batch finished that is not running; was it reported twice?")
        del self._running[batch]
        now = self._clock.now()
        if batch.is_canary:
            self._canaries -= 1
            self.ladder.canary(batch.rung, good=error is None)
            self._pump()
            return
        if error is None and len(values) != len(batch.tickets):
            error = ValueError(f"{batch.rung} gave {len(values)} values for {len(batch.tickets)} requests")
        self._bill(batch, now, learn=error is None)
        if error is None:
            self._answer(batch, values, now)
        else:
            self.ladder.failed(batch.rung)
            self._retry(batch, error, now)
        self._pump()

    def wake(self) -> None:
        """Look again: a canary may be due, or a rung may have changed."""
        self._pump()

    def statistics(self) -> SchedulerStatistics:
        counts = self._counts
        return SchedulerStatistics(
            submitted=counts["submitted"],
            answered=counts["answered"],
            late=counts["late"],
            refused=MappingProxyType(dict(self._refused)),
            failed=counts["failed"],
            cancelled=counts["cancelled"],
            waiting=self.queue.length,
            running=sum(one.state is State.RUNNING for batch in self._running for one in batch.tickets),
            batches=counts["batches"],
            retried=counts["retried"],
            served_by=MappingProxyType(dict(self._served_by)),
            tier_ms=MappingProxyType(dict(self._tier_ms)),
        )

    def _predict(self, ticket: Ticket, now: float) -> Refusal | None:
        """Would it be in time on any rung?"""
        soonest = math.inf
        free_in_s = 0.0
        if len(self._running) >= self._workers:
            free_in_s = max(0.0, min(self._running.values()) - now)
        for name in self.ladder.names:
            if self.ladder.usable(name):
                ticket.unit_ms = self.costs.unit(name, ticket.bucket)
                wait = predicted_finish_s(ticket, self.queue, self.costs, name, self._workers, free_in_s)
                if now + wait <= ticket.deadline:
                    return None
                soonest = min(soonest, wait)
        if soonest == math.inf:
            return self._no_rung(now)
        # As much later as it would be late, and never "at once".
        return Refusal(Reason.PREDICTED_LATE, max(0.001, min(soonest, now + soonest - ticket.deadline)))

    def _no_rung(self, now: float) -> Refusal:
        due = self.ladder.next_canary()
        return Refusal(Reason.NO_RUNG, max(0.001, due - now) if due < math.inf else 1.0)

    def _pump(self) -> None:
        """Give idle workers what is there. A `start` that finishes at once comes back here, and is not nested."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while len(self._running) < self._workers:
                batch = self._canary() or next_batch(self.queue, self.costs, self.ladder, self._clock.now(), self._drop)
                if batch is None:
                    return
                if not batch.is_canary:
                    self._counts["batches"] += 1
                    self.queue.charge(_by_tier(batch, batch.predicted_ms), batch.owed)
                self._running[batch] = batch.started + batch.predicted_ms / 1e3
                try:
                    self._start(batch)
                except Exception as error:
                    if batch in self._running:
                        self.finished(batch, error=error)
        finally:
            self._pumping = False

    def _canary(self) -> Batch | None:
        """One at a time, so that a rung which hangs holds one worker and no more."""
        if self._canaries or (name := self.ladder.due_canary()) is None:
            return None
        self._canaries += 1
        bucket = self.costs.buckets[0]
        return Batch(name, bucket, (), self._clock.now(), self.costs.predict(name, bucket, 1))

    def _drop(self, ticket: Ticket) -> None:
        """It can no longer be in time, or nothing is left to serve it."""
        now = self._clock.now()
        self._withdraw(ticket)
        if ticket.error is not None:
            self._end(ticket, State.FAILED)  # it was tried: a refusal would be untrue
            return
        self._quotas.leave(ticket.tenant)
        gone = self.ladder.choose(ticket.below) is None
        self._refuse(ticket, self._no_rung(now) if gone else Refusal(Reason.PREDICTED_LATE, 0.001), now)

    def _withdraw(self, ticket: Ticket) -> None:
        """Out of the queue before anybody hears of it: whoever hears may submit again at once."""
        ticket.state = State.RUNNING
        self.queue.tiers[ticket.tier].leave(ticket)

    def _bill(self, batch: Batch, now: float, *, learn: bool) -> None:
        """Charge what it truly took, less what was charged when it started; all of a batch pay the same part."""
        took_ms = max(0.0, now - batch.started) * 1e3
        part = took_ms / len(batch.tickets)
        unit = self.costs.unit(batch.rung, batch.bucket)
        for ticket in batch.tickets:
            self.queue.bill(ticket.tenant, part - unit)
            self._quotas.charge(ticket.tenant, part)
            self._tier_ms[ticket.tier] += part
        self.queue.charge(_by_tier(batch, took_ms - batch.predicted_ms), batch.owed)
        if learn:
            self.costs.correct(batch.rung, batch.bucket, len(batch.tickets), took_ms)

    def _answer(self, batch: Batch, values: Sequence[Any], now: float) -> None:
        slow = (now - batch.started) * 1e3 > SLOWER * batch.predicted_ms
        self.ladder.succeeded(batch.rung, missed_deadline=slow and any(now > one.deadline for one in batch.tickets))
        for ticket, value in zip(batch.tickets, values, strict=True):
            if ticket.state is not State.RUNNING:
                continue
            if isinstance(value, Exception):
                ticket.error = value
                self._end(ticket, State.FAILED)
                continue
            ticket.value, ticket.rung = value, batch.rung
            self._served_by[batch.rung] += 1
            self._counts["late"] += now > ticket.deadline
            self._end(ticket, State.ANSWERED)

    def _retry(self, batch: Batch, error: Exception, now: float) -> None:
        """Once, on the next rung, where it can still be in time."""
        below = self.ladder.index(batch.rung) + 1
        for ticket in batch.tickets:
            if ticket.state is not State.RUNNING:
                continue
            again = self.ladder.choose(below)
            first_time = ticket.error is None
            ticket.error = error
            in_time = again and now + self.costs.predict(again, ticket.bucket, 1) / 1e3 <= ticket.deadline
            if not (first_time and in_time):
                self._end(ticket, State.FAILED)
                continue
            self._counts["retried"] += 1
            ticket.below, ticket.state = below, State.WAITING
            self.queue.tiers[ticket.tier].push(ticket)

    def _refuse(self, ticket: Ticket, refusal: Refusal, now: float) -> None:
        ticket.refusal = refusal
        self._refused[str(refusal.reason)] += 1
        ticket.end(State.REFUSED, now)

    def _end(self, ticket: Ticket, state: State) -> None:
        self._counts[str(state)] += 1
        self._quotas.leave(ticket.tenant)
        ticket.end(state, self._clock.now())


def _by_tier(batch: Batch, device_ms: float) -> dict[str, float]:
    """Every tier's part of a batch."""
    part = device_ms / len(batch.tickets)
    return {tier: part * count for tier, count in Counter(ticket.tier for ticket in batch.tickets).items()}
