import json
from pathlib import Path
from typing import Any

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import NoRungError
from aula.core.types import SPEECH_RATE
from aula.servers.callers import Caller
from aula.servers.pages.lecture import LONGEST_SECONDS
from aula.servers.pages.teacher import _Line, _samples
from tests.servers.pages.people import app_of, line, small_house, sound

END = json.dumps({"type": "end"})
KEYS = {"teacher": Caller("class-5b", tier="vision", abilities=frozenset({"teach"})), "pupil": Caller("class-5b")}


def _texts(told: list[Any], kind: str) -> list[str]:
    return [message["text"] for message in told if message["type"] == kind]


async def _said(page: Any, *pieces: bytes) -> list[Any]:
    """In pieces of 100 ms, as a browser sends them, to the end."""
    for piece in pieces:
        for start in range(0, len(piece), 3200):
            page.send(piece[start : start + 3200])
    page.send(END)
    told: list[Any] = await page.until("ended")
    return told


async def test_words_appear_as_they_are_said_and_a_pause_makes_a_caption(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models), line(app_of(house), "/pages/captions") as page:
        assert (await page.next())["type"] == "ready"
        told = await _said(page, sound(1.0), sound(1.5, 0.0), sound(0.5), sound(1.0, 0.0))
        assert await page.next() == 1000
        assert page.subprotocol == "aula-captions"
        captions = [message for message in told if message["type"] == "caption"]
        assert [len(caption["text"].split()) for caption in captions] == [10, 5]
        assert "a force is" in " ".join(_texts(told, "words"))
        assert captions[0]["rung"] == "tiny-transcribe"
        assert 0.0 <= captions[0]["start"] < captions[0]["end"] <= captions[1]["start"] < captions[1]["end"] <= 4.1
        assert models.opened == models.closed


async def test_a_rung_that_tells_times_finishes_captions_while_somebody_speaks(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models), line(app_of(house), "/pages/captions") as page:
        models.tells_times = True
        told = await _said(page, sound(2.0), sound(1.0, 0.0), sound(1.0))
        captions = _texts(told, "caption")
        assert len(captions) > 4
        words = " ".join(captions).split()
        assert len(words) == 30, "nothing is told twice, and nothing is left out"
        assert len(models.requests) == 1, "its stream stays open over a pause"
        assert models.requests[0].timestamps
        assert models.requests[0].early


async def test_speech_without_a_pause_is_cut_after_a_while(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _), line(app_of(house), "/pages/captions") as page:
        captions: list[Any] = []
        while not captions:
            page.send(sound(0.5))
            captions = [message for message in await page.until("words") if message["type"] == "caption"]
        assert captions[0]["end"] - captions[0]["start"] == pytest.approx(LONGEST_SECONDS, abs=1.0)


async def test_silence_says_nothing(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models), line(app_of(house), "/pages/captions") as page:
        told = await _said(page, sound(3.0, 0.0))
        assert [message["type"] for message in told] == ["ready", "ended"]
        assert models.requests == []


async def test_the_course_its_words_and_the_tier_of_captions(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models):
        async with line(app_of(house), "/pages/captions?course=small&language=en") as page:
            await _said(page, sound(0.5))
        assert (
            "Inertia is the tendency of every object to keep its velocity unchanged." in models.requests[0].vocabulary
        )
        assert {context.tier for context in models.contexts[-2:]} == {"caption"}


async def test_the_key_comes_as_a_subprotocol_and_no_tier_is_raised(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, models):
        secret = "openai-insecure-api-key.teacher"
        async with line(app_of(house), "/pages/captions", ("aula-captions", secret)) as page:
            await _said(page, sound(0.5))
            assert page.subprotocol == "aula-captions"
        assert {(context.tenant, context.tier) for context in models.contexts[-2:]} == {("class-5b", "vision")}


@pytest.mark.parametrize("protocols", [("aula-captions",), ("openai-insecure-api-key.wrong",), ()])
async def test_whoever_may_not_teach_is_told_so_and_left(tmp_path: Path, protocols: tuple[str, ...]) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, models):
        async with line(app_of(house), "/pages/captions", protocols) as page:
            told = await page.next()
            assert (told["type"], told["error"]["kind"]) == ("error", "UnknownKeyError")
            assert await page.next() == 1008
        assert models.requests == []


@pytest.mark.parametrize("frame", [b"odd", b"\0" * 200_000])
async def test_what_is_no_sound_ends_the_lecture_with_a_reason(tmp_path: Path, frame: bytes) -> None:
    async with small_house(tmp_path) as (house, models):
        async with line(app_of(house), "/pages/captions") as page:
            page.send(sound(0.5))
            page.send(frame)
            told = await page.until("error")
            assert told[-1]["error"]["kind"] == "NotAudioError"
            assert await page.next() == 1008
        assert models.opened == models.closed


async def test_what_the_runtime_refuses_is_told(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models), line(app_of(house), "/pages/captions") as page:
        assert (await page.next())["type"] == "ready"
        models.failure = NoRungError("out of order", next_step="wait")
        page.send(sound(0.5))
        assert (await page.until("error"))[-1]["error"]["kind"] == "NoRungError"


async def test_texts_that_mean_nothing_are_passed_over(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _), line(app_of(house), "/pages/captions") as page:
        for text in ("", "{", "[]", '{"type": 1}', "[" * 5000):
            page.send(text)
        assert [message["type"] for message in await _said(page)] == ["ready", "ended"]


async def test_a_page_that_goes_gives_everything_back(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models):
        async with line(app_of(house), "/pages/captions") as page:
            page.send(sound(0.5))
            await page.until("words")
        assert models.opened == models.closed


async def test_sound_that_waits_too_long_is_passed_over() -> None:
    waiting = _Line()
    for _ in range(25):
        waiting.put(_samples(sound(0.5)))
    assert waiting.skipped == 10 * SPEECH_RATE
    taken = await waiting.take()
    assert taken is not None
    assert len(taken) == SPEECH_RATE // 2


async def test_lag_is_counted_from_the_word(tmp_path: Path) -> None:
    clock = FakeClock()
    async with small_house(tmp_path, clock) as (house, _), line(app_of(house), "/pages/captions") as page:
        await page.until("ready")
        page.send(sound(0.5))
        await page.until("words")
        clock.advance(0.5 + 2.0)
        page.send(END)
        caption = (await page.until("caption"))[-1]
        assert caption["lag"] == pytest.approx(clock.now() - (0.0 - 0.5) - caption["end"], abs=0.51)
