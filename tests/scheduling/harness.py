"""A scheduler whose batches end when the test says so, and the books that its clients keep."""

from collections import Counter

from aula.core.clock import FakeClock
from aula.scheduling.admission import Quotas
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.queue import Queue
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import State, Ticket

COSTS = {
    "gpu": {1: {1: 10.0, 4: 16.0}, 8: {1: 20.0, 4: 40.0}},
    "cpu": {1: {1: 50.0, 4: 160.0}, 8: {1: 90.0, 4: 300.0}},
}
LONGEST_MS = 40.0
"""A full batch of the larger bucket, on the GPU."""


class House:
    def __init__(self, workers: int = 1, quotas: Quotas | None = None, queue: Queue | None = None) -> None:
        self.clock = FakeClock()
        self.costs = CostTable(COSTS)
        self.ladder = Ladder(("gpu", "cpu"), self.clock)
        self.route = Route("speech", self.ladder, self.costs)
        self.running: list[Batch] = []
        self.workers = workers
        self.seen: Counter[State] = Counter()
        self.tickets: list[Ticket] = []
        self.scheduler = Scheduler(self._start, (self.route,), self.clock, workers=workers, quotas=quotas, queue=queue)

    def submit(self, tenant: str = "a", tier: str = "question", size: int = 1, within: float | None = None) -> Ticket:
        deadline = None if within is None else self.clock.now() + within
        ticket = self.scheduler.submit(self.route, tenant, tier, size, deadline, on_done=self._done)
        self.tickets.append(ticket)
        return ticket

    def end(self, which: int = 0, error: Exception | None = None, part: float = 1.0) -> Batch:
        """The batch ends, after `part` of what was predicted, or at once if that is past."""
        batch = self.running.pop(which)
        until = batch.started + part * batch.predicted_ms / 1e3
        self.clock.advance(max(0.0, until - self.clock.now()))
        self.scheduler.finished(batch, [None] * len(batch.tickets), error)
        return batch

    def _start(self, batch: Batch) -> None:
        for ticket in batch.tickets:
            assert self.clock.now() < ticket.deadline, "started after its deadline"
            assert ticket.state is State.RUNNING
            assert not ticket.alone or len(batch.tickets) == 1, "what a process may have died of shares no batch"
        self.running.append(batch)

    def _done(self, ticket: Ticket) -> None:
        self.seen[ticket.state] += 1
