"""What the teacher's page asks: questions as they come in, and captions of the lecture."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from time import time

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from aula.assistant.dialogue import Dialogue
from aula.assistant.endpointing import EndpointingOptions
from aula.core.errors import AudioError, AulaError, EngineError, InputError, NotAudioError, OverloadError
from aula.core.types import SPEECH_RATE, UNKNOWN_LANGUAGE, Context, Float32
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.pages.answers import told
from aula.servers.pages.feeds import BEAT, BEAT_SECONDS, EventStream, Feed, Feeds, event
from aula.servers.pages.lecture import Caption, Lecture, Words
from aula.servers.pages.likeness import Likeness
from aula.servers.pages.topics import board

ABILITY = "teach"
SUBPROTOCOL = "aula-captions"
TIERS = ("question", "caption", "vision", "batch")
REST_SECONDS = 0.5
"""Between two boards: a class that asks all at once is told of twice a second."""
MOST_LECTURES = 32
MOST_WAITING = 10 * SPEECH_RATE
"""Samples that may wait to be heard. What is more is passed over, for captions that come later help nobody."""
_TOGETHER = SPEECH_RATE // 2
_MOST_FRAME = 2 * SPEECH_RATE * 5
_POLICY, _NORMAL = 1008, 1000


class Teacher:
    def __init__(self, house: House, wall: Callable[[], float] = time) -> None:
        self._house = house
        self._wall = wall
        self._feeds = Feeds()
        self._lectures = 0

    async def questions(self, request: Request) -> EventStream:
        """Event `board` now and whenever a turn ended, until the page is closed. `minutes` back, all without it;
        `course` alone, or all of the class."""
        caller = self._house.doorman.admit(request, ABILITY)
        minutes = request.query_params.get("minutes", "")
        if not (minutes == "" or (minutes.isdigit() and 0 < int(minutes) < 10_000)):
            raise InputError(f"minutes is {minutes[:40]!r}", next_step="give a whole number, or leave it out")
        self._feeds.enter()
        events = self._boards(caller, request.query_params.get("course", ""), int(minutes) if minutes else None)
        return EventStream(events, self._feeds.leave)

    async def _boards(self, caller: Caller, course: str, minutes: int | None) -> AsyncGenerator[bytes, None]:
        house, clock = self._house, self._house.runtime.clock
        feed, likeness = Feed(), Likeness(house.runtime)
        context = replace(caller.context("en"), tier="batch")
        unwatch = house.turns.watch(
            lambda turn: feed.put("new", None, latest=True) if turn.tenant == caller.tenant else None
        )
        try:
            while True:
                feed.take()
                since = self._wall() - 60 * minutes if minutes else 0.0
                turns = [
                    turn
                    for turn in tuple(house.turns.turns)
                    if turn.tenant == caller.tenant and turn.moment >= since and course in ("", turn.course)
                ]
                yield event("board", await board(turns, house.course, likeness, context))
                await clock.sleep_until(clock.now() + REST_SECONDS)
                while not await feed.wait(clock, clock.now() + BEAT_SECONDS):
                    yield BEAT
        finally:
            unwatch()

    async def captions(self, socket: WebSocket) -> None:
        """16-bit samples at 16 kHz in, as binary messages; `{"type": "end"}` ends the lecture. Out: `ready`, `words`,
        `caption`, `skipped`, `ended` or `error`, each a JSON object."""
        offered = socket.scope.get("subprotocols") or ()
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        # A browser's script cannot read why a handshake was refused, so that it is told inside.
        with suppress(WebSocketDisconnect, OSError, RuntimeError):
            try:
                await self._visit(socket)
            except AulaError as error:
                await socket.send_text(_message("error", error=told(error)))
                await socket.close(_POLICY)
            else:
                if socket.application_state is WebSocketState.CONNECTED:
                    await socket.close(_NORMAL)

    async def _visit(self, socket: WebSocket) -> None:
        """Raises AulaError for what the page is to say."""
        caller = self._house.doorman.admit(socket, ABILITY)
        if self._lectures >= MOST_LECTURES:
            raise OverloadError(
                f"{self._lectures} lectures are being captioned, which is as many as may",
                reason="connections",
                retry_after_s=30.0,
                next_step="end one of them, or try again in a moment",
            )
        self._lectures += 1
        line = _Line()
        reading: asyncio.Task[None] | None = None
        try:
            async with await self._open(socket, caller) as lecture:
                await socket.send_text(_message("ready"))
                reading = asyncio.create_task(_read(socket, line))
                await _hear(socket, line, lecture)
            await reading
        finally:
            self._lectures -= 1
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})

    async def _open(self, socket: WebSocket, caller: Caller) -> Lecture:
        course = await self._house.course(socket.query_params.get("course") or None)
        language = socket.query_params.get("language") or course.info.language or UNKNOWN_LANGUAGE
        tier = TIERS[max(TIERS.index(caller.tier), TIERS.index("caption"))]
        context: Context = replace(caller.context(language), tier=tier)
        runtime, settings = self._house.runtime, self._house.settings
        vocabulary = await asyncio.to_thread(Dialogue(runtime, course, settings).vocabulary)
        return await Lecture.open(runtime, vocabulary, context, EndpointingOptions.from_settings(settings))


class _Line:
    """Sound that waits to be heard; `skipped` samples were passed over."""

    def __init__(self) -> None:
        self.skipped = 0
        self._waiting: deque[Float32] = deque()
        self._samples = 0
        self._ended = False
        self._error: AulaError | None = None
        self._more = asyncio.Event()

    def put(self, samples: Float32) -> None:
        if self._samples + len(samples) > MOST_WAITING:
            self.skipped += self._samples
            self._waiting.clear()
            self._samples = 0
        self._waiting.append(samples)
        self._samples += len(samples)
        self._more.set()

    def end(self, error: AulaError | None = None) -> None:
        self._ended, self._error = True, error
        self._more.set()

    async def take(self) -> Float32 | None:
        """What waits, half a second of it at the most; None at the end. Raises the error that it ended with."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        taken = [self._waiting.popleft()]
        while self._waiting and sum(map(len, taken)) + len(self._waiting[0]) <= _TOGETHER:
            taken.append(self._waiting.popleft())
        self._samples -= sum(map(len, taken))
        return np.concatenate(taken)


