"""Rungs that share workers, and the one scheduler before them. Only the event loop's thread calls the scheduler.

A batch goes to its rung's thread, which loads the model if it must, and comes back as a call in the loop. Nothing
waits for a timer: the alarm guards (a hang, a deadline long past) and sends canaries.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import AulaError, BackendError, EngineError, SettingsError, StorageError
from aula.core.telemetry import BATCH_SIZE, DEVICE_SECONDS, LATE, LOADS, SERVED, TASK_SECONDS, Telemetry
from aula.core.types import Capability, Context
from aula.scheduling.admission import Quotas
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Change, Ladder
from aula.scheduling.queue import Queue
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import IN_FLIGHT, State, Ticket
from aula.serving.alarm import Alarm
from aula.serving.costs import Measured, guess
from aula.serving.places import Place, Unloadable
from aula.serving.rules import Rules
from aula.serving.tasks import TASKS, Task, attempt, canary
from aula.serving.threads import WorkerThread, tell
from aula.serving.usage import Usage

GRACE_S = 1.0
"""Late answers are still given so long after the deadline; then the caller is told, and the work is left behind."""
HUNG_S = 60.0
"""A run that takes so long, and HUNG_TIMES what was expected, will not come back. Adapting a recogniser to a course
takes seconds; loads and builds may take minutes, and are not counted."""
HUNG_TIMES = 20.0


@dataclass(slots=True, eq=False)
class Job:
    """A ticket's payload: what to run, and the place that holds its stream, if one does."""

    payload: Any
    place: Place | None = None


@dataclass(slots=True, eq=False)
class _Came:
    """What a batch came to, told by the thread."""

    values: list[Any] = field(default_factory=list)
    error: Exception | None = None
    unloadable: AulaError | None = None
    to_mend: AulaError | None = None
    took_ms: float | None = None


