"""Rungs that share workers, and the one scheduler before them. Only the event loop's thread calls the scheduler.

A batch goes to its rung's thread, which loads the model if it must, and comes back as a call in the loop. Nothing
waits for a timer: the alarm guards (a hang, a deadline long past) and sends canaries. Where a model's streams share
passes several batches are in its thread at once, each a stream's; between two passes the thread takes what came.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aula.core.clock import Clock
from aula.core.deadlines import work_until
from aula.core.errors import (
    AulaError,
    BackendError,
    DeviceMemoryError,
    EngineError,
    ProcessAwayError,
    SettingsError,
    StorageError,
)
from aula.core.telemetry import BATCH_SIZE, DEVICE_SECONDS, LATE, SERVED, TASK_SECONDS, Telemetry
from aula.core.types import Context
from aula.scheduling.admission import Quotas
from aula.scheduling.batching import Batch
from aula.scheduling.ladder import Breaker, Change, Ladder
from aula.scheduling.queue import Queue
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import IN_FLIGHT, Reason, State, Ticket
from aula.serving.alarm import Alarm, Bell
from aula.serving.budget import Budget
from aula.serving.hosts import Hosts, all_there, hosted_sessions, is_gone
from aula.serving.places import Place, Unloadable
from aula.serving.residence import Residence, close_quietly
from aula.serving.rules import Rules
from aula.serving.tasks import attempt, canary
from aula.serving.threads import WorkerThread, tell
from aula.serving.usage import Usage
from aula.serving.ways import Ways

GRACE_S = 1.0
"""What ran at the deadline is still answered so long after it; then the caller is told, and the work is left behind.
What waited is told at the deadline."""
HUNG_S = 60.0
"""A run that takes so long, and HUNG_TIMES what was expected, will not come back. Adapting a recogniser to a course
takes seconds; loads and builds may take minutes, and are not counted."""
HUNG_TIMES = 20.0
RETURN_S = 10.0
"""The longest that a request waits for a process that took it along: loading anew takes less, or it takes minutes."""
MOST_TRIES = 5
"""Of such a request: others may take the process along again before its turn comes."""
PRESSED_S = 5.0
"""After a device's memory was full, until a canary may try it: whoever filled it has ended by then, or it says so."""


