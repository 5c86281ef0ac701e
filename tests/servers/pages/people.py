"""What the tests of the pages share: a house on tiny honest models, keys, and the ASGI application called by hand.

Loud samples are speech and are heard as a word of WORDS every 100 ms; a text's vector says which of TOPICS it names.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from aula.assistant.packs import add_course, open_library
from aula.core.clock import Clock, FakeClock
from aula.core.errors import AulaError, NothingHeardError
from aula.core.settings import Settings
from aula.core.types import (
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Intent,
    Partial,
    RungInfo,
    Segment,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
    Understanding,
)
from aula.runtime import Rung, Runtime
from aula.servers import pages
from aula.servers.callers import Caller, Doorman, EveryoneIsLocal
from aula.servers.guests import Guests
from aula.servers.house import House
from aula.servers.turn_log import TurnRecord

WORDS = ("a", "force", "is", "a", "push", "or", "a", "pull", "on", "an", "object")
TOPICS = ("exam", "inertia", "moon")
CHUNK = 512
COURSE = """---
title: Motion
language: en
description: How things move.
---
# Inertia

Inertia is the tendency of every object to keep its velocity unchanged.

# Momentum

Momentum is the product of mass and velocity.
"""


@dataclass
class Models:
    """All of them at once. `tells_times`: segments are finished while sound comes; `closed` counts streams."""

    tells_times: bool = False
    failure: AulaError | None = None
    opened: int = 0
    closed: int = 0
    requests: list[TranscribeRequest] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)

    def start(self, request: TranscribeRequest | DetectRequest, context: Context) -> "_Stream":
        if self.failure is not None:
            raise self.failure
        self.contexts.append(context)
        self.opened += 1
        if isinstance(request, TranscribeRequest):
            self.requests.append(request)
        return _Stream(self, isinstance(request, DetectRequest))

    def understand(self, text: str, context: Context) -> Understanding:
        return Understanding(Intent.CONTENT, 1.0, _vector(text))

    def embed(self, texts: Sequence[str]) -> Float32:
        if self.failure is not None:
            raise self.failure
        return np.stack([_vector(text) for text in texts])

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        yield np.ones(100, np.int16)


class _Stream:
    def __init__(self, owner: Models, detects: bool) -> None:
        self._owner, self._detects = owner, detects
        self._loud = self._told = 0
        self._finished: tuple[Segment, ...] = ()
        self._pending = np.zeros(0, np.float32)

    def feed(self, samples: Float32) -> Any:
        if self._owner.failure is not None:
            raise self._owner.failure
        if self._detects:
            joined = np.concatenate([self._pending, samples])
            whole = len(joined) // CHUNK
            self._pending = joined[whole * CHUNK :]
            return [float(np.abs(one).max() > 0.1) for one in joined[: whole * CHUNK].reshape(whole, CHUNK)]
        self._loud += int((np.abs(samples) > 0.1).sum())
        words = self._words()
        finished: tuple[Segment, ...] = ()
        if self._owner.tells_times and len(words) - self._told > 2:
            finished = (self._segment(self._told, len(words) - 1),)
            self._finished += finished
            self._told = len(words) - 1
        return Partial(" ".join(words), finished=finished)

    def _words(self) -> Sequence[str]:
        return [WORDS[place % len(WORDS)] for place in range(self._loud // 1600)]

    def _segment(self, start: int, end: int) -> Segment:
        return Segment(0.1 * start, 0.1 * end, " ".join(self._words()[start:end]))

    def commit(self) -> Transcript:
        words = self._words()
        if not words:
            raise NothingHeardError("nobody spoke", next_step="speak")
        rest = (self._segment(self._told, len(words)),) if self._told < len(words) else ()
        segments = (*self._finished, *rest)
        return Transcript(" ".join(words), "en", 0.9, segments if self._owner.tells_times else ())

    def close(self) -> None:
        self._owner.closed += 1


def _vector(text: str) -> Float32:
    """One of TOPICS, or a direction of its own that is like no other."""
    vector = np.zeros(64, np.float32)
    named = next((place for place, topic in enumerate(TOPICS) if topic in text.lower()), None)
    vector[named if named is not None else 3 + sum(text.encode()) % 61] = 1.0
    return vector


class UnknownKeyError(AulaError):
    """As the errors of keys are: what HTTP calls it is in `status`."""

    status = 401


@dataclass
class Keys:
    """A doorman who knows secrets by heart."""

    callers: Mapping[str, Caller]

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        secret = connection.headers.get("authorization", "").removeprefix("Bearer ")
        for offered in connection.scope.get("subprotocols") or ():
            if offered.startswith("openai-insecure-api-key."):
                secret = offered.removeprefix("openai-insecure-api-key.")
        caller = self.callers.get(secret)
        if caller is None or not caller.may(ability):
            raise UnknownKeyError("this key is not known here", next_step="bring another")
        return caller

    def again(self, caller: Caller) -> None:
        pass


@asynccontextmanager
async def small_house(
    home: Path, clock: Clock | None = None, keys: Mapping[str, Caller] | None = None, **settings: Any
) -> AsyncIterator[tuple[House, Models]]:
    """A house with one small course."""
    models = Models()
    capabilities = (
        Capability.DETECT,
        Capability.TRANSCRIBE,
        Capability.UNDERSTAND,
        Capability.EMBED,
        Capability.SPEAK,
    )
    rungs = [
        Rung(RungInfo(f"tiny-{one}", one, frozenset({"en"})), str(one), lambda: _with_rate(models))
        for one in capabilities
    ]
    spare = Rung(RungInfo("spare", Capability.EMBED, frozenset({"en"})), "spare", lambda: _with_rate(models))
    chosen = Settings({"home": str(home), "course": "small", **settings})
    async with Runtime([*rungs, spare], clock or FakeClock()) as runtime:
        library = open_library(chosen)
        if not any(info.name == "small" for info in library.list()):
            folder = home / "source"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "course.md").write_text(COURSE, encoding="utf-8")
            await add_course(runtime, library, folder, "small", language="en")
        known: Doorman = EveryoneIsLocal()
        if keys is not None:
            known = Guests(Keys(keys), runtime.clock, lambda name: any(one.key == name for one in keys.values()))
        yield House(runtime, chosen, known), models


def _with_rate(models: Models) -> Models:
    models.rate, models.dimensions = 22_050, 64  # type: ignore[attr-defined]
    return models


def app_of(house: House) -> Starlette:
    """The pages alone, whatever other doors there are."""
    return Starlette(routes=pages.routes(house))


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _scope(kind: str, target: str, key: str | None, headers: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    told = {**headers, **({"authorization": f"Bearer {key}"} if key and kind == "http" else {})}
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http" if kind == "http" else "ws",
        "headers": [(name.lower().encode(), value.encode()) for name, value in told.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def call(
    app: Starlette,
    target: str,
    *,
    method: str = "GET",
    key: str | None = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request, answered whole."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**_scope("http", target, key, headers or {}), "method": method}, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], told, b"".join(message.get("body", b"") for message in sent))


@dataclass
class Watching:
    """A page that reads server-sent events; `next` waits for one of that name."""

    chunks: "asyncio.Queue[bytes]"

    async def next(self, name: str) -> Any:
        while True:
            chunk = await asyncio.wait_for(self.chunks.get(), 20)
            for block in chunk.decode().split("\n\n"):
                if block.startswith(f"event: {name}\n"):
                    return json.loads(block.partition("data: ")[2])
                if name == "beat" and block.startswith(":"):
                    return None


@asynccontextmanager
async def watching(app: Starlette, target: str, key: str | None = None) -> AsyncIterator[Watching]:
    """Open until the block ends; then the client has gone."""
    page = Watching(asyncio.Queue())
    gone = asyncio.Event()
    asked = False

    async def receive() -> Any:
        nonlocal asked
        if asked:
            await gone.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        page.chunks.put_nowait(message.get("body", b""))

    scope = {**_scope("http", target, key, {}), "method": "GET"}
    serving = asyncio.create_task(app(scope, receive, send))
    try:
        yield page
    finally:
        gone.set()
        await asyncio.wait_for(serving, 20)


@dataclass
class Line:
    """A page's WebSocket."""

    to_server: "asyncio.Queue[Any]"
    from_server: "asyncio.Queue[Any]"
    subprotocol: str | None = None

    def send(self, data: bytes | str) -> None:
        kind = "bytes" if isinstance(data, bytes) else "text"
        self.to_server.put_nowait({"type": "websocket.receive", kind: data})

    async def next(self) -> Any:
        """The next message as JSON, or the close code."""
        message = await asyncio.wait_for(self.from_server.get(), 20)
        if message["type"] == "websocket.accept":
            self.subprotocol = message.get("subprotocol")
            return await self.next()
        if message["type"] == "websocket.close":
            return message.get("code", 1000)
        return json.loads(message["text"])

    async def until(self, kind: str) -> list[Any]:
        """Every message up to the first of that type."""
        told = []
        while True:
            message = await self.next()
            assert not isinstance(message, int), f"closed with {message} before {kind}"
            told.append(message)
            if message["type"] == kind:
                return told


