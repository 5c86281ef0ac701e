"""/livez, /readyz and /metrics: whether the process lives, whether it can serve now, and every figure.

Ready is what a real run says, not a flag: each capability is tried from end to end, at most once in
`serve.canary_seconds`, however often somebody asks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from aula.core.errors import AulaError
from aula.core.telemetry import CONNECTIONS
from aula.core.types import (
    SPEECH_RATE,
    UNKNOWN_LANGUAGE,
    Capability,
    Context,
    DetectRequest,
    Outcome,
    SpeakRequest,
    TranscribeRequest,
)
from aula.runtime import Runtime
from aula.servers.describing import Answer, Operation
from aula.servers.faults import refusal
from aula.servers.house import House
from aula.serving.rules import HOUSE

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LANGUAGES = ("en", "zh", UNKNOWN_LANGUAGE)


@dataclass(frozen=True, slots=True)
class Tried:
    """What trying a capability came to. `busy`: it was refused, so nothing was tried, and nothing is broken."""

    ok: bool
    rung: str | None
    ms: float
    error: str | None = None
    busy: bool = False


class Canaries:
    """Tries every capability that the runtime has; whoever asks meanwhile waits for the same answer."""

    def __init__(self, runtime: Runtime, every_seconds: float) -> None:
        self._runtime = runtime
        self._every = every_seconds
        self._at = -float("inf")
        self._last: Mapping[Capability, Tried] = {}
        self._trying: asyncio.Task[Mapping[Capability, Tried]] | None = None

    async def report(self) -> Mapping[Capability, Tried]:
        if self._trying is None:
            if self._runtime.clock.now() - self._at < self._every:
                return self._last
            self._trying = asyncio.ensure_future(self._try_all())
        return await asyncio.shield(self._trying)

    async def _try_all(self) -> Mapping[Capability, Tried]:
        try:
            there = {rung.capability for rung in self._runtime.statistics().rungs}
            tried = {capability: await self._try(capability) for capability in _TRIALS if capability in there}
            self._last, self._at = tried, self._runtime.clock.now()
            return tried
        finally:
            self._trying = None

    async def _try(self, capability: Capability) -> Tried:
        start = self._runtime.clock.now()
        last: AulaError | None = None
        for language in LANGUAGES:
            try:
                outcome = await _TRIALS[capability](self._runtime, Context(language, HOUSE, "question"))
            except AulaError as error:
                last = error
                if error.reason != "language":
                    break
            else:
                return Tried(True, outcome.rung, 1000 * (self._runtime.clock.now() - start))
        busy = last is not None and last.reason in ("rate", "concurrency", "device_time", "predicted_late")
        return Tried(busy, None, 1000 * (self._runtime.clock.now() - start), str(last), busy)


async def _embed(runtime: Runtime, context: Context) -> Outcome:
    return await runtime.submit(Capability.EMBED, ["ready"], context)


async def _understand(runtime: Runtime, context: Context) -> Outcome:
    return await runtime.submit(Capability.UNDERSTAND, "ready?", context)


async def _speak(runtime: Runtime, context: Context) -> Outcome:
    outcome = await runtime.submit(Capability.SPEAK, SpeakRequest("1"), context)
    try:
        await anext(outcome.value, None)
    finally:
        await outcome.value.close()
    return outcome


def _listen(capability: Capability, request: object) -> Callable[[Runtime, Context], Awaitable[Outcome]]:
    async def listen(runtime: Runtime, context: Context) -> Outcome:
        outcome = await runtime.submit(capability, request, context)
        try:
            await outcome.value.feed(np.zeros(SPEECH_RATE // 10, np.float32))
        finally:
            await outcome.value.close()
        return outcome

    return listen


_TRIALS: Mapping[Capability, Callable[[Runtime, Context], Awaitable[Outcome]]] = {
    Capability.DETECT: _listen(Capability.DETECT, DetectRequest()),
    Capability.TRANSCRIBE: _listen(Capability.TRANSCRIBE, TranscribeRequest()),
    Capability.UNDERSTAND: _understand,
    Capability.EMBED: _embed,
    Capability.SPEAK: _speak,
}


class Condition(Struct):
    """One capability, as its last trial found it."""

    ok: bool
    rung: str | None
    ms: float
    error: str | UnsetType = UNSET


class Readiness(Struct):
    """`why` says what keeps it from serving, where that is not a capability."""

    ready: bool
    why: str | UnsetType = UNSET
    capabilities: dict[str, Condition] | UnsetType = UNSET


class PlainFault(Struct):
    error: dict[str, str]


OPERATIONS = (
    Operation("GET", "/livez", "Whether the process lives.", None, (Answer("text/plain"),)),
    Operation(
        "GET",
        "/readyz",
        "Whether it can serve now: every capability is tried by a real run, now and then.",
        None,
        (Answer(kind=Readiness),),
        unwell=Answer(kind=Readiness, what="it cannot"),
    ),
    Operation(
        "GET",
        "/metrics",
        "Every figure, for Prometheus.",
        "operate",
        (Answer("text/plain"),),
        fault=PlainFault,
    ),
)


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door."""
    canaries = Canaries(house.runtime, house.settings.number("serve.canary_seconds"))

    def _told(readiness: Readiness) -> Response:
        return Response(msgspec.json.encode(readiness), 200 if readiness.ready else 503, media_type="application/json")

    async def live(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> Response:
        if house.traffic.is_closing or not house.traffic.is_warm:
            return _told(Readiness(False, "closing" if house.traffic.is_closing else "warming up"))
        tried = await canaries.report()
        found = {
            str(capability): Condition(one.ok, one.rung, round(one.ms, 3), one.error or UNSET)
            for capability, one in tried.items()
        }
        return _told(Readiness(all(one.ok for one in tried.values()), capabilities=found))

    async def metrics(request: Request) -> Response:
        try:
            house.doorman.admit(request, "operate")
        except AulaError as error:
            return refusal(request.url.path, error)
        house.runtime.telemetry.set(CONNECTIONS, to=house.traffic.connections)
        return Response(await house.runtime.metrics(), media_type=METRICS_TYPE)

    return [
        Route("/livez", live, name="livez"),
        Route("/readyz", ready, name="readyz"),
        Route("/metrics", metrics, name="metrics"),
    ]
