"""OpenAI's own client against a served port, with tiny models behind it."""

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile

from aula.assistant.generator import Generator
from aula.core.errors import BackendError, OverloadError
from aula.servers.openai.shapes import SpeechRequest
from tests.servers.doors import INERTIA, Served, recording, served


@asynccontextmanager
async def _client(home: Path, **options: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, Served]]:
    async with (
        served(home, **options) as door,
        openai.AsyncOpenAI(base_url=door.openai, api_key="unused", max_retries=0) as client,
    ):
        yield client, door


async def test_models_are_the_courses_and_what_the_runtime_can(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        names = [model.id async for model in client.models.list()]
        assert {"aula", "aula:small", "aula-transcribe", "aula-speak", "aula-embed"} <= set(names)
        assert (await client.models.retrieve("aula:small")).owned_by == "aula"
        assert (await client.models.retrieve("whisper-1")).id == "aula-transcribe"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-9")
        assert caught.value.code == "model_not_found"


async def test_a_question_is_answered_from_the_course_and_cited(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, door):
        done = await client.chat.completions.create(
            model="aula", messages=[{"role": "user", "content": "What is inertia?"}]
        )
        assert done.choices[0].message.content == INERTIA
        extension = done.model_extra["aula"]  # type: ignore[index]
        assert extension["citations"][0]["document"] == "motion.md"
        assert extension["refused"] is False
        assert done.usage is not None
        assert done.usage.completion_tokens == len(INERTIA.split())
        (turn,) = door.house.turns.turns
        assert (turn.question, turn.answer, turn.door, turn.clock) == ("What is inertia?", INERTIA, "openai", "text")
        assert not door.models.said, "nobody listens: nothing is spoken"


async def test_a_streamed_answer_is_the_same_text_and_ends_with_its_citations(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        stream = await client.chat.completions.create(
            model="aula:small",
            messages=[{"role": "user", "content": [{"type": "text", "text": "What is inertia?"}]}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == INERTIA
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-2].model_extra["aula"]["citations"][0]["passage"]  # type: ignore[index]
        assert chunks[-1].usage is not None


async def test_what_the_assistant_said_can_be_asked_for_again(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        done = await client.chat.completions.create(
            model="aula",
            messages=[
                {"role": "user", "content": "What is momentum?"},
                {"role": "assistant", "content": "It is mass times velocity."},
                {"role": "user", "content": "Again please"},
            ],
        )
        assert done.choices[0].message.content == "It is mass times velocity."


async def test_a_generator_goes_on_and_what_it_does_wrong_is_told(tmp_path: Path) -> None:
    answers = [("Its velocity stays unchanged [1].", 200), ("", 500)]

    def upstream(_request: httpx2.Request) -> httpx2.Response:
        text, status = answers.pop(0)
        body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        return httpx2.Response(status, json=body)

    question: Any = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}
    async with _client(tmp_path) as (client, door):
        door.house.generator = Generator(
            "http://upstream/v1",
            "m",
            door.house.runtime.clock,
            seconds=30.0,
            most_tokens=50,
            transport=httpx2.MockTransport(upstream),
        )
        chunks = [chunk async for chunk in await client.chat.completions.create(**question, stream=True)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == f"{INERTIA} Its velocity stays unchanged. [1]"
        assert chunks[-1].model_extra["aula"]["source"] == "generated"
        done = await client.chat.completions.create(**question)
        assert done.choices[0].message.content == INERTIA
        extension = done.model_extra["aula"]
        assert (extension["source"], extension["fallback"]) == ("extractive", "status_500")
        await door.house.generator.close()


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_are_the_same_in_both_encodings(tmp_path: Path, encoding: Any) -> None:
    async with _client(tmp_path) as (client, _):
        made = await client.embeddings.create(
            model="aula-embed", input=["one", "three"], encoding_format=encoding, dimensions=4
        )
        told: list[Any] = [one.embedding for one in made.data]
        vectors = [
            np.frombuffer(base64.b64decode(one), "<f4") if isinstance(one, str) else np.array(one, np.float32)
            for one in told
        ]
        assert [one.index for one in made.data] == [0, 1]
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


async def test_an_openai_name_does_not_stand_for_another_models_vectors(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="text-embedding-3-small", input="x")


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus", "pcm"])
async def test_speech_in_every_format_is_as_long_as_it_was_made(tmp_path: Path, form: Any) -> None:
    async with _client(tmp_path) as (client, door):
        made = await client.audio.speech.create(
            model="tts-1", voice="alloy", input="one two three four five six", response_format=form
        )
        raw = made.read()
        assert _seconds(raw, form) == pytest.approx(0.3, abs=0.1)
        assert door.models.said[0].voice is None
        assert made.response.headers["x-aula-rung"] == "tiny-speak"
    assert door.models.open == door.models.closed


def _seconds(raw: bytes, form: str) -> float:
    if form == "pcm":
        return len(raw) / 2 / 24_000
    with soundfile.SoundFile(io.BytesIO(raw)) as file:
        file.seekable = lambda: False
        blocks = []
        while len(block := file.read(4800)):
            blocks.append(len(block))
        return float(sum(blocks) / file.samplerate)


async def test_a_format_without_a_free_encoder_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        with pytest.raises(openai.BadRequestError, match="mp3, opus, flac, wav, pcm") as caught:
            await client.audio.speech.create(model="tts-1", voice="alloy", input="x", response_format="aac")
        assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_format")


async def test_speech_as_events_carries_the_same_bytes(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        plain = await client.audio.speech.create(model="tts-1", voice="alloy", input="one two", response_format="pcm")
        async with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="one two", response_format="pcm", stream_format="sse"
        ) as response:
            lines = [line async for line in response.iter_lines() if line]
        events = [openai.BaseModel.model_validate_json(line.removeprefix("data: ")).model_dump() for line in lines]
        sound = b"".join(base64.b64decode(one["audio"]) for one in events if one["type"] == "speech.audio.delta")
        assert sound == plain.read()
        assert events[-1]["type"] == "speech.audio.done"


async def test_speed_is_a_pace(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, door):
        await client.audio.speech.create(model="tts-1", voice="en-us+f2", input="x", speed=2.0)
        assert (door.models.said[0].voice, door.models.said[0].words_per_minute) == ("en-us+f2", 330)
    assert SpeechRequest("m", "i").voice == "alloy"


async def test_a_recording_is_written_down_in_every_format(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, door):

        async def made(form: Any) -> Any:
            return await client.audio.transcriptions.create(
                model="whisper-1", file=("q.wav", recording(0.35)), response_format=form
            )

        assert (await made("json")).text == "what is inertia"
        assert (await made("text")).strip() == "what is inertia"
        assert (await made("srt")).startswith("1\n00:00:00,000 --> 00:00:00,100\nwhat\n")
        assert (await made("vtt")).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.100\nwhat\n")
        verbose = await made("verbose_json")
        assert (verbose.language, verbose.duration) == ("en", pytest.approx(0.35))
        assert [one.text for one in verbose.segments] == ["what", "is", "inertia"]
    assert door.models.open == door.models.closed


async def test_a_streamed_transcript_is_the_text_piece_by_piece(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        stream = await client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=("q.wav", recording(0.35)), stream=True
        )
        events = [event async for event in stream]
        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert len(deltas) == 3
        assert events[-1].type == "transcript.text.done"
        assert "".join(deltas) == events[-1].text == "what is inertia"


async def test_silence_is_no_error(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        made = await client.audio.transcriptions.create(model="whisper-1", file=("q.wav", recording(0.5, 0.0)))
        assert made.text == ""


@pytest.mark.parametrize(
    ("sound", "told"),
    [
        (b"", "0 bytes"),
        (b"no sound at all, but some text", "not audio"),
        (recording(1.0)[:4000], "ends early"),
        (recording(3.0), "more than 2 s"),
    ],
    ids=["empty", "text", "cut", "long"],
)
async def test_unusable_recordings_are_the_callers_errors(tmp_path: Path, sound: bytes, told: str) -> None:
    async with _client(tmp_path, serve__max_audio_seconds=2.0) as (client, door):
        with pytest.raises(openai.BadRequestError, match=told) as caught:
            await client.audio.transcriptions.create(model="whisper-1", file=("q.wav", sound))
        assert caught.value.code == "invalid_audio"
    assert door.models.open == door.models.closed


async def test_refusals_and_failures_have_their_own_status_and_say_when_to_come_back(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, door):
        door.models.failure = OverloadError("too much", reason="rate", retry_after_s=2.2, next_step="wait")
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="aula-embed", input="x")
        assert caught.value.response.headers["retry-after"] == "3"
        door.models.failure = BackendError("broken", next_step="mend it")
        with pytest.raises(openai.InternalServerError) as failed:
            await client.embeddings.create(model="aula-embed", input="x")
        assert failed.value.status_code == 503
        assert failed.value.code == "out_of_order"


async def test_the_headers_of_a_request_reach_the_scheduler(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, door):
        headers = {"X-Aula-Tier": "batch", "X-Aula-Tenant": "5b", "X-Aula-Deadline-Ms": "60000"}
        await client.chat.completions.create(
            model="aula", messages=[{"role": "user", "content": "What is inertia?"}], extra_headers=headers
        )
        context = door.models.contexts[-1]
        assert (context.tier, context.tenant) == ("batch", "5b")
        assert context.deadline is not None
        for bad in ({"X-Aula-Tier": "urgent"}, {"X-Aula-Deadline-Ms": "-1"}, {"X-Aula-Deadline-Ms": "nan"}):
            with pytest.raises(openai.BadRequestError):
                await client.embeddings.create(model="aula-embed", input="x", extra_headers=bad)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {"model": "aula", "messages": []}, "messages"),
        ("/chat/completions", {"model": "aula"}, "messages"),
        ("/chat/completions", {"model": "aula", "messages": [{"role": "system", "content": "x"}]}, "messages"),
        ("/chat/completions", {"model": "aula", "messages": [{"role": "king"}]}, "messages[0].role"),
        ("/chat/completions", {"model": "other", "messages": [{"role": "user", "content": "x"}]}, "model"),
        ("/embeddings", {"model": "aula-embed", "input": [1, 2, 3]}, "input[0]"),
        ("/embeddings", {"model": "aula-embed", "input": "x", "dimensions": 3}, "dimensions"),
        ("/audio/speech", {"model": "tts-1", "input": ""}, "input"),
        ("/audio/speech", {"model": "whisper-1", "input": "x"}, "model"),
    ],
)
async def test_a_bad_field_is_named(tmp_path: Path, path: str, body: Any, param: str) -> None:
    async with _client(tmp_path) as (client, _):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            await client.post(path, body=body, cast_to=object)
        assert caught.value.param == param
        assert "Next:" in caught.value.message
