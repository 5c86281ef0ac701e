"""Our own way to serve an engine: the scheduler, and the engine in a process of its own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.clock import SystemClock
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable, Measured
from aula.scheduling.ladder import Ladder
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import State, Ticket


class Service:
    """Requests are rows; batches form because work waits. For one event loop, which must be running."""

    def __init__(self, session: Session, costs: Measured) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._worker = ThreadPoolExecutor(1)
        clock, table = SystemClock(), CostTable(costs)
        self._route = Route("serve", Ladder(table.engines, clock), table)
        self._scheduler = Scheduler(self._start, [self._route], clock)
        (self._input,) = (spec.name for spec in session.inputs)

    async def ask(self, row: NDArray[Any], tier: str = "question") -> NDArray[Any]:
        answer: asyncio.Future[NDArray[Any]] = self._loop.create_future()

        def done(ticket: Ticket) -> None:
            if ticket.state is State.ANSWERED:
                answer.set_result(ticket.value)
            else:
                answer.set_exception(ticket.error or RuntimeError(f"it was {ticket.state}"))

        self._scheduler.submit(self._route, "class", tier, 1, payload=row, on_done=done)
        return await answer

    def close(self) -> None:
        self._worker.shutdown()

    def _start(self, batch: Batch) -> None:
        rows = np.stack([ticket.payload for ticket in batch.tickets])
        running = self._loop.run_in_executor(self._worker, self._session.run, {self._input: rows})
        running.add_done_callback(lambda ran: self._finish(batch, ran))

    def _finish(self, batch: Batch, ran: "asyncio.Future[dict[str, NDArray[Any]]]") -> None:
        error = ran.exception()
        if error is None:
            (made,) = ran.result().values()
            self._scheduler.finished(batch, list(made))
        else:
            assert isinstance(error, Exception)
            self._scheduler.finished(batch, error=error)
