"""Joins the parts: quota, would it be in time, tier, tenant, deadline, rung.

Everything happens inside `submit`, `cancel`, `finished` and `wake`, called from one thread; nothing waits and no timer
runs. `start` is handed a batch, must return at once, and whoever runs the batch calls `finished` when it is done.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import EngineError, InputError, ProcessLostError
from aula.scheduling.admission import Quotas
from aula.scheduling.batching import Batch, next_batch
from aula.scheduling.prediction import no_rung, predicted_refusal, unit_ms
from aula.scheduling.queue import Queue
from aula.scheduling.routes import Route
from aula.scheduling.statistics import SchedulerStatistics
from aula.scheduling.tickets import Reason, Refusal, State, Ticket
from aula.scheduling.workers import Workers

SLOWER = 1.5
"""A rung is blamed for a missed deadline when its batch took that much longer than predicted, not where work waited."""


class Scheduler:
    """`canaries` are routes, one for each ladder that is to be looked after; any route through one of these ladders
    may be submitted to. `workers` counts them by name, as the ladders name them."""

    def __init__(
        self,
        start: Callable[[Batch], None],
        canaries: Sequence[Route],
        clock: Clock,
        *,
        workers: int | Mapping[str, int] = 1,
        queue: Queue | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self.queue = queue or Queue()
        self._routes = tuple(canaries)
        self._start = start
        self._clock = clock
        self.workers = Workers(workers)
        self._shared = len(self.workers.capacity) == 1
        self._quotas = quotas or Quotas()
        self._canaries = 0
        self._pumping = False
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._served_by: Counter[str] = Counter()
        self._tier_ms = dict.fromkeys(self.queue.tiers, 0.0)

    def submit(
        self,
        route: Route,
        tenant: str,
        tier: str,
        size: int,
        deadline: float | None = None,
        payload: Any = None,
        on_done: Callable[[Ticket], None] | None = None,
        *,
        is_part: bool = False,
        alone: bool = False,
    ) -> Ticket:
        """A ticket that ends exactly once; a refused one has ended already. Impossible requests raise InputError.

        `deadline` is a moment of the clock; None means whenever. `is_part`: it belongs to a request that was let in
        (a stream's next chunk), so that it meets neither quota nor prediction again. `alone`: it shares no batch.
        """
        if deadline is not None and math.isnan(deadline):
            raise InputError("the deadline is not a number", next_step="give a moment of the clock, or none")
        self.queue.tier(tier)
        now = self._clock.now()
        until = math.inf if deadline is None else deadline
        ticket = Ticket(route, tenant, tier, route.costs.bucket_of(size), until, now, payload, on_done, is_part, alone)
        self._counts["submitted"] += 1
        ticket.unit_ms = unit_ms(ticket)
        if not is_part:
            refusal = self._quotas.check(tenant, now) or predicted_refusal(ticket, self.queue, self.workers, now)
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

    def expire(self, ticket: Ticket) -> None:
        """Its deadline has passed: one that waits is told now, and not when a worker comes to it."""
        if ticket.state is State.WAITING:
            self._drop(ticket)

    def finished(
        self,
        batch: Batch,
        values: Sequence[Any] = (),
        error: Exception | None = None,
        took_ms: float | None = None,
    ) -> None:
        """A batch came back: one value a ticket, or the error that all of it met.

        A value that is itself an exception is that ticket's alone: its batch-mates are answered. An EngineError among
        them is the rung's fault all the same, and is tried on the next. `took_ms` is what the device spent, where the
        owner knows better than the clock between start and end.
        """
        self._ends(batch)
        now = self._clock.now()
        if batch.is_canary:
            batch.route.ladder.canary(batch.rung, good=error is None)
            self._pump()
            return
        if error is None and len(values) != len(batch.tickets):
            error = EngineError(
                f"{batch.rung} gave {len(values)} values for {len(batch.tickets)} requests",
                next_step="run: aula doctor",
            )
        spent_ms = max(0.0, now - batch.started) * 1e3 if took_ms is None else max(0.0, took_ms)
        self._bill(batch, spent_ms, learn=error is None)
        if error is None:
            self._answer(batch, values, spent_ms, now)
        else:
            batch.route.ladder.failed(batch.rung)
            self._retry(batch, batch.tickets, error, now)
        self._pump()

    def not_loaded(self, batch: Batch) -> None:
        """The rung could not be loaded: nothing was tried, nobody is billed, and the next rung serves."""
        self._ends(batch)
        ladder = batch.route.ladder
        if batch.is_canary:
            ladder.canary(batch.rung, good=False)
        else:
            ladder.load_failed(batch.rung)
            self._pay(batch, 0.0)
        for ticket in batch.tickets:
            if ticket.state is State.RUNNING:
                ticket.below, ticket.state = ladder.index(batch.rung) + 1, State.WAITING
                self.queue.tiers[ticket.tier].push(ticket)
        self._pump()

    def give_up(self, batch: Batch, error: Exception) -> None:
        """The rung could not be loaded for a reason that somebody can mend: said at once, hidden by no other rung."""
        self._ends(batch)
        if batch.is_canary:
            batch.route.ladder.canary(batch.rung, good=False)
        else:
            self._pay(batch, 0.0)
        for ticket in batch.tickets:
            if ticket.state is State.RUNNING:
                ticket.error = error
                self._end(ticket, State.FAILED)
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
            running=sum(one.state is State.RUNNING for batch in self.workers.batches() for one in batch.tickets),
            batches=counts["batches"],
            retried=counts["retried"],
            served_by=MappingProxyType(dict(self._served_by)),
            tier_ms=MappingProxyType(dict(self._tier_ms)),
        )

    def _pump(self) -> None:
        """Give idle workers what is there. A `start` that finishes at once comes back here, and is not nested."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self.workers.some_idle:
                now = self._clock.now()
                batch = self._canary(now) or next_batch(self.queue, self.workers, now, self._drop, shared=self._shared)
                if batch is None:
                    return
                if not batch.is_canary:
                    self._counts["batches"] += 1
                    self.queue.charge(_by_tier(batch, batch.predicted_ms), batch.owed)
                self.workers.start(batch)
                try:
                    self._start(batch)
                except Exception as error:
                    if self.workers.runs(batch):
                        self.finished(batch, error=error)
        finally:
            self._pumping = False

    def _canary(self, now: float) -> Batch | None:
        """One at a time, so that a rung which hangs holds one worker and no more."""
        if self._canaries:
            return None
        for route in self._routes:
            if (name := route.ladder.due_canary(self.workers.idle)) is not None:
                self._canaries += 1
                bucket = route.costs.buckets[0]
                return Batch(route, name, bucket, (), now, route.costs.predict(name, bucket, 1))
        return None

    def _drop(self, ticket: Ticket) -> None:
        """It can no longer be in time, or nothing is left to serve it."""
        now = self._clock.now()
        self._withdraw(ticket)
        if ticket.error is not None:
            self._end(ticket, State.FAILED)  # it was tried: a refusal would be untrue
            return
        self._leave(ticket)
        gone = ticket.route.choose(ticket.below) is None
        refusal = no_rung(ticket.route.ladder, now) if gone else Refusal(Reason.PREDICTED_LATE, 0.001)
        self._refuse(ticket, refusal, now)

    def _withdraw(self, ticket: Ticket) -> None:
        """Out of the queue before anybody hears of it: whoever hears may submit again at once."""
        ticket.state = State.RUNNING
        self.queue.tiers[ticket.tier].leave(ticket)

    def _ends(self, batch: Batch) -> None:
        if not self.workers.end(batch):
            raise RuntimeError("a batch finished that is not running; was it reported twice?")
        self._canaries -= batch.is_canary

    def _bill(self, batch: Batch, took_ms: float, *, learn: bool) -> None:
        self._pay(batch, took_ms)
        for ticket in batch.tickets:
            self._quotas.charge(ticket.tenant, took_ms / len(batch.tickets))
        if learn:
            batch.route.costs.correct(batch.rung, batch.bucket, len(batch.tickets), took_ms)

    def _pay(self, batch: Batch, took_ms: float) -> None:
        """Charge what it truly took, less what was charged when it started; all of a batch pay the same part."""
        part = took_ms / len(batch.tickets)
        for ticket in batch.tickets:
            self.queue.bill(ticket.tenant, part - batch.unit_ms)
            self._tier_ms[ticket.tier] += part
        self.queue.charge(_by_tier(batch, took_ms - batch.predicted_ms), batch.owed)

    def _answer(self, batch: Batch, values: Sequence[Any], took_ms: float, now: float) -> None:
        ladder = batch.route.ladder
        broken = [value for value in values if isinstance(value, EngineError)]
        if broken:
            ladder.failed(batch.rung)
        else:
            slow = took_ms > SLOWER * batch.predicted_ms
            ladder.succeeded(batch.rung, missed_deadline=slow and any(now > one.deadline for one in batch.tickets))
        for ticket, value in zip(batch.tickets, values, strict=True):
            if ticket.state is not State.RUNNING:
                continue
            if isinstance(value, EngineError):
                self._retry(batch, (ticket,), value, now)
                continue
            if isinstance(value, Exception):
                ticket.error = value
                self._end(ticket, State.FAILED)
                continue
            ticket.value, ticket.rung = value, batch.rung
            self._served_by[batch.rung] += 1
            self._counts["late"] += now > ticket.deadline
            self._end(ticket, State.ANSWERED)

    def _retry(self, batch: Batch, tickets: Sequence[Ticket], error: Exception, now: float) -> None:
        """Once, on the next rung, where it can still be in time."""
        route = batch.route
        below = route.ladder.index(batch.rung) + 1
        for ticket in tickets:
            if ticket.state is not State.RUNNING:
                continue
            again = route.choose(below)
            first_time = ticket.error is None
            ticket.error = error
            ticket.alone = isinstance(error, ProcessLostError)
            in_time = again and now + route.costs.predict(again, ticket.bucket, 1) / 1e3 <= ticket.deadline
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
        self._leave(ticket)
        ticket.end(state, self._clock.now())

    def _leave(self, ticket: Ticket) -> None:
        if not ticket.is_part:
            self._quotas.leave(ticket.tenant)


def _by_tier(batch: Batch, device_ms: float) -> dict[str, float]:
    """Every tier's part of a batch."""
    part = device_ms / len(batch.tickets)
    return {tier: part * count for tier, count in Counter(ticket.tier for ticket in batch.tickets).items()}
