"""Floor 4: joins models and serves capabilities. Everything above asks here: `await runtime.submit(...)`.

Each loaded model lives in one worker thread, since none of them may be called from two; the event loop stays free. A
capability has rungs, best first. Before the rungs that share workers stands one scheduler: quotas, admission, shares,
fairness, deadlines and breakers are met there, once. Every outcome names the rung that served it, and why.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from aula.core.clock import Clock, SystemClock
from aula.core.errors import (
    AulaError,
    DeadlineError,
    EngineError,
    ModelNotFoundError,
    SettingsError,
    StorageError,
    UnsupportedLanguageError,
)
from aula.core.settings import Settings
from aula.core.telemetry import (
    BREAKER_OPEN,
    IN_FLIGHT,
    MEMORY_TOTAL,
    MEMORY_USED,
    QUEUED,
    REFUSALS,
    REQUEST_SECONDS,
    REQUESTS,
    RUNG_CHANGES,
    TENANT_SHARE,
    Telemetry,
)
from aula.core.traces import Span, span
from aula.core.types import Capability, Context, Outcome
from aula.engine.precision import Progress
from aula.models.rungs import classroom_rungs, hearing_rungs
from aula.scheduling.admission import Allowance, Quotas
from aula.scheduling.ladder import Breaker, Change
from aula.scheduling.tickets import Reason, State, Ticket
from aula.serving.alarm import Alarm
from aula.serving.budget import Budget, DeviceLoad
from aula.serving.group import Group
from aula.serving.ladders import LadderStatistics
from aula.serving.live import LiveDetection, LiveSpeech, LiveTranscription, value_of
from aula.serving.places import Place, Rung, no_rung
from aula.serving.records import EngineInfo, RungChanged, RungReport, RungStatistics, RuntimeStatistics
from aula.serving.requests import by_length, check, work_of
from aula.serving.rules import Rules, groups_of
from aula.serving.swap import Swap, swap
from aula.serving.tasks import INFER, Task
from aula.serving.tensors import Tensors, checked_tensors, size_of
from aula.serving.threads import WorkerThread
from aula.serving.usage import Usage

__all__ = [
    "EngineInfo",
    "LiveDetection",
    "LiveSpeech",
    "LiveTranscription",
    "Rules",
    "Rung",
    "RungChanged",
    "RungReport",
    "RungStatistics",
    "Runtime",
    "RuntimeStatistics",
    "Swap",
    "open_runtime",
]

Watcher = Callable[[RungChanged], None]


class Runtime:
    """Serves capabilities from rungs. Use as an async context manager; leaving it frees models and threads."""

    def __init__(
        self,
        rungs: Sequence[Rung],
        clock: Clock | None = None,
        stopping: threading.Event | None = None,
        rules: Rules | None = None,
        on_event: Watcher | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`stopping` is set when the runtime closes, so that a load that takes long can give up. `on_event` as
        `watch`."""
        self.clock = clock or SystemClock()
        self.events: deque[RungChanged] = deque(maxlen=256)
        self.telemetry = Telemetry()
        self._usage = Usage(self.clock)
        self._stopping = stopping or threading.Event()
        self._watchers = [on_event] if on_event is not None else []
        self._alarm = Alarm(self.clock)
        self._budget = budget or Budget(rules.memory if rules is not None else {})
        rules = rules or Rules()
        rungs = rules.in_order(rungs)
        self._rules = rules
        threads = {rung.worker: WorkerThread(rung.worker) for rung in rungs}
        self._groups: dict[str, Group] = {}
        self._quotas = Quotas(rules.quotas, rules.usual)
        for members in groups_of(rungs):
            places = [Place(rung, threads[rung.worker]) for rung in members]
            group = Group(
                places,
                self.clock,
                self._alarm,
                self._quotas,
                rules,
                self._budget,
                self.telemetry,
                self._usage,
                self._changed,
            )
            self._groups.update(dict.fromkeys(group.ladders, group))
        self._order = [(rung.ladder, rung.info.name) for rung in rungs]
        self._engine_order: dict[str, list[tuple[str, str]]] = {}
        for rung in rungs:
            if rung.engine is not None:
                self._engine_order.setdefault(rung.engine.name, []).append((rung.ladder, rung.info.name))
        self._counts = dict.fromkeys(("submitted", "answered", "refused", "failed", "cancelled"), 0)

    async def submit(self, capability: Capability, payload: Any, context: Context) -> Outcome:
        """Serve one request on the best rung that can in time.

        | capability | payload           | value of the outcome                           |
        |------------|-------------------|------------------------------------------------|
        | DETECT     | DetectRequest     | LiveDetection                                  |
        | TRANSCRIBE | TranscribeRequest | LiveTranscription                              |
        | UNDERSTAND | str               | Understanding                                  |
        | EMBED      | sequence of str   | float32 [n, d]                                 |
        | SPEAK      | SpeakRequest      | async iterator of int16 chunks, and their rate |

        A refusal comes at once, and its error has a `reason` and, where asking again helps, `retry_after_s`:
        DeadlineError when the deadline is past, OverloadError for quotas and what could not be in time,
        UnsupportedLanguageError when no rung knows the language, NoRungError when every rung that knows it is out of
        order. NoRungError without a reason: the request was tried on the rungs that there are, and all failed.
        DeadlineError without one: it was left behind a second after its deadline. InputError for a context or a
        payload that cannot be; else the errors that belong to the request itself.
        """
        with self._let_in(capability, context) as traced:
            if capability is Capability.INFER:
                raise TypeError("engines are asked by name: await runtime.infer(name, inputs, context)")
            task, work = work_of(capability, payload, context)
            able = self._able(capability, context)
            if not able:
                raise no_rung(able, capability, 0.0)
            outcome = await self._serve(task, work, payload, context, able)
            traced.tell(rung=outcome.rung, why=str(outcome.why))
            return outcome

    def engines(self) -> tuple[EngineInfo, ...]:
        """Engines that `infer` serves, each as the best rung of its ladder tells it."""
        return tuple(self.engine(name) for name in self._engine_order)

    def engine(self, name: str) -> EngineInfo:
        """One of them. Raises ModelNotFoundError."""
        return next(place.engine for place in self._engine_places(name) if place.engine is not None)

    async def infer(self, name: str, inputs: Tensors, context: Context) -> Tensors:
        """Run an engine as it is: arrays by input name in, arrays by output name out. Requests of one shape share a
        run. Raises ModelNotFoundError for a name that `engines` does not tell, InputError for tensors that the engine
        does not take, and what `submit` raises."""
        with self._let_in(Capability.INFER, context) as traced:
            able = self._engine_places(name)
            tensors = checked_tensors(self.engine(name), inputs)
            outcome = await self._serve(INFER, [(size_of(tensors), tensors)], tensors, context, able)
            traced.tell(engine=name, rung=outcome.rung, why=str(outcome.why))
            made: Tensors = outcome.value
            return made

    async def load(self, name: str) -> None:
        """Load the best rung that can be of an engine that `infer` serves. Raises ModelNotFoundError, NoRungError where
        none can be, SettingsError and StorageError."""
        able = self._engine_places(name)
        for place in able:
            if await self._groups[place.ladder].load(place) is None:
                return
        raise no_rung(able, able[0].ladder, None)

    async def warm(self, context: Context, capabilities: Iterable[Capability] | None = None) -> None:
        """Load the best rung of each capability that speaks or hears for somebody now, or of these, so that the first
        request does not pay for it."""
        if capabilities is None:
            capabilities = [one for one in Capability if one is not Capability.INFER]
        for capability in capabilities:
            for place in self._able(capability, context):
                if await self._groups[place.ladder].load(place) is None:
                    break

    async def probe(self) -> list[RungReport]:
        """Load every rung, also those that would only serve when a better one fails, and say what came of it."""
        reports = []
        for place in self._places():
            start = self.clock.now()
            error: AulaError | None
            try:
                error = await self._groups[place.ladder].load(place)
            except (SettingsError, StorageError) as told:
                error = told
                place.broke(told)
            reports.append(RungReport(place.rung.info, 1000 * (self.clock.now() - start), error))
        return reports

    def override(self, ladder: str, rung: str | None) -> None:
        """Let that rung of the ladder (a capability, or `infer.` and the name of an engine) alone serve, whatever its
        breaker says; None gives the choice back. Streams that are open stay where they are. Raises SettingsError for
        a ladder or a rung that there is not."""
        self._group(ladder).override(ladder, rung)

    async def swap(self, rung: Rung) -> Swap:
        """Put another model in the place of the rung of that name: it is loaded beside the old one in a thread of its
        own, warmed and tried, then takes every new request; streams end where they began. One that fails never serves,
        and the answer says why. Raises SettingsError where no rung has that name."""
        return await swap(self._group(rung.ladder), rung, WorkerThread(rung.worker))

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call it for every event from now on, in the loop's thread, where it must return soon; `events` keeps the
        latest. Returns what ends it, lawful twice."""
        self._watchers.append(watcher)

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    def allowance(self, tenant: str) -> Allowance | None:
        """What a tenant may ask before its rate holds; None where there is no limit."""
        return self._quotas.allowance(tenant, self.clock.now())

    async def memory(self) -> tuple[DeviceLoad, ...]:
        """What is loaded on which device, what it takes and what may be taken."""
        return self._budget.report(await asyncio.to_thread(self._budget.read))

    def ladders(self) -> tuple[LadderStatistics, ...]:
        """Every ladder as an operator sees it."""
        return tuple(
            LadderStatistics(
                str(name),
                tuple(ladder.names),
                ladder.overridden,
                frozenset(one for one in ladder.names if group.places[name, one].rung.forget is None),
            )
            for group in dict.fromkeys(self._groups.values())
            for name, ladder in group.ladders.items()
        )

    async def renew(self, ladder: str, rung: str) -> Swap:
        """Swap a rung for itself: its model is loaded from the disk once more, as it stands there now. Raises
        SettingsError for one that its ladder does not tell as renewable."""
        for group in dict.fromkeys(self._groups.values()):
            for (name, one), place in group.places.items():
                if (str(name), one) == (ladder, rung) and place.rung.forget is None:
                    return await self.swap(place.rung)
        raise SettingsError(
            f"the rung {rung!r} of {ladder!r} cannot be loaded anew by itself",
            available=[f"{one.name} {name}" for one in self.ladders() for name in sorted(one.renewable)],
            next_step="name one of these, or start the server anew",
        )

    def shares(self) -> dict[str, float]:
        """Each tenant's part of the device time of the last minutes: the largest by name, what is left as `other`."""
        return self._usage.shares()

    def statistics(self) -> RuntimeStatistics:
        rungs = tuple(
            RungStatistics(
                place.name,
                place.capability,
                place.served,
                place.failed,
                str(self._groups[place.ladder].ladders[place.ladder].state(place.name)),
                str(place.unavailable) if place.unavailable else None,
                place.rung.engine.name if place.rung.engine else None,
                place.runs,
                place.run_s,
            )
            for place in self._places()
        )
        in_flight = self._in_flight
        schedulers = tuple(group.scheduler.statistics() for group in dict.fromkeys(self._groups.values()))
        return RuntimeStatistics(**self._counts, in_flight=in_flight, rungs=rungs, schedulers=schedulers)

    async def metrics(self) -> str:
        """Every figure of docs/metrics.md in Prometheus' text format."""
        memories = await asyncio.to_thread(self._budget.read)  # a GPU's driver may take its time
        telemetry = self.telemetry
        for place in self._places():
            is_open = self._groups[place.ladder].ladders[place.ladder].state(place.name) is Breaker.OPEN
            telemetry.set(BREAKER_OPEN, place.capability, place.name, to=float(is_open))
        telemetry.clear(QUEUED)
        for group in dict.fromkeys(self._groups.values()):
            for tier in group.scheduler.queue.tiers.values():
                telemetry.add(QUEUED, tier.name, by=tier.length)
        telemetry.set(IN_FLIGHT, to=self._in_flight)
        telemetry.clear(TENANT_SHARE)
        for tenant, share in self._usage.shares().items():
            telemetry.set(TENANT_SHARE, tenant, to=share)
        for memory in memories:
            telemetry.set(MEMORY_USED, memory.device, to=memory.used)
            telemetry.set(MEMORY_TOTAL, memory.device, to=memory.total)
        return telemetry.text()

    @property
    def _in_flight(self) -> int:
        return 2 * self._counts["submitted"] - sum(self._counts.values())

    async def close(self) -> None:
        """Close every model in its own thread, then end the threads. A load that is under way is told to stop, and
        whoever waits still is told that nothing comes."""
        self._stopping.set()
        for group in dict.fromkeys(self._groups.values()):
            await group.close()
        self._alarm.close()
        for thread in {place.thread for place in self._budget.places}:
            await thread.drained()
        closed: set[int] = set()
        for place in list(self._budget.places):
            model = place.model
            if model is not None and id(model) not in closed and hasattr(model, "close"):
                closed.add(id(model))
                await place.thread.call(model.close)
            place.model = None
        for thread in {place.thread for place in self._budget.places}:
            await thread.drained()
            thread.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _serve(
        self, task: Task, work: Sequence[tuple[int, Any]], payload: Any, context: Context, able: Sequence[Place]
    ) -> Outcome:
        if self._stopping.is_set():
            raise EngineError("the runtime is closed", next_step="open another one")
        ladder = able[0].ladder
        group = self._groups[ladder]
        route = group.ways.route(task, ladder, frozenset(place.name for place in able))
        tickets = await group.serve_once(route, work, context)
        _raise_fault(tickets, able)
        if len({ticket.rung for ticket in tickets}) > 1:
            tickets = await self._on_one_rung(group, ladder, task, work, tickets, context)
            _raise_fault(tickets, able)
        place = group.place_of(tickets[0])
        why = next((ticket.why for ticket in tickets if not ticket.route.pinned), tickets[0].why)
        return Outcome(self._value(group, place, payload, tickets, context), place.name, why)

    async def _on_one_rung(
        self,
        group: Group,
        ladder: str,
        task: Task,
        work: Sequence[tuple[int, Any]],
        tickets: Sequence[Ticket],
        context: Context,
    ) -> list[Ticket]:
        """Rungs may live in spaces of their own: what two of them made cannot stand in one answer."""
        lowest = max((ticket.rung or "" for ticket in tickets), key=group.ladders[ladder].index)
        kept = {index: ticket for index, ticket in enumerate(tickets) if ticket.rung == lowest}
        missing = [index for index in range(len(tickets)) if index not in kept]
        route = group.ways.route(task, ladder, frozenset({lowest}), pinned=True)
        place = group.places[ladder, lowest]
        again = await group.serve(route, [work[index] for index in missing], context, place)
        if len(again) < len(missing):
            return again  # the last of them says why
        kept.update(zip(missing, again, strict=True))
        return [kept[index] for index in sorted(kept)]

    def _value(
        self,
        group: Group,
        place: Place,
        payload: Any,
        tickets: Sequence[Ticket],
        context: Context,
    ) -> Any:
        value = tickets[0].value
        match place.capability:
            case Capability.EMBED:
                rows = np.empty((len(payload), *value.shape[1:]), value.dtype)
                rows[by_length(payload)] = np.concatenate([ticket.value for ticket in tickets])
                return rows
            case Capability.DETECT:
                return LiveDetection(group, self.clock, place, value, context)
            case Capability.TRANSCRIBE:
                return LiveTranscription(group, self.clock, place, value, context)
            case Capability.SPEAK:
                return LiveSpeech(group, self.clock, place, value, context)
        return value

    def _able(self, capability: Capability, context: Context) -> list[Place]:
        places = [place for place in self._places() if place.capability is capability]
        able = [place for place in places if place.rung.info.serves(context.language)]
        if places and not able:
            raise UnsupportedLanguageError(
                f"nothing here can {_VERBS[capability]} the language {context.language!r}",
                available=sorted({language for place in places for language in place.rung.info.languages}),
                next_step=_LANGUAGE_ADVICE.get(capability, "choose one of these languages"),
            ).refused("language")
        return able

    def _engine_places(self, name: str) -> list[Place]:
        places = [self._groups[ladder].places[ladder, rung] for ladder, rung in self._engine_order.get(name, ())]
        if not places:
            raise ModelNotFoundError(
                f"there is no engine {str(name)[:80]!r} here",
                available=list(self._engine_order),
                next_step="name one of these, or serve it: set engines = name=bundle",
            )
        return places

    def _places(self) -> list[Place]:
        return [self._groups[ladder].places[ladder, name] for ladder, name in self._order]

    def _group(self, ladder: str) -> Group:
        if ladder not in self._groups:
            raise SettingsError(
                f"there is no ladder {ladder!r} here", available=list(self._groups), next_step="run: aula doctor"
            )
        return self._groups[ladder]

    def _changed(self, ladder: str, change: Change) -> None:
        capability = Capability(ladder.partition(".")[0])
        event = RungChanged(change.moment, capability, change.rung, str(change.state), str(change.cause))
        self.events.append(event)
        self.telemetry.add(RUNG_CHANGES, capability, change.rung or "", change.cause)
        for watcher in tuple(self._watchers):
            try:
                watcher(event)
            except Exception as error:  # a defect, said aloud; the others hear it all the same
                asyncio.get_running_loop().call_exception_handler({"message": f"{watcher} failed", "exception": error})

    @contextmanager
    def _let_in(self, capability: Capability, context: Context) -> Iterator[Span]:
        """What every request meets before it is anybody's ticket. However it ends, it ends once."""
        self._counts["submitted"] += 1
        end = "failed"
        start = self.clock.now()
        try:
            with span(str(capability), tenant=str(context.tenant), tier=str(context.tier)) as traced:
                check(context)
                self._rules.check(context.tenant)
                if context.deadline is not None and start >= context.deadline:
                    raise DeadlineError(
                        f"the deadline passed before {capability} could start",
                        next_step="ask again, or allow more time",
                    ).refused("deadline")
                yield traced
            end = "answered"
        except AulaError as error:
            if error.reason is not None:
                end = "refused"
                self.telemetry.add(REFUSALS, error.reason)
            raise
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        finally:
            self._counts[end] += 1
            self.telemetry.add(REQUESTS, str(capability), end)
            if end == "answered":
                self.telemetry.observe(REQUEST_SECONDS, self.clock.now() - start, capability, context.tier)


