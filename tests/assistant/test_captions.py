import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import webvtt

from aula.assistant.captions import CaptionWriter, caption_frames
from aula.core.clock import FakeClock
from aula.core.errors import NothingHeardError
from aula.core.types import Capability, Context, Float32, Partial, RungInfo, Segment, Transcript
from aula.runtime import Rung, Runtime

SEGMENTS = (
    Segment(0.0, 2.5, "Force is mass times acceleration."),
    Segment(
        2.5, 3661.25, "a < b & c > d, which is a caption that goes on for rather longer than one line has room for"
    ),
)


class Scripted:
    """Finishes a segment with every second frame; each frame takes the clock a while."""

    def __init__(self, clock: FakeClock, costs: float) -> None:
        self.clock, self.costs = clock, costs
        self.fed = 0
        self.closed = False
        self.requests: list[Any] = []

    def start(self, request: Any, context: Context) -> "Scripted":
        self.requests.append(request)
        return self

    def feed(self, samples: Float32) -> Partial:
        self.fed += 1
        self.clock.advance(self.costs)
        done = (Segment(self.fed - 2.0, float(self.fed), f"words {self.fed}"),) if self.fed % 2 == 0 else ()
        told = " ".join(f"words {place}" for place in range(2, self.fed + 1, 2))
        return Partial(f"{told} and so on", finished=done)

    def commit(self) -> Transcript:
        if not self.fed:
            raise NothingHeardError("nothing", next_step="speak")
        segments = [Segment(place - 2.0, float(place), f"words {place}") for place in range(2, self.fed + 1, 2)]
        return Transcript("all", "en", None, (*segments, Segment(float(self.fed), self.fed + 0.5, "the end")))

    def close(self) -> None:
        self.closed = True


async def _frames(clock: FakeClock, count: int) -> AsyncIterator[Float32]:
    """One second each; they come when they come, or as soon as somebody asks."""
    for place in range(count):
        clock.advance(max(0.0, place + 1 - clock.now()))
        yield np.zeros(16_000, np.float32)


def _runtime(model: Scripted) -> Runtime:
    info = RungInfo("scripted", Capability.TRANSCRIBE, frozenset({"en"}))
    return Runtime([Rung(info, "transcribe", lambda: model)], model.clock)


async def test_captions_are_written_as_they_come_and_their_lag_is_told() -> None:
    clock = FakeClock()
    model, out, seen = Scripted(clock, 0.25), io.StringIO(), []
    async with _runtime(model) as runtime:
        writer = CaptionWriter(out, "vtt")
        made = await caption_frames(
            runtime, _frames(clock, 6), Context("en"), writer, lambda at, text: seen.append((at, text))
        )
    assert model.requests[0].early
    assert model.requests[0].timestamps
    assert (made.captions, made.seconds, made.rung) == (4, 6.0, "scripted")
    assert made.lags[:3] == pytest.approx((0.25, 0.25, 0.25)), "each as long after its words as the engine took"
    assert [caption.text for caption in webvtt.from_string(out.getvalue()).captions] == [
        "words 2",
        "words 4",
        "words 6",
        "the end",
    ]
    assert seen[1] == (2.0, "and so on"), "what is not written yet is shown"
    assert model.closed


async def test_an_engine_that_is_too_slow_is_seen_in_the_lag() -> None:
    clock = FakeClock()
    model = Scripted(clock, 1.5)
    async with _runtime(model) as runtime:
        made = await caption_frames(runtime, _frames(clock, 6), Context("en"), CaptionWriter(io.StringIO(), "srt"))
    assert made.lags[:3] == pytest.approx((2.0, 3.0, 4.0))


async def test_nothing_said_is_no_caption() -> None:
    clock = FakeClock()
    out = io.StringIO()
    async with _runtime(Scripted(clock, 0.0)) as runtime:
        made = await caption_frames(runtime, _frames(clock, 0), Context("en"), CaptionWriter(out, "vtt"))
    assert (made.captions, made.lags, out.getvalue()) == (0, (), "WEBVTT\n\n")


def test_webvtt_is_what_readers_of_it_read() -> None:
    out = io.StringIO()
    writer = CaptionWriter(out, "vtt")
    for segment in SEGMENTS:
        writer.add(segment)
    read = webvtt.from_string(out.getvalue()).captions
    assert [(one.start, one.end) for one in read] == [
        ("00:00:00.000", "00:00:02.500"),
        ("00:00:02.500", "01:01:01.250"),
    ]
    assert "&lt; b &amp; c &gt;" in out.getvalue()
    assert all(len(line) <= 42 for one in read for line in one.lines)
    assert writer.count == 2


def test_srt_has_numbers_and_commas() -> None:
    out = io.StringIO()
    writer = CaptionWriter(out, "srt")
    for segment in SEGMENTS:
        writer.add(segment)
    blocks = out.getvalue().split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:02,500\nForce is mass times acceleration."
    assert blocks[1].startswith("2\n00:00:02,500 --> 01:01:01,250\na < b & c > d,")


def test_a_text_with_lines_of_its_own_stays_one_caption() -> None:
    out = io.StringIO()
    CaptionWriter(out, "srt").add(Segment(0, 1, "one\n\ntwo --> three"))
    assert out.getvalue() == "1\n00:00:00,000 --> 00:00:01,000\none two --> three\n\n"
