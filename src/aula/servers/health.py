"""/livez, /readyz and /metrics: whether the process lives, whether it can serve now, and every figure.

Ready is what a real run says, not a flag: each capability is tried from end to end, at most once in
`serve.canary_seconds`, however often somebody asks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
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


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door."""
    canaries = Canaries(house.runtime, house.settings.number("serve.canary_seconds"))

    async def live(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> Response:
        told: dict[str, Any] = {"ready": False}
        if house.traffic.is_closing:
            return JSONResponse({**told, "why": "closing"}, 503)
        if not house.traffic.is_warm:
            return JSONResponse({**told, "why": "warming up"}, 503)
        tried = await canaries.report()
        told["ready"] = all(one.ok for one in tried.values())
        told["capabilities"] = {
            str(capability): {
                "ok": one.ok,
                "rung": one.rung,
                "ms": round(one.ms, 3),
                **({"error": one.error} if one.error else {}),
            }
            for capability, one in tried.items()
        }
        return JSONResponse(told, 200 if told["ready"] else 503)

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