def _raise_fault(tickets: Sequence[Ticket], able: Sequence[Place]) -> None:
    fault = next((ticket for ticket in tickets if ticket.state is not State.ANSWERED), None)
    if fault is None:
        return
    if fault.refusal is not None and fault.refusal.reason is Reason.NO_RUNG:
        raise no_rung(able, able[0].ladder, fault.refusal.retry_after_s)
    if isinstance(fault.error, EngineError):
        raise no_rung(able, able[0].ladder, None) from fault.error
    value_of(fault)


_VERBS = {
    Capability.DETECT: "find speech in",
    Capability.TRANSCRIBE: "hear",
    Capability.UNDERSTAND: "understand",
    Capability.EMBED: "embed",
    Capability.SPEAK: "speak",
    Capability.INFER: "run",
}
_LANGUAGE_ADVICE = {
    Capability.TRANSCRIBE: 'type the question instead: aula ask --text "..."',
    Capability.SPEAK: "read the answer on the screen, or choose a course in one of these languages",
}


def open_runtime(settings: Settings, *, clock: Clock | None = None, progress: Progress | None = None) -> Runtime:
    """A runtime with every rung this package knows. Nothing is loaded before it is first asked for.

    `progress` hears what an engine build is doing, from the thread that builds.
    """
    stopping = threading.Event()
    rungs = classroom_rungs(settings, clock, _reporter(stopping, progress))
    return Runtime(rungs, clock, stopping, Rules.from_settings(settings))


def open_hearing(
    settings: Settings, *, clock: Clock | None = None, progress: Progress | None = None, last_resort: bool = True
) -> Runtime:
    """As `open_runtime`, for `transcribe` alone. Without `last_resort` only Whisper serves."""
    stopping = threading.Event()
    rungs = hearing_rungs(settings, clock, _reporter(stopping, progress), last_resort)
    return Runtime(rungs, clock, stopping)


def _reporter(stopping: threading.Event, progress: Progress | None) -> Progress:
    def report(what: str, share: float) -> None:
        if stopping.is_set():
            raise InterruptedError("the runtime is closing")
        if progress is not None:
            progress(what, share)

    return report