async def _read(socket: WebSocket, line: _Line) -> None:
    """Until the page says that the lecture is over, or goes."""
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                line.end()
                return
            if (raw := message.get("bytes")) is not None:
                line.put(_samples(raw))
            elif _is_end(message.get("text") or ""):
                line.end()
                return
    except AudioError as error:
        line.end(error)
    except Exception:
        line.end(EngineError("the line broke", next_step="begin again"))
        raise


async def _hear(socket: WebSocket, line: _Line, lecture: Lecture) -> None:
    while (samples := await line.take()) is not None:
        if line.skipped:
            skipped, line.skipped = line.skipped, 0
            await socket.send_text(_message("skipped", seconds=skipped / SPEECH_RATE))
        await _tell(socket, lecture, await lecture.hear(samples))
    await _tell(socket, lecture, await lecture.end())
    await socket.send_text(_message("ended"))


async def _tell(socket: WebSocket, lecture: Lecture, news: list[Caption | Words]) -> None:
    for one in news:
        if isinstance(one, Caption):
            fields = {"start": one.start, "end": one.end, "text": one.text, "lag": one.lag, "rung": lecture.rung}
            await socket.send_text(_message("caption", **fields))
        else:
            await socket.send_text(_message("words", text=one.text))


def _samples(raw: bytes) -> Float32:
    """Raises NotAudioError."""
    if len(raw) % 2 or len(raw) > _MOST_FRAME:
        raise NotAudioError(
            f"a message has {len(raw)} bytes", next_step=f"send whole 16-bit samples, {_MOST_FRAME} bytes at the most"
        )
    return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(32768)


def _is_end(text: str) -> bool:
    """Any text that is not the end is passed over."""
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("type") == "end"


def _message(kind: str, **fields: object) -> str:
    return msgspec.json.encode({"type": kind, **fields}).decode()
