"""The door with the client that nobody here wrote: openai's own, every event read strictly by its types."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from openai import AsyncOpenAI
from openai.types.beta.realtime import RealtimeServerEvent as BetaServerEvent
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.requests import HTTPConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from aula.core.clock import FakeClock
from aula.core.errors import KeyRefusedError
from aula.scheduling.admission import Quota
from aula.servers.callers import Caller
from aula.servers.realtime.formats import Coding, encoded
from aula.serving.rules import Rules
from tests.servers.realtime.speaking import Served, loud, quiet, served, text_of

GA: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
BETA: TypeAdapter[Any] = TypeAdapter(BetaServerEvent)
PUSH: Any = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
QUESTION: Any = {
    "type": "message",
    "role": "user",
    "content": [{"type": "input_text", "text": "What is inertia?"}],
}


@pytest.fixture
async def door(home: Path) -> AsyncIterator[Served]:
    async with served(home / "realtime") as one:
        yield one


def client(door: Served, key: str = "any") -> AsyncOpenAI:
    return AsyncOpenAI(api_key=key, base_url=door.http, websocket_base_url=door.websocket, max_retries=0)


async def until(connection: Any, kind: str, adapter: TypeAdapter[Any] = GA) -> list[dict[str, Any]]:
    """Events as they come, the last of them of that kind; each is what the types say."""
    events: list[dict[str, Any]] = []
    while True:
        raw = json.loads(await connection.recv_bytes())
        adapter.validate_python(_as_if_openai(raw) if adapter is BETA else raw)
        events.append(raw)
        assert raw["type"] == kind or raw["type"] != "error", raw
        if raw["type"] == kind:
            return events


def _as_if_openai(event: dict[str, Any]) -> dict[str, Any]:
    """The beta's types know OpenAI's own models alone."""
    if "session" not in event:
        return event
    return {**event, "session": {**event["session"], "model": "gpt-realtime"}}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """In order, without those that come as often as they like."""
    often = ("output_audio.delta", "response.audio.delta", "input_audio_transcription.delta")
    return [event["type"] for event in events if not event["type"].endswith(often)]


async def test_push_to_talk(door: Served) -> None:
    async with client(door).realtime.connect(model="aula:small") as connection:
        await connection.session.update(session=PUSH)
        await until(connection, "session.updated")
        for _ in range(15):
            await connection.input_audio_buffer.append(audio=text_of(loud(20)))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        events = await until(connection, "response.done")
    assert {"input_audio_buffer.committed", "conversation.item.input_audio_transcription.completed"} <= set(
        kinds(events)
    )
    said = next(event for event in events if event["type"].endswith("transcription.completed"))
    assert said["transcript"] == "what is inertia"
    done = events[-1]["response"]
    assert done["status"] == "completed"
    assert "Inertia is the tendency" in done["output"][0]["content"][0]["transcript"]
    assert done["aula"]["citations"][0]["passage"] == "Inertia"
    assert done["aula"]["clock"] == "A"
    assert done["aula"]["timings_ms"]["commit_to_first_audio"] >= 0
    assert [event["type"] for event in events].count("response.output_audio.delta") > 1
    (turn,) = door.house.turns.turns
    assert (turn.door, turn.clock, turn.question, turn.error) == ("realtime", "A", "what is inertia", None)


async def test_what_was_drafted_is_held_until_it_is_asked_for(door: Served) -> None:
    async with client(door).realtime.connect(model="aula:small") as connection:
        await connection.session.update(session=PUSH)
        await until(connection, "session.updated")
        warmed = len(door.speaker.said)
        for sound in (*[loud(20)] * 15, *[quiet(20)] * 20):
            await connection.input_audio_buffer.append(audio=text_of(sound))
        await _settled(lambda: len(door.speaker.said) == warmed + 1)
        await connection.conversation.item.retrieve(item_id="probe")
        events = await until(connection, "error")
        assert not [kind for kind in kinds(events) if kind.startswith("response.")]
        await connection.input_audio_buffer.commit()
        events = await until(connection, "conversation.item.input_audio_transcription.completed")
        assert not [kind for kind in kinds(events) if kind.startswith("response.")]
        await connection.response.create()
        done = (await until(connection, "response.done"))[-1]["response"]
    assert done["aula"]["drafted"]
    assert len(door.speaker.said) == warmed + 1, "what was held was let out, and nothing said anew"


async def test_a_draft_of_a_question_that_is_taken_back_is_never_heard(door: Served) -> None:
    async with client(door).realtime.connect(model="aula:small") as connection:
        await connection.session.update(session=PUSH)
        await until(connection, "session.updated")
        warmed, opened = len(door.speaker.said), door.transcriber.opened
        for sound in (*[loud(20)] * 15, *[quiet(20)] * 20):
            await connection.input_audio_buffer.append(audio=text_of(sound))
        await _settled(lambda: len(door.speaker.said) == warmed + 1)
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        item: Any = {**QUESTION, "content": [{"type": "input_text", "text": "Momentum?"}]}
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        events = await until(connection, "response.done")
    assert "Momentum is" in events[-1]["response"]["output"][0]["content"][0]["transcript"]
    assert door.transcriber.opened == door.transcriber.closed == opened + 1


async def test_the_beta_header_gets_beta_names(door: Served) -> None:
    headers = {"OpenAI-Beta": "realtime=v1"}
    async with client(door).realtime.connect(model="aula:small", extra_headers=headers) as connection:
        session: Any = {"turn_detection": None, "input_audio_format": "g711_ulaw", "modalities": ["audio", "text"]}
        update: Any = {"type": "session.update", "session": session}
        await connection.send(update)
        updated = (await until(connection, "session.updated", BETA))[-1]["session"]
        assert updated["input_audio_format"] == "g711_ulaw"
        assert updated["turn_detection"] is None
        assert updated["modalities"] == ["text", "audio"]
        sound = encoded(np.full(2400, 16_000, np.int16), Coding.ULAW)
        await connection.input_audio_buffer.append(audio=text_of(sound))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        events = await until(connection, "response.done", BETA)
    assert "conversation.item.created" in kinds(events)
    assert [kind for kind in kinds(events) if kind.startswith("response.")] == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.audio_transcript.delta",
        "response.audio.done",
        "response.audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    assert events[-1]["response"]["output"][0]["content"][0]["type"] == "audio"


async def test_an_open_microphone_answers_and_is_interrupted(door: Served) -> None:
    async with client(door).realtime.connect(model="aula") as connection:
        for sound in (quiet(300), loud(400), quiet(700)):
            await connection.input_audio_buffer.append(audio=text_of(sound))
        events = await until(connection, "response.output_audio_transcript.delta")
        assert kinds(events)[:4] == [
            "session.created",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
        ]
        started, stopped = events[1], next(e for e in events if e["type"].endswith("speech_stopped"))
        assert 0 <= started["audio_start_ms"] <= 300
        assert 650 <= stopped["audio_end_ms"] <= 800
        await connection.response.cancel()
        cancelled = (await until(connection, "response.done"))[-1]["response"]
        assert cancelled["status"] == "cancelled"


async def test_speech_interrupts_an_answer(door: Served) -> None:
    async with client(door).realtime.connect(model="aula") as connection:
        await connection.session.update(session={"type": "realtime", "audio": {"output": {"speed": 0.5}}})
        await connection.conversation.item.create(item=QUESTION)
        await connection.response.create()
        await until(connection, "response.created")
        await connection.input_audio_buffer.append(audio=text_of(loud(400)))
        events = await until(connection, "input_audio_buffer.speech_started")
        if "response.done" not in kinds(events):
            done = (await until(connection, "response.done"))[-1]["response"]
            assert done["status_details"]["reason"] == "turn_detected"


@pytest.mark.parametrize(("coding", "width"), [("audio/pcmu", 1), ("audio/pcma", 1), ("audio/pcm", 2)])
async def test_answers_sound_in_every_format(door: Served, coding: str, width: int) -> None:
    async with client(door).realtime.connect(model="aula") as connection:
        session: Any = {"type": "realtime", "audio": {"output": {"format": {"type": coding}}}}
        await connection.session.update(session=session)
        await connection.conversation.item.create(item=QUESTION)
        await connection.response.create()
        events = await until(connection, "response.done")
    length = sum(len(base64.b64decode(e["delta"])) for e in events if e["type"] == "response.output_audio.delta")
    words = len(events[-1]["response"]["output"][0]["content"][0]["transcript"].split())
    rate = 24_000 if width == 2 else 8_000
    assert length / width == pytest.approx(words * rate / 20, abs=rate / 1000)


async def test_the_conversation_is_remembered(door: Served) -> None:
    async with client(door).realtime.connect(model="aula") as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        for text in ("What is inertia?", "What is momentum?"):
            item: Any = {**QUESTION, "content": [{"type": "input_text", "text": text}]}
            await connection.conversation.item.create(item=item)
            await connection.response.create()
            events = await until(connection, "response.done")
            assert text.split()[2][:-1].capitalize() in events[-1]["response"]["output"][0]["content"][0]["text"]
        await connection.response.create(response={"conversation": "none", "input": []})
        events = await until(connection, "response.done")
        assert events[-1]["response"]["aula"]["intent"] == "greeting"


async def test_another_course_or_model_is_opened_or_refused(door: Served) -> None:
    async with client(door).realtime.connect(model="aula:none") as connection:
        event = await connection.recv()
        assert event.type == "error"
        assert event.error.code == "model_not_found"
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    async with client(door).realtime.connect(model="gpt-realtime") as connection:
        event = await connection.recv()
        assert event.type == "error"
        assert "aula:<course>" in event.error.message
    async with client(door).realtime.connect(model="aula") as connection:
        await until(connection, "session.created")
        await connection.session.update(session={"type": "realtime", "model": "aula:none"})
        error = (await until(connection, "error"))[-1]["error"]
        assert error["code"] == "model_not_found"
        await connection.session.update(session={"type": "realtime", "model": "aula:small"})
        await until(connection, "session.updated")


class OneKey:
    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        if connection.headers.get("authorization") != "Bearer right":
            raise KeyRefusedError("the key is wrong", next_step="bring the right one")
        return Caller(tenant="class-5b", key="teacher")

    def again(self, caller: Caller) -> None:
        pass


async def test_a_browser_gets_a_secret_of_its_own(home: Path) -> None:
    async with served(home / "realtime", doorman=OneKey()) as door:
        asked: Any = {"session": {"type": "realtime", "model": "aula:small", "output_modalities": ["text"]}}
        async with client(door, "right") as server:
            minted = await server.realtime.client_secrets.create(
                expires_after={"anchor": "created_at", "seconds": 60},
                **asked,
            )
        assert minted.value.startswith("ek_")
        assert minted.session.to_dict()["output_modalities"] == ["text"]
        async with client(door, minted.value).realtime.connect() as connection:
            created = (await until(connection, "session.created"))[-1]["session"]
            assert created["output_modalities"] == ["text"]
        subprotocols: Any = ["realtime", f"openai-insecure-api-key.{minted.value}"]
        async with websockets.connect(f"{door.websocket}/realtime", subprotocols=subprotocols) as socket:
            assert socket.subprotocol == "realtime"
            assert json.loads(await socket.recv())["type"] == "session.created"
        for key in ("wrong", minted.value[:-1] + ("A" if minted.value[-1] != "A" else "B"), "ek_", "ek_a_b"):
            with pytest.raises(InvalidStatus) as refused:
                await websockets.connect(
                    f"{door.websocket}/realtime", additional_headers={"Authorization": f"Bearer {key}"}
                )
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
        async with httpx.AsyncClient(base_url=door.http, headers={"Authorization": "Bearer right"}) as http:
            for body, status in (
                (b"{", 400),
                (b"[]", 400),
                (b"\xff", 400),
                (b'{"session":{"modalities":[]}}', 400),
                (b'{"expires_after":{"seconds":1}}', 400),
                (b'{"session":{"model":"aula:none"}}', 404),
                (b" " * 200_000, 413),
                (b"", 200),
            ):
                assert (await http.post("/realtime/client_secrets", content=body)).status_code == status
            http.headers.clear()
            assert (await http.post("/realtime/client_secrets")).status_code == 401


async def test_rates_are_told(home: Path) -> None:
    rules = Rules(usual=Quota(rate=1.0, burst=50))
    async with (
        served(home / "realtime", rules=rules) as door,
        client(door).realtime.connect(model="aula") as connection,
    ):
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await connection.response.create()
        (limit,) = (await until(connection, "rate_limits.updated"))[-1]["rate_limits"]
        assert (limit["name"], limit["limit"]) == ("requests", 50)
        assert 0 < limit["remaining"] <= 50


async def test_what_cannot_be_heard_is_told_once_and_not_for_every_frame(home: Path) -> None:
    rules = Rules(quotas={"somebody": Quota()}, strict=True)
    async with (
        served(home / "realtime", rules=rules) as door,
        client(door).realtime.connect(model="aula") as connection,
    ):
        for _ in range(20):
            await connection.input_audio_buffer.append(audio=text_of(loud(20)))
        assert "no tenant" in (await until(connection, "error"))[-1]["error"]["message"]
        await connection.session.update(session=PUSH)
        assert "error" not in kinds(await until(connection, "session.updated"))
        for _ in range(20):
            await connection.input_audio_buffer.append(audio=text_of(loud(20)))
        assert "no tenant" in (await until(connection, "error"))[-1]["error"]["message"]
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        events = await until(connection, "response.done")
        assert "conversation.item.input_audio_transcription.failed" in kinds(events)
        assert "no tenant" in events[-1]["response"]["status_details"]["error"]["message"]


async def test_one_connection_too_many_is_refused_and_comes_in_later(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(home / "realtime", realtime__sessions=20) as door:
        url = f"{door.websocket}/realtime"
        answers = await asyncio.gather(*(websockets.connect(url) for _ in range(30)), return_exceptions=True)
        inside = [one for one in answers if not isinstance(one, BaseException)]
        refused = [one for one in answers if isinstance(one, InvalidStatus)]
        assert (len(inside), len(refused)) == (20, 10)
        assert {one.response.status_code for one in refused} == {429}
        assert refused[0].response.headers["Retry-After"] == "5"
        assert door.door.statistics().refused == 10
        assert "ERROR" not in capsys.readouterr().err, "a refusal is no error of the server's"
        await asyncio.gather(*(one.close() for one in inside))
        await _settled(lambda: door.door.statistics().open == 0)
        async with websockets.connect(url) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"


async def test_frames_that_cannot_be_are_told_and_the_session_goes_on(door: Served) -> None:
    async with websockets.connect(f"{door.websocket}/realtime", max_size=None) as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"
        large = json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 10_000_000})
        for frame, code in (
            (large, "event_too_large"),
            ("{", "invalid_json"),
            ("[]", "invalid_event"),
            (b"\0\1", "invalid_event"),
            ("[" * 100_000, "invalid_json"),
            ('{"type": "\\ud800"}', None),
        ):
            await socket.send(frame)
            told = json.loads(await socket.recv())
            assert told["type"] == "error"
            assert code is None or told["error"]["code"] == code
        await socket.send('{"type": "session.update", "session": {}}')
        assert json.loads(await socket.recv())["type"] == "session.updated"


async def test_whoever_leaves_in_the_middle_leaves_nothing_behind(door: Served) -> None:
    for _ in range(3):
        socket = await websockets.connect(f"{door.websocket}/realtime")
        await socket.recv()
        await socket.send(json.dumps({"type": "session.update", "session": PUSH}))
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": text_of(loud(300))}))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        await socket.send(json.dumps({"type": "response.create"}))
        await socket.recv()
        socket.transport.abort()
    await _settled(lambda: door.door.statistics().open == 0 and door.transcriber.opened == door.transcriber.closed)


async def test_a_client_that_never_reads_is_left(home: Path) -> None:
    async with served(home / "realtime", realtime__outbox_kb=64) as door:
        socket = await websockets.connect(f"{door.websocket}/realtime", max_queue=1)
        await socket.recv()
        socket.transport.pause_reading()
        retrieve = json.dumps({"type": "conversation.item.retrieve", "item_id": "x" * 60})
        with suppress(ConnectionClosed):
            async with asyncio.timeout(20):
                while door.door.statistics().open:
                    await socket.send(retrieve)
        socket.transport.abort()
        await _settled(lambda: door.door.statistics().open == 0)


async def test_a_connection_that_is_half_open_is_left(home: Path) -> None:
    async with served(home / "realtime", ping_s=0.2) as door:
        socket = await websockets.connect(f"{door.websocket}/realtime")
        await socket.recv()
        socket.transport.pause_reading()  # so that no ping is answered
        await _settled(lambda: door.door.statistics().open == 0)
        socket.transport.abort()


async def test_a_client_that_says_nothing_is_left(home: Path) -> None:
    clock = FakeClock()
    async with (
        served(home / "realtime", clock=clock, realtime__idle_seconds=60) as door,
        websockets.connect(f"{door.websocket}/realtime") as socket,
    ):
        assert json.loads(await socket.recv())["type"] == "session.created"
        clock.advance(59)
        await socket.send('{"type": "session.update", "session": {}}')
        assert json.loads(await socket.recv())["type"] == "session.updated"
        clock.advance(59)
        await socket.send('{"type": "response.create"}')
        assert json.loads(await socket.recv())["type"] == "response.created"
        clock.advance(61)
        while (event := json.loads(await socket.recv()))["type"] != "error":
            clock.advance(5)
        assert event["error"]["code"] == "session_idle_timeout"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000


async def _settled(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in the server's own tasks
            await asyncio.sleep(0.001)