class Group:
    def __init__(
        self,
        places: Sequence[Place],
        clock: Clock,
        alarm: Alarm,
        quotas: Quotas,
        rules: Rules,
        telemetry: Telemetry,
        usage: Usage,
        on_change: Callable[[Capability, Change], None],
    ) -> None:
        self.places = {(place.capability, place.name): place for place in places}
        self._clock = clock
        self._alarm = alarm
        self._armed = math.inf
        self._telemetry = telemetry
        self._usage = usage
        self._tasks: dict[Route, Task | None] = {}
        self._routes: dict[tuple[Task, frozenset[str] | None, bool], Route] = {}
        self._costs: dict[tuple[Capability, Task], CostTable] = {}
        self.ladders: dict[Capability, Ladder] = {}
        canaries = []
        for capability in dict.fromkeys(place.capability for place in places):
            own = [place for place in places if place.capability is capability]
            names = [place.name for place in own]
            ladder = Ladder(
                names,
                clock,
                rules.policy,
                partial(on_change, capability),
                {place.name: place.rung.worker for place in own},
            )
            self.ladders[capability] = ladder
            for task in TASKS[capability]:
                self._costs[capability, task] = CostTable({name: guess(task).table for name in names})
                for name in names:
                    self._learn(capability, name, {task: guess(task)})
            route = Route(f"{capability}.canary", ladder, CostTable({name: {1: {1: 1.0}} for name in names}))
            self._tasks[route] = None
            canaries.append(route)
        workers = dict.fromkeys((place.rung.worker for place in places), 1)
        queue = Queue(rules.shares, rules.weights)
        self.scheduler = Scheduler(self._start, canaries, clock, workers=workers, queue=queue, quotas=quotas)

    def route(self, task: Task, capability: Capability, only: frozenset[str] | None, *, pinned: bool = False) -> Route:
        """Those who share a route share batches, whatever language they speak."""
        ladder = self.ladders[capability]
        if only is not None and only >= set(ladder.names):
            only = None
        key = (task, only, pinned)
        if key not in self._routes:
            route = Route(task.name, ladder, self._costs[capability, task], only, pinned)
            self._routes[key] = route
            self._tasks[route] = task
        return self._routes[key]

    async def serve(
        self, route: Route, work: Sequence[tuple[int, Any]], context: Context, place: Place | None = None
    ) -> list[Ticket]:
        """One ticket for each size and payload, all of one request: the first meets quotas and prediction, unless a
        `place` says that a stream was let in before. Returns when all are answered, or one is not."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tickets: list[Ticket] = []
        left = len(work)

        def ended(ticket: Ticket) -> None:
            nonlocal left
            left -= 1
            if (not left or ticket.state is not State.ANSWERED) and not done.done():
                done.set_result(None)

        bell = None
        try:
            for number, (size, payload) in enumerate(work):
                is_part = place is not None or number > 0
                ticket = self.scheduler.submit(
                    route, context.tenant, context.tier, size, context.deadline, Job(payload, place), ended,
                    is_part=is_part,
                )  # fmt: skip
                tickets.append(ticket)
                if ticket.state in (State.REFUSED, State.FAILED):
                    break
            self.tend()
            if context.deadline is not None and context.deadline < math.inf and not done.done():
                bell = self._alarm.at(context.deadline + GRACE_S, lambda: self._cancel(tickets))
            await done
        except asyncio.CancelledError:
            for ticket in tickets:
                self._dispose(ticket, ticket.value)
            raise
        finally:
            if bell is not None:
                self._alarm.take_back(bell)
            self._cancel(tickets)
        return tickets

    def place_of(self, ticket: Ticket, capability: Capability) -> Place:
        job: Job = ticket.payload
        if ticket.rung is None:
            raise RuntimeError(f"a ticket that was {ticket.state} has no place")
        return job.place or self.places[capability, ticket.rung]

    async def load(self, place: Place) -> AulaError | None:
        """Load the model now, or say why it cannot be. Raises SettingsError and StorageError."""
        if place.model is not None:
            return None

        def work() -> dict[Task, Measured]:
            return place.load(self._clock) if place.model is None else {}

        try:
            self._loaded(place, await place.thread.call(work))
        except Unloadable as error:
            self._not_loaded(place, error.error)
            self.ladders[place.capability].load_failed(place.name)
            self.tend()
            return error.error
        return None

    def override(self, capability: Capability, name: str | None) -> None:
        self.ladders[capability].override(name)
        self.wake()

    def wake(self) -> None:
        self._armed = math.inf
        self.scheduler.wake()
        self.tend()

    def close(self) -> None:
        """Whoever waits is told that nothing comes; what runs comes to its end."""
        for tier in self.scheduler.queue.tiers.values():
            self._cancel(tier.waiting())

    def tend(self) -> None:
        """See to it that the next canary is sent. One that is due and waits for its worker needs no alarm: whoever
        gives the worker back sends it."""
        due = min(ladder.next_canary() for ladder in self.ladders.values())
        if self._clock.now() < due < self._armed:
            self._armed = due
            self._alarm.at(due, self.wake)

    def _start(self, batch: Batch) -> None:
        capability = next(one for one, ladder in self.ladders.items() if ladder is batch.route.ladder)
        job: Job | None = batch.tickets[0].payload if batch.tickets else None
        place = (job and job.place) or self.places[capability, batch.rung]
        loop = asyncio.get_running_loop()
        if place.model is not None:
            self._guard(batch, place)
        place.thread.post(partial(self._work, loop, batch, place))

    def _work(self, loop: asyncio.AbstractEventLoop, batch: Batch, place: Place) -> None:
        """In the place's thread."""
        came = _Came()
        try:
            if place.model is None:
                measured = place.load(self._clock)
                tell(loop, self._loaded, place, measured)
                tell(loop, self._guard, batch, place)
            start = self._clock.now()
            task = self._tasks[batch.route]
            if task is None:
                canary(place.capability, place.model, place.language)
            else:
                payloads = [ticket.payload.payload for ticket in batch.tickets]
                came.values = attempt(task, place.model, payloads)
            came.took_ms = 1e3 * (self._clock.now() - start)
        except Unloadable as error:
            came.unloadable = error.error
        except (SettingsError, StorageError) as error:
            came.to_mend = error
        except Exception as error:
            came.error = error
        except BaseException as error:  # a model that calls exit ends its own request alone
            came.error = EngineError(f"{place.name} ended with {error!r}", next_step="run: aula doctor")
        tell(loop, self._came_back, batch, place, came)

    def _came_back(self, batch: Batch, place: Place, came: _Came) -> None:
        if not self.scheduler.workers.runs(batch):
            return  # it was given up before, with its thread and all that lives there
        if came.unloadable is not None:
            self._not_loaded(place, came.unloadable)
            self.scheduler.not_loaded(batch)
        elif came.to_mend is not None:
            self._not_loaded(place, came.to_mend)
            self.scheduler.give_up(batch, came.to_mend)
        else:
            errors = [value for value in (*came.values, came.error) if isinstance(value, EngineError)]
            if errors:
                place.broke(errors[0])
            elif came.error is None:
                place.unavailable = None
            place.served += sum(not isinstance(value, Exception) for value in came.values)
            unheard = [pair for pair in zip(batch.tickets, came.values, strict=False) if pair[0].state not in IN_FLIGHT]
            self.scheduler.finished(batch, came.values, came.error, came.took_ms)
            self._count(batch, came.took_ms or 0.0)
            for ticket, value in unheard:
                self._dispose(ticket, value, place)
        self.tend()

    def _guard(self, batch: Batch, place: Place) -> None:
        if self.scheduler.workers.runs(batch):
            longest_s = max(HUNG_S, HUNG_TIMES * batch.predicted_ms / 1e3)
            self._alarm.at(self._clock.now() + longest_s, partial(self._hung, batch, place, longest_s))

    def _hung(self, batch: Batch, place: Place, after_s: float) -> None:
        """Leave the thread behind with whatever it does, and its models with it: the next request loads anew."""
        if not self.scheduler.workers.runs(batch):
            return
        error = BackendError(f"{place.name} did not come back in {after_s:.0f} s", next_step="run: aula doctor")
        place.broke(error)
        place.thread.lose()
        fresh = WorkerThread(place.rung.worker)
        lost = place.thread
        for other in self.places.values():
            if other.thread is lost:
                other.thread, other.model = fresh, None
        batch.route.ladder.hung(batch.rung)
        self.scheduler.finished(batch, error=error)
        self.tend()

    def _loaded(self, place: Place, measured: Mapping[Task, Measured]) -> None:
        if measured:
            place.loaded()
            self._telemetry.add(LOADS, place.capability, place.name, "ok")
            self._learn(place.capability, place.name, measured)

    def _not_loaded(self, place: Place, error: AulaError) -> None:
        place.broke(error)
        self._telemetry.add(LOADS, place.capability, place.name, "failed")

    def _count(self, batch: Batch, took_ms: float) -> None:
        if batch.is_canary:
            return
        telemetry, task = self._telemetry, batch.route.name
        telemetry.observe(BATCH_SIZE, len(batch.tickets), task)
        for ticket in batch.tickets:
            self._usage.add(ticket.tenant, took_ms / len(batch.tickets))
            telemetry.add(DEVICE_SECONDS, ticket.tier, by=took_ms / 1e3 / len(batch.tickets))
            if ticket.state is State.ANSWERED and ticket.finished is not None and ticket.rung is not None:
                capability = task.partition(".")[0]  # a task is named after its capability, and its part of it
                telemetry.add(SERVED, capability, ticket.rung, ticket.why)
                telemetry.observe(TASK_SECONDS, ticket.finished - ticket.submitted, task)
                if ticket.late:
                    telemetry.add(LATE, task)

    def _learn(self, capability: Capability, name: str, measured: Mapping[Task, Measured]) -> None:
        for task, costs in measured.items():
            self._costs[capability, task].replace(name, costs.table, costs.guessed)

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state in IN_FLIGHT:
                self.scheduler.cancel(ticket)

    def _dispose(self, ticket: Ticket, value: Any, place: Place | None = None) -> None:
        """A stream that nobody waits for any longer gives back what it holds."""
        if isinstance(value, Exception) or ticket.payload.place is not None:
            return
        opened = value[0] if isinstance(value, tuple) else value
        if place is None and ticket.rung is not None:
            capability = next(one for one, ladder in self.ladders.items() if ladder is ticket.route.ladder)
            place = self.places[capability, ticket.rung]
        if place is not None and hasattr(opened, "close"):
            place.thread.post(partial(_close, opened))


def _close(stream: Any) -> None:
    with suppress(Exception):  # nobody is left to be told
        stream.close()