@dataclass(slots=True, eq=False)
class Job:
    """A ticket's payload: what to run, and the place that holds its stream, if one does."""

    payload: Any
    place: Place | None = None
    ran: Place | None = None
    """Where it ran; a stream stays there, whoever has the rung's name by then."""


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
        budget: Budget,
        telemetry: Telemetry,
        usage: Usage,
        on_change: Callable[[str, Change], None],
    ) -> None:
        self.clock = clock
        self.ways = Ways(places, clock, rules.policy, self._changed)
        self.residence = Residence(places, budget, clock, telemetry, self.ways.learn, Hosts(self._host_changed))
        self._on_change = on_change
        self._hopes: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._bells: dict[Batch, Bell] = {}
        self._making_room: dict[Place, asyncio.Task[None]] = {}
        self._alarm = alarm
        self._armed = math.inf
        self._telemetry = telemetry
        self._usage = usage
        workers: dict[str, int] = {}
        for rung in (place.rung for place in places):
            workers[rung.worker] = max(workers.get(rung.worker, 1), rung.at_once)
        queue = Queue(rules.shares, rules.weights)
        self.scheduler = Scheduler(self._start, self.ways.canaries, clock, workers=workers, queue=queue, quotas=quotas)

    async def serve(
        self,
        route: Route,
        work: Sequence[tuple[int, Any]],
        context: Context,
        place: Place | None = None,
        *,
        again: bool = False,
    ) -> list[Ticket]:
        """One ticket for each size and payload, all of one request: the first meets quotas and prediction, unless a
        `place` says that a stream was let in before, or it is tried `again`. Returns when all are answered, or one is
        not."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tickets: list[Ticket] = []
        left = len(work)

        def ended(ticket: Ticket) -> None:
            nonlocal left
            left -= 1
            if (not left or ticket.state is not State.ANSWERED) and not done.done():
                done.set_result(None)

        deadline = math.inf if context.deadline is None else context.deadline
        bell: Bell | None = None

        def at_deadline() -> None:
            nonlocal bell
            for ticket in tickets:
                self.scheduler.expire(ticket)
            if not done.done():
                bell = self._alarm.at(deadline + GRACE_S, lambda: self._cancel(tickets))

        try:
            for number, (size, payload) in enumerate(work):
                is_part = again or place is not None or number > 0
                ticket = self.scheduler.submit(
                    route, context.tenant, context.tier, size, context.deadline, Job(payload, place), ended,
                    is_part=is_part, alone=again,
                )  # fmt: skip
                tickets.append(ticket)
                if ticket.state in (State.REFUSED, State.FAILED):
                    break
            self.tend()
            if deadline < math.inf and not done.done():
                bell = self._alarm.at(deadline, at_deadline)
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

    async def serve_once(self, route: Route, work: Sequence[tuple[int, Any]], context: Context) -> list[Ticket]:
        """As `serve`, for a whole request. One that an engine's process took along, and that no lower rung could serve
        in time, waits for the process to come back, until its deadline and RETURN_S at most, and is tried once more:
        each of its parts alone, since it may be what the process died of."""
        tickets = await self.serve(route, work, context)
        until = min(self.clock.now() + RETURN_S, math.inf if context.deadline is None else context.deadline)
        losses = 0
        for _ in range(MOST_TRIES):
            fault = next((ticket for ticket in tickets if ticket.state is not State.ANSWERED), None)
            if fault is None:
                break
            ran = fault.payload.ran
            lost = ran is not None and is_gone(fault.error)
            losses += lost and not isinstance(fault.error, ProcessAwayError)
            came_too_late = losses and fault.refusal is not None and fault.refusal.reason is Reason.NO_RUNG
            if losses > 1 or not (lost or came_too_late) or not await self._has_rung(route, until):
                break
            tickets = await self.serve(route, work, context, again=True)
        return tickets

    async def _has_rung(self, route: Route, until: float) -> bool:
        """Wait for a breaker of the route to be closed, also where an operator has chosen its rung. False where none is
        by then, or the runtime closes."""

        def is_in_order(name: str) -> bool:
            return route.admits(name) and route.ladder.state(name) is Breaker.CLOSED

        while (gone := not any(map(is_in_order, route.rungs))) and not self._is_closed and self.clock.now() < until:
            hope: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            bell = self._alarm.at(until, partial(_settle, hope))
            self._hopes.add(hope)
            try:
                await hope
            finally:
                self._hopes.discard(hope)
                self._alarm.take_back(bell)
        return not gone and not self._is_closed

    def place_of(self, ticket: Ticket) -> Place:
        job: Job = ticket.payload
        if job.ran is None:
            raise RuntimeError(f"a ticket that was {ticket.state} ran nowhere")
        return job.ran

    @property
    def ladders(self) -> dict[str, Ladder]:
        return self.ways.ladders

    @property
    def places(self) -> dict[tuple[str, str], Place]:
        return self.residence.places

    async def load(self, place: Place) -> AulaError | None:
        """Load the model now, or say why it cannot be. Raises SettingsError and StorageError."""
        failure = await self.residence.load(place)
        if failure is not None and self.residence.serves(place):
            self.ladders[place.ladder].load_failed(place.name)
            self.tend()
        return failure

    def switch(self, old: Place, new: Place) -> None:
        """`new` was tried, and takes the rung of `old`."""
        self.residence.replace(old, new)
        self.ladders[new.ladder].swapped(new.name)
        self.wake()

    def override(self, ladder: str, name: str | None) -> None:
        self.ladders[ladder].override(name)
        self.wake()

    def wake(self) -> None:
        self._armed = math.inf
        self.scheduler.wake()
        self.tend()

    async def close(self) -> None:
        """Whoever waits is told that nothing comes; what runs comes to its end."""
        self._is_closed = True
        self._stop_hoping()
        for tier in self.scheduler.queue.tiers.values():
            self._cancel(tier.waiting())
        await asyncio.gather(*self._making_room.values(), return_exceptions=True)

    def tend(self) -> None:
        """See to it that the next canary is sent. One that is due and waits for its worker needs no alarm: whoever
        gives the worker back sends it."""
        due = self.ways.next_canary()
        if self.clock.now() < due < self._armed:
            self._armed = due
            self._alarm.at(due, self.wake)

    def _start(self, batch: Batch) -> None:
        job: Job | None = batch.tickets[0].payload if batch.tickets else None
        place = (job and job.place) or self.places[self.ways.ladder_of(batch.route), batch.rung]
        for ticket in batch.tickets:
            ticket.payload.ran = place
        place.running += 1
        making = self._making_room.get(place)
        if making is None and place.model is None and place.running == 1 and self.residence.needs_room(place):
            making = asyncio.get_running_loop().create_task(self.residence.make_room(place))
            self._making_room[place] = making
            making.add_done_callback(lambda _: self._making_room.pop(place, None))
        if making is not None:
            making.add_done_callback(partial(self._room_made, batch, place))
            return
        place.thread.post(partial(self._work, asyncio.get_running_loop(), batch, place))
        if place.model is not None:
            self._guard(batch, place)

    def _room_made(self, batch: Batch, place: Place, making: "asyncio.Task[None]") -> None:
        error = asyncio.CancelledError() if making.cancelled() else making.exception()
        if error is None:
            try:
                place.thread.post(partial(self._work, asyncio.get_running_loop(), batch, place))
                return
            except RuntimeError as ended:
                error = ended
        # Whoever waits must hear of it, also where the thread has ended.
        if isinstance(error, AulaError):
            self._came_back(batch, place, _Came(unloadable=error))
        else:
            told = error if isinstance(error, Exception) else EngineError(repr(error), next_step="run: aula doctor")
            self._came_back(batch, place, _Came(error=told))

    def _work(self, loop: asyncio.AbstractEventLoop, batch: Batch, place: Place) -> None:
        """In the place's thread."""
        came = _Came()
        try:
            if place.model is None:
                measured = place.load(self.clock)
                tell(loop, self.residence.loaded, place, measured)
                tell(loop, self._guard, batch, place)
            start = self.clock.now()
            task = self.ways.task_of(batch.route)
            if task is None:
                canary(place.capability, place.model, place.language)
            else:
                payloads = [ticket.payload.payload for ticket in batch.tickets]
                if task.work is not None and hasattr(place.model, "passes"):
                    rank = list(self.scheduler.queue.tiers).index(batch.tickets[0].tier)
                    self._share(loop, batch, place, task.work(*payloads), 2 * rank + (not task.is_last))
                    return
                with work_until(self.clock, _latest(batch)):
                    came.values = attempt(task, place.model, payloads)
            came.took_ms = 1e3 * (self.clock.now() - start)
        except Unloadable as error:
            came.unloadable = error.error
        except (SettingsError, StorageError) as error:
            came.to_mend = error
        except Exception as error:
            came.error = error
        except BaseException as error:  # a model that calls exit ends its own request alone
            came.error = EngineError(f"{place.name} ended with {error!r}", next_step="run: aula doctor")
        tell(loop, self._came_back, batch, place, came)

    def _share(
        self, loop: asyncio.AbstractEventLoop, batch: Batch, place: Place, work: tuple[Any, Any], rank: int
    ) -> None:
        """In the place's thread: it goes on beside others."""
        passes, thread = place.model.passes, place.thread

        def ended(value: Any, took_s: float) -> None:
            tell(loop, self._came_back, batch, place, _Came(values=[value], took_ms=1e3 * took_s))

        def go_on() -> None:
            # Behind what came meanwhile. A thread that ends takes nothing more, and its last passes are made at once.
            try:
                while passes.advance():
                    if not thread.is_ending:
                        with suppress(RuntimeError):
                            thread.post(go_on)
                            return
            except Exception as error:  # a defect of the model's: nobody may wait for ever
                passes.close(error)

        if passes.begin(*work, ended, rank):
            go_on()

    def _came_back(self, batch: Batch, place: Place, came: _Came) -> None:
        bell = self._bells.pop(batch, None)
        if bell is not None:
            self._alarm.take_back(bell)
        gone = False
        if not self.scheduler.workers.runs(batch):
            return  # it was given up before, with its thread and all that lives there
        place.running -= 1
        if came.unloadable is not None:
            self.residence.not_loaded(place, came.unloadable)
            self.scheduler.not_loaded(batch)
        elif came.to_mend is not None:
            self.residence.not_loaded(place, came.to_mend)
            self.scheduler.give_up(batch, came.to_mend)
        else:
            errors = [value for value in (*came.values, came.error) if isinstance(value, EngineError)]
            if errors:
                place.broke(errors[0])
                if gone := any(map(is_gone, errors)):
                    self._lost(place)
                if any(isinstance(error, DeviceMemoryError) for error in errors):
                    self._press(place)
            elif came.error is None:
                place.unavailable = None
            place.served += sum(not isinstance(value, Exception) for value in came.values)
            unheard = [pair for pair in zip(batch.tickets, came.values, strict=False) if pair[0].state not in IN_FLIGHT]
            place.streams += sum(map(_is_stream, batch.tickets, came.values))
            self.scheduler.finished(batch, came.values, came.error, came.took_ms)
            self._count(batch, place, came.took_ms or 0.0)
            for ticket, value in unheard:
                self._dispose(ticket, value)
        if batch.is_canary and came.error is not None:
            if not gone or not hosted_sessions(place):
                self.residence.renew(place)
            elif all_there(place):
                self._host_changed(place, True)  # it came back while the canary was lost
        self.residence.let_go(place)
        self.tend()

    def _changed(self, ladder: str, change: Change) -> None:
        if change.state is Breaker.CLOSED:
            self._stop_hoping()
        self._on_change(ladder, change)

    def _stop_hoping(self) -> None:
        for hope in self._hopes:
            _settle(hope)

    def _lost(self, place: Place) -> None:
        """A run was lost with its engine's process, which may be there again by now."""
        if self.residence.serves(place) and not (hosted_sessions(place) and all_there(place)):
            self.ladders[place.ladder].lost(place.name)

    def _host_changed(self, place: Place, is_there: bool) -> None:
        if not self.residence.serves(place):
            return
        ladder = self.ladders[place.ladder]
        if is_there:
            ladder.returned(place.name)
            self.wake()
        else:
            ladder.lost(place.name)
            self.tend()

    def _press(self, place: Place) -> None:
        """The device is full: whoever can be served lower goes there at once, and no canary adds to it for a while."""
        ladder, name = self.ladders[place.ladder], place.name

        def look_again() -> None:
            ladder.memory(name, pressed=False)
            self.wake()

        ladder.memory(name, pressed=True)
        self._alarm.at(self.clock.now() + PRESSED_S, look_again)

    def _guard(self, batch: Batch, place: Place) -> None:
        if self.scheduler.workers.runs(batch):
            longest_s = max(HUNG_S, HUNG_TIMES * batch.predicted_ms / 1e3)
            until = self.clock.now() + longest_s
            self._bells[batch] = self._alarm.at(until, partial(self._hung, batch, place, longest_s))

    def _hung(self, batch: Batch, place: Place, after_s: float) -> None:
        """Leave the thread behind with whatever it does, and its models with it: the next request loads anew."""
        self._bells.pop(batch, None)
        if not self.scheduler.workers.runs(batch):
            return
        error = BackendError(f"{place.name} did not come back in {after_s:.0f} s", next_step="run: aula doctor")
        place.broke(error)
        lost, fresh = place.thread, WorkerThread(place.rung.worker)
        lost.lose()
        with_it = [other for other in self._bells if _place_of(other) is place]
        self.residence.abandon(lost, fresh)
        batch.route.ladder.hung(batch.rung)
        for one in (batch, *with_it):
            if (bell := self._bells.pop(one, None)) is not None:
                self._alarm.take_back(bell)
            self.scheduler.finished(one, error=error)
        self.tend()

    def _count(self, batch: Batch, place: Place, took_ms: float) -> None:
        if batch.is_canary:
            return
        place.used_at = self.clock.now()
        place.runs += 1
        place.run_s += took_ms / 1e3 * len(batch.tickets)
        place.tier = min(list(self.scheduler.queue.tiers).index(ticket.tier) for ticket in batch.tickets)
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

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state in IN_FLIGHT:
                self.scheduler.cancel(ticket)

    def _dispose(self, ticket: Ticket, value: Any) -> None:
        """A stream that nobody waits for any longer gives back what it holds."""
        place = ticket.payload.ran
        if place is None or not _is_stream(ticket, value):
            return
        opened = value[0] if isinstance(value, tuple) else value
        if not place.thread.is_lost:
            place.thread.post(partial(close_quietly, opened))
        self.residence.stream_closed(place)


def _latest(batch: Batch) -> float | None:
    """When nobody of the batch waits any longer; None where somebody would for ever."""
    latest = max(ticket.deadline for ticket in batch.tickets)
    return latest if latest < math.inf else None


def _settle(hope: "asyncio.Future[None]") -> None:
    if not hope.done():
        hope.set_result(None)


def _place_of(batch: Batch) -> Place | None:
    job: Job | None = batch.tickets[0].payload if batch.tickets else None
    return None if job is None else job.ran


def _is_stream(ticket: Ticket, value: Any) -> bool:
    """Whether the task opened one: it did not run on one that was there, and what it gave can be closed."""
    opened = value[0] if isinstance(value, tuple) else value
    return ticket.payload.place is None and hasattr(opened, "close")
