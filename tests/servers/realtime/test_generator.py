"""A spoken answer with a generator behind it: the course begins, the generator goes on, and whatever it does wrong is
never heard."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from aula.assistant.dialogue import Dialogue, Prepared
from aula.assistant.generator import Generator
from aula.core.clock import FakeClock
from aula.core.types import Answer, Context, Intent, Understanding
from tests.servers.realtime.speaking import VOICE_RATE, Served, listening, loud, quiet, served, text_of

FIRST = "Inertia is the tendency of every object to keep its velocity unchanged."
GOOD = "An object at rest keeps its velocity unchanged [1]."
SAID = "An object at rest keeps its velocity unchanged."
PUSH = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
CHUNK_S = VOICE_RATE // 20 / VOICE_RATE


def _event(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


class Upstream(httpx2.AsyncByteStream):
    """A generator that says `pieces`, and behind an Event waits for it."""

    def __init__(self, *pieces: bytes | asyncio.Event, status: int = 200) -> None:
        self.asked: list[dict[str, Any]] = []
        self.closed = False
        self._pieces = pieces
        self._status = status

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(json.loads(request.content))
        return httpx2.Response(self._status, headers={"content-type": "text/event-stream"}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                yield piece

    async def aclose(self) -> None:
        self.closed = True


@asynccontextmanager
async def _asking(
    home: Path, upstream: Any, clock: FakeClock | None = None, url: str = "http://upstream/v1"
) -> AsyncIterator[tuple[Any, Served]]:
    """A socket in push-to-talk, and the door, with that generator behind it."""
    async with served(home / "realtime", clock=clock, realtime__ahead_ms=3_600_000) as door:
        generator = Generator(
            url,
            "m",
            door.house.runtime.clock,
            seconds=30.0,
            most_tokens=50,
            transport=None if upstream is None else httpx2.MockTransport(upstream),
        )
        door.house.generator = generator
        async with websockets.connect(f"{door.websocket}/realtime") as socket:
            await socket.send(json.dumps({"type": "session.update", "session": PUSH}))
            await _until(socket, "session.updated")
            yield socket, door
        await generator.close()


async def _until(socket: Any, kind: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not events or events[-1]["type"] != kind:
            events.append(json.loads(await socket.recv()))
    return events


async def _say(socket: Any) -> None:
    """ "what is inertia", and what is to be answered."""
    for event in (
        {"type": "input_audio_buffer.append", "audio": text_of(loud(350) + quiet(100))},
        {"type": "input_audio_buffer.commit"},
        {"type": "response.create"},
    ):
        await socket.send(json.dumps(event))


def _words(events: list[dict[str, Any]]) -> list[str]:
    return [event["delta"] for event in events if event["type"] == "response.output_audio_transcript.delta"]


async def test_the_course_begins_and_the_generator_goes_on_aloud(home: Path) -> None:
    upstream = Upstream(_event(f"{GOOD} "), _event("", finish_reason="stop"), b"data: [DONE]\n\n")
    async with _asking(home, upstream) as (socket, door):
        await _say(socket)
        events = await _until(socket, "response.done")
        response = events[-1]["response"]
        assert _words(events) == [FIRST, f" {SAID} [1]"]
        assert response["output"][0]["content"][0]["transcript"] == f"{FIRST} {SAID} [1]"
        assert response["aula"]["source"] == "generated"
        assert "fallback" not in response["aula"]
        assert response["aula"]["citations"], "what it cites can be opened"
        spoken = [one.text for one in door.speaker.said]
        assert spoken[-2:] == [FIRST, SAID], "no mark is spoken"
        kinds = [event["type"] for event in events if event["type"] != "response.output_audio.delta"]
        assert kinds.index("response.output_audio.done") > len(kinds) - 8
        first_sound = next(i for i, one in enumerate(events) if one["type"] == "response.output_audio.delta")
        assert first_sound < events.index(next(one for one in events if one.get("delta") == f" {SAID} [1]"))
        (turn,) = door.house.turns.turns
        assert turn.answer == f"{FIRST} {SAID} [1]"
        assert FIRST in upstream.asked[0]["messages"][1]["content"]
        assert upstream.closed


async def test_what_the_generator_said_can_be_asked_for_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Answer] = []
    amend = Dialogue.amend

    def amended(self: Dialogue, prepared: Prepared, answer: Answer) -> None:
        amend(self, prepared, answer)
        repeated = self._own_answer(Understanding(Intent.REPEAT, 1.0, np.zeros(4, np.float32)), Context("en"))
        assert repeated is not None
        said.append(repeated)

    monkeypatch.setattr(Dialogue, "amend", amended)
    upstream = Upstream(_event(GOOD), b"data: [DONE]\n\n")
    async with _asking(home, upstream) as (socket, _):
        await _say(socket)
        await _until(socket, "response.done")
        async with asyncio.timeout(20):
            while not said:  # noqa: ASYNC110 - the server's own task
                await asyncio.sleep(0.001)
    assert [(one.text, one.citations[0].course) for one in said] == [(f"{FIRST} {SAID}", "small")]
    assert len(upstream.asked) == 1, "once"


@pytest.mark.parametrize(
    ("why", "upstream"),
    [
        ("status_500", lambda: Upstream(b"oops", status=500)),
        ("not_json", lambda: Upstream(b"data: {oops\n\n")),
        ("failed", lambda: Upstream(b'data: {"error": {"message": "out of memory"}}\n\n')),
        ("cut", lambda: Upstream(_event("An object at"))),
        ("refused", lambda: Upstream(_event("x", finish_reason="content_filter"), b"data: [DONE]\n\n")),
        ("uncited", lambda: Upstream(_event("I am sorry, but I cannot help."), b"data: [DONE]\n\n")),
        ("language", lambda: Upstream(_event("惯性是物体保持速度不变的性质 [1]。"), b"data: [DONE]\n\n")),
        ("unsupported", lambda: Upstream(_event("Paris hosts wonderful museums [1]."), b"data: [DONE]\n\n")),
        ("endless", lambda: Upstream(*[_event("word ")] * 300)),
        ("empty", lambda: Upstream(b"data: [DONE]\n\n")),
    ],
)
async def test_whatever_it_does_wrong_is_never_heard(home: Path, why: str, upstream: Callable[[], Upstream]) -> None:
    asked = upstream()
    async with _asking(home, asked) as (socket, door):
        await _say(socket)
        events = await _until(socket, "response.done")
        response = events[-1]["response"]
        assert response["status"] == "completed"
        assert response["output"][0]["content"][0]["transcript"] == FIRST, "the course's own answer, and no more"
        assert (response["aula"]["source"], response["aula"]["fallback"]) == ("extractive", why)
        spoken = " ".join(one.text for one in door.speaker.said)
        for word in ("sorry", "Paris", "惯性", "word", "object at"):
            assert word not in spoken.replace(FIRST, "")
        assert asked.closed


@pytest.mark.parametrize(("ending", "source"), [([b"data: [DONE]\n\n"], "generated"), ([], "extractive")])
async def test_over_a_true_connection(home: Path, ending: list[bytes], source: str) -> None:
    """An upstream that is cut off in the middle of its first sentence, and one that is not."""
    text = GOOD if ending else GOOD[:20]

    async def said() -> AsyncIterator[bytes]:
        for piece in (*(_event(one) for one in text), *ending):
            yield piece

    async def answer(_request: Request) -> StreamingResponse:
        return StreamingResponse(said(), media_type="text/event-stream")

    upstream = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    async with listening(upstream) as port, _asking(home, None, url=f"http://127.0.0.1:{port}/v1") as (socket, _):
        await _say(socket)
        told = (await _until(socket, "response.done"))[-1]["response"]["aula"]
        assert (told["source"], told.get("fallback")) == (source, None if ending else "cut")


async def test_one_that_is_silent_while_the_answer_pauses_is_left(home: Path) -> None:
    """It is not given its thirty seconds: the student hears nothing meanwhile."""
    clock, never = FakeClock(), asyncio.Event()
    upstream = Upstream(never)
    async with _asking(home, upstream, clock) as (socket, _):
        await _say(socket)
        sounded = len(FIRST.split()) * CHUNK_S
        waiting = asyncio.ensure_future(_until(socket, "response.done"))
        while not waiting.done():
            await asyncio.sleep(0.001)
            clock.advance(0.05)
        events = await waiting
        assert events[-1]["response"]["aula"]["fallback"] == "timeout"
        assert events[-1]["response"]["output"][0]["content"][0]["transcript"] == FIRST
        assert clock.now() < 30.0
        assert clock.now() > sounded
        assert upstream.closed


async def test_an_answer_that_is_stopped_stops_the_generator(home: Path) -> None:
    never = asyncio.Event()
    upstream = Upstream(_event(f"{GOOD} An"), never)
    async with _asking(home, upstream) as (socket, _):
        await _say(socket)
        while True:
            events = await _until(socket, "response.output_audio_transcript.delta")
            if events[-1]["delta"] != FIRST:
                break
        await socket.send(json.dumps({"type": "response.cancel"}))
        done = (await _until(socket, "response.done"))[-1]["response"]
        assert done["status"] == "cancelled"
        async with asyncio.timeout(20):
            while not upstream.closed:  # noqa: ASYNC110 - it ends in the server's own task
                await asyncio.sleep(0.001)


async def test_a_written_answer_goes_on_too(home: Path) -> None:
    upstream = Upstream(_event(GOOD), b"data: [DONE]\n\n")
    async with _asking(home, upstream) as (socket, door):
        await socket.send(
            json.dumps(
                {
                    "type": "conversation.item.create",
                    "item": {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "What is inertia?"}],
                    },
                }
            )
        )
        before = len(door.speaker.said)
        await socket.send(json.dumps({"type": "response.create", "response": {"output_modalities": ["text"]}}))
        events = await _until(socket, "response.done")
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == f"{FIRST} {SAID} [1]"
        assert len(door.speaker.said) == before
