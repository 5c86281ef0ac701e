"""A generator that goes on, and all the ways in which one misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aula.assistant.courses import Course, CourseLibrary
from aula.assistant.generating import MOST_SENTENCES, Told, checked
from aula.assistant.generator import KEY_VARIABLE, Generator, RubbishError, _cut
from aula.assistant.retrieval import Hit, Retriever
from aula.core.clock import FakeClock
from aula.core.errors import SettingsError
from aula.core.settings import Settings
from aula.core.types import Answer, Citation, Intent

QUESTION = "What is inertia?"
FIRST = "Inertia is the tendency of every object to keep its velocity unchanged."
SECOND = "An object at rest stays at rest."
OWN = f"{FIRST} {SECOND}"
GOOD = "An object at rest stays at rest, since its velocity is zero [1]."
ALSO = "The product of mass and velocity is the momentum [2]."
COURSE = f"""---
title: Motion
language: en
---
## Inertia

{OWN} Its velocity is then zero.

## Momentum

Momentum is the product of mass and velocity.
"""


class Stream(httpx2.AsyncByteStream):
    """Pieces of a body; an event among them is waited for, an exception raised."""

    def __init__(self, pieces: Sequence[bytes | asyncio.Event | Exception]) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece

    async def aclose(self) -> None:
        self.closed = True


def _event(text: str | None = None, **more: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text} if text is not None else {}, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Upstream:
    """A fake server: what it was asked, and what it answers."""

    def __init__(self, *pieces: Any, status: int = 200, media_type: str = "text/event-stream") -> None:
        self.asked: list[httpx2.Request] = []
        self.stream = Stream(pieces)
        self._status, self._media_type = status, media_type

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return httpx2.Response(self._status, headers={"content-type": self._media_type}, stream=self.stream)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    (folder / "motion.md").write_text(COURSE, encoding="utf-8")
    library = CourseLibrary(folder / "library")
    library.add(folder / "motion.md", "motion")
    return library.load("motion")


def _hits(course: Course) -> list[Hit]:
    """Inertia is passage 1, momentum 2."""
    hits = Retriever(course).search("What is inertia, and what is momentum?", "en")
    return sorted(hits, key=lambda hit: hit.passage.headings[-1])


def _told(course: Course, generator: Generator | None, *, refused: bool = False) -> Told:
    hits = _hits(course)
    passage = hits[0].passage
    citation = Citation("motion", passage.document, passage.label, 0.9)
    answer = Answer(OWN, "en", Intent.CONTENT, refused, () if refused else (citation,))
    return Told(answer, QUESTION, hits, "motion", generator)


def _generator(upstream: Callable[[httpx2.Request], httpx2.Response], clock: FakeClock | None = None) -> Generator:
    transport = httpx2.MockTransport(upstream)
    return Generator(
        "http://upstream/v1", "m", clock or FakeClock(), seconds=8.0, most_tokens=9, key="secret", transport=transport
    )


async def _run(course: Course, upstream: Upstream) -> Told:
    generator = _generator(upstream)
    told = _told(course, generator)
    pieces = [piece async for piece in told.pieces()]
    assert "".join(pieces) == told.text
    assert told.text.startswith(FIRST), "the first sentence is the course's, whatever comes"
    assert upstream.stream.closed or not upstream.asked, "the connection is given back"
    await generator.close()
    return told


async def test_it_goes_on_where_the_course_began_and_cites(course: Course) -> None:
    text = f"{GOOD} {ALSO}"
    upstream = Upstream(
        *(_event(text[start : start + 7]) for start in range(0, len(text), 7)), _event(finish_reason="stop")
    )
    told = await _run(course, upstream)
    assert told.generated == 2
    assert told.fallback is None
    assert told.text.endswith("is the momentum. [2]")
    assert {one.passage for one in told.citations} == {hit.passage.label for hit in _hits(course)}
    for number, citation in enumerate(told.citations, 1):
        assert f"[{number}]" in told.text
        assert 0 < citation.score <= 1
    asked = json.loads(upstream.asked[0].content)
    assert asked["stream"] is True
    assert asked["max_tokens"] == 9
    assert upstream.asked[0].headers["authorization"] == "Bearer secret"
    assert "Momentum is the product" in asked["messages"][0]["content"]
    assert FIRST in asked["messages"][1]["content"]


async def test_one_that_does_not_stream_is_read_too(course: Course) -> None:
    body = json.dumps({"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}]}).encode()
    told = await _run(course, Upstream(body, media_type="application/json"))
    assert (told.generated, told.fallback) == (1, None)


@pytest.mark.parametrize(
    ("why", "upstream"),
    [
        ("status_500", lambda: Upstream(b"oops", status=500)),
        ("status_429", lambda: Upstream(b"{}", status=429)),
        ("status_302", lambda: Upstream(b"", status=302)),
        ("not_json", lambda: Upstream(b"data: {oops\n\n")),
        ("not_json", lambda: Upstream(b"<html>", media_type="text/html")),
        ("not_json", lambda: Upstream(b'data: {"choices": 5}\n\n')),
        ("not_json", lambda: Upstream(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n')),
        ("not_json", lambda: Upstream(b"[1]", media_type="application/json")),
        ("failed", lambda: Upstream(b'data: {"error": {"message": "out of memory"}}\n\n')),
        ("empty", lambda: Upstream(DONE)),
        ("empty", lambda: Upstream(_event(""), _event(finish_reason="stop"), DONE)),
        ("empty", lambda: Upstream(_event(FIRST + " [1]"), DONE)),
        ("cut", lambda: Upstream(_event("An object at"))),
        ("cut", lambda: Upstream(_event("An object at"), httpx2.ReadError("reset"))),
        ("uncited", lambda: Upstream(_event("An object at rest stays at rest."), DONE)),
        ("uncited", lambda: Upstream(_event("An object at rest stays at rest [9]."), DONE)),
        ("uncited", lambda: Upstream(_event("I am sorry, but as a language model I cannot help."), DONE)),
        ("refused", lambda: Upstream(_event(None, delta={"refusal": "no"}), DONE)),
        ("refused", lambda: Upstream(_event("x", finish_reason="content_filter"), DONE)),
        ("language", lambda: Upstream(_event("惯性是物体保持速度不变的性质 [1]。"), DONE)),
        ("unsupported", lambda: Upstream(_event("Paris hosts wonderful museums and restaurants [1]."), DONE)),
        ("endless", lambda: Upstream(*[_event("word ")] * 200, DONE)),
        ("endless", lambda: Upstream(*[b": still here\n" * 1000] * 30)),
        ("endless", lambda: Upstream(b" " * 300_000, media_type="application/json")),
    ],
)
async def test_whatever_it_does_the_courses_own_answer_is_whole(
    course: Course, why: str, upstream: Callable[[], Upstream]
) -> None:
    told = await _run(course, upstream())
    assert (told.text, told.fallback, told.generated) == (OWN, why, 0)
    assert len(told.citations) == 1


async def test_one_that_cannot_be_reached_is_left(course: Course) -> None:
    def refuses(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    told = _told(course, _generator(refuses))
    assert "".join([piece async for piece in told.pieces()]) == OWN
    assert told.fallback == "unreachable"


async def _rest(pieces: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in pieces]


@pytest.mark.parametrize("said_before", [0, 1])
async def test_one_that_is_late_is_left_at_the_clocks_word(course: Course, said_before: int) -> None:
    clock, never = FakeClock(), asyncio.Event()
    upstream = Upstream(*[_event(f"{GOOD} An")] * said_before, never)
    told = _told(course, _generator(upstream, clock))
    pieces = told.pieces()
    for _ in range(1 + said_before):
        await anext(pieces)
    reading = asyncio.ensure_future(_rest(pieces))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not reading.done()
    clock.advance(8.0)
    await reading
    assert told.fallback == "timeout"
    assert told.generated == said_before
    assert told.text == (OWN if not said_before else f"{FIRST} {GOOD.replace(' [1].', '. [1]')}")
    assert upstream.stream.closed


async def test_one_that_begins_well_and_goes_wrong_is_stopped_there(course: Course) -> None:
    upstream = Upstream(_event(f"{GOOD} Paris hosts wonderful museums and restaurants [1]. {GOOD}"), DONE)
    told = await _run(course, upstream)
    assert (told.generated, told.fallback) == (1, "unsupported")
    assert "Paris" not in told.text


async def test_one_that_never_tires_is_heard_so_far(course: Course) -> None:
    many = [_event(f"The velocity of an object at rest is zero, number {number} [1]. ") for number in range(50)]
    told = await _run(course, Upstream(*many, DONE))
    assert told.generated == MOST_SENTENCES
    assert told.fallback is None


async def test_without_a_generator_or_a_citation_nothing_is_asked(course: Course) -> None:
    upstream = Upstream(_event(GOOD), DONE)
    for told in (_told(course, None), _told(course, _generator(upstream), refused=True)):
        assert "".join([piece async for piece in told.pieces()]) == OWN
        assert (told.fallback, told.generated) == (None, 0)
    assert not upstream.asked


@pytest.mark.parametrize(
    ("buffer", "whole", "rest"),
    [
        ("One two", [], "One two"),
        ("One two. ", [], "One two. "),
        ("One two. [1", [], "One two. [1"),
        ("One two. [1] Three", ["One two. [1]"], "Three"),
        ("One [1]. Two [2]. Three", ["One [1].", "Two [2]."], "Three"),
    ],
)
def test_marks_stay_with_what_they_follow(buffer: str, whole: list[str], rest: str) -> None:
    cut, left = _cut(buffer, "en")
    assert (cut, left.strip()) == (whole, rest.strip())


def test_a_sentence_must_stand_in_what_it_cites(course: Course) -> None:
    hits = _hits(course)
    cited, share = checked("Momentum is mass times velocity [2].", QUESTION, hits, "en")
    assert cited == [1]
    assert share == pytest.approx(0.75, abs=0.26)
    with pytest.raises(RubbishError, match="unsupported"):
        checked("Bananas grow quickly in tropical summers [2].", QUESTION, hits, "en")


def test_settings_make_it_and_the_key_is_in_the_environment_alone(tmp_path: Path) -> None:
    clock = FakeClock()
    assert Generator.from_settings(Settings(), clock) is None
    made = Generator.from_settings(Settings({"generator.url": "http://a/v1"}), clock, {KEY_VARIABLE: "s"})
    assert made is not None
    assert made.seconds == 8.0
    with pytest.raises(SettingsError, match=r"generator\.url"):
        Generator.from_settings(Settings({"generator.url": "ftp://a"}), clock)