@asynccontextmanager
async def line(app: Starlette, target: str, protocols: Sequence[str] = ("aula-captions",)) -> AsyncIterator[Line]:
    page = Line(asyncio.Queue(), asyncio.Queue())
    page.to_server.put_nowait({"type": "websocket.connect"})

    async def send(message: Any) -> None:
        page.from_server.put_nowait(message)

    scope = {**_scope("websocket", target, None, {}), "subprotocols": list(protocols)}
    serving = asyncio.create_task(app(scope, page.to_server.get, send))
    try:
        yield page
    finally:
        page.to_server.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait_for(serving, 20)


async def until(moves: Any, happened: Any, steps: int = 2000) -> None:
    """Let the loop and the worker threads go on, moving a FakeClock by `moves` seconds a step, until it happened."""
    for _ in range(steps):
        if happened():
            return
        if moves is not None:
            moves()
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


@contextmanager
def stepping(clock: FakeClock, seconds: float = 0.25) -> Iterator[None]:
    """Within the block the clock moves on by itself, a step for each turn of the loop."""

    async def step() -> None:
        while True:
            await asyncio.sleep(0)
            clock.advance(seconds)

    task = asyncio.ensure_future(step())
    try:
        yield
    finally:
        task.cancel()


def turn(question: str, moment: float = 1000.0, **changes: Any) -> TurnRecord:
    usual: dict[str, Any] = {
        "moment": moment,
        "tenant": "local",
        "course": "small",
        "language": "en",
        "door": "realtime",
        "clock": "A",
        "question": question,
        "answer": "An answer.",
        "intent": "content",
        "refused": False,
        "drafted": False,
        "timings_ms": {"transcribe": 10.0, "understand": 4.0, "commit_to_first_audio": 20.0},
    }
    return TurnRecord(**{**usual, **changes})


def sound(seconds: float, level: float = 0.5) -> bytes:
    """16-bit samples at 16 kHz."""
    return np.full(int(16_000 * seconds), int(32767 * level), "<i2").tobytes()
