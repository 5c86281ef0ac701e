"""Whoever hears and answers, without a conversation: commands in, happenings out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.assistant.dialogue import Dialogue, Manner
from aula.core.settings import Settings
from aula.scheduling.admission import Quota
from aula.servers.callers import Caller, EveryoneIsLocal
from aula.servers.house import House
from aula.servers.realtime.attendant import MOST_WAITING, Attendant
from aula.servers.realtime.formats import FORMATS, Coding
from aula.servers.realtime.messages import (
    Answered,
    Asked,
    Command,
    Ended,
    Finish,
    Forget,
    Happening,
    Hear,
    Ids,
    NotAnswered,
    NotHeard,
    NotTranscribed,
    PartHeard,
    Reply,
    Sounded,
    SpeechBegan,
    SpeechEnded,
    Stop,
    Transcribed,
)
from aula.servers.realtime.shapes import Detection
from aula.serving.rules import Rules
from tests.servers.realtime.speaking import ChunkAWord, WordByWord, add_small_course, fake_runtime

STRANGERS = Rules(quotas={"somebody": Quota()}, strict=True)
OPEN = Detection("server_vad", silence_duration_ms=200)


class Attended:
    def __init__(self, attendant: Attendant, happenings: list[Happening], stirred: asyncio.Event) -> None:
        self.attendant = attendant
        self.happenings = happenings
        self._stirred = stirred

    def do(self, *commands: Command) -> None:
        for command in commands:
            self.attendant.do(command)

    async def until(self, kind: type[Any], holds: Callable[[Any], bool] = lambda _: True) -> Any:
        async with asyncio.timeout(20):
            while True:
                for happening in self.happenings:
                    if isinstance(happening, kind) and holds(happening):
                        return happening
                self._stirred.clear()
                await self._stirred.wait()


@asynccontextmanager
async def _attended(home: Path, rules: Rules | None = None) -> AsyncIterator[Attended]:
    settings = Settings({"home": str(home / "realtime"), "course": "small", "speech.cache_mb": 0})
    async with fake_runtime(WordByWord(), ChunkAWord()) as unruled:
        await add_small_course(unruled, settings)
    async with fake_runtime(WordByWord(), ChunkAWord(), rules=rules) as runtime:
        house = House(runtime, settings, EveryoneIsLocal())
        dialogue = Dialogue(runtime, await house.course(), settings)
        happenings: list[Happening] = []
        stirred = asyncio.Event()

        def tell(happening: Happening) -> None:
            happenings.append(happening)
            stirred.set()

        async def room() -> None:
            pass

        attendant = Attendant(house, dialogue, Caller(), Ids("x"), tell, room, lambda: 0.0)
        try:
            yield Attended(attendant, happenings, stirred)
        finally:
            await attendant.close()


@pytest.fixture
async def attended(home: Path) -> AsyncIterator[Attended]:
    async with _attended(home) as one:
        yield one


def hear(milliseconds: int, item_id: str = "item_a", *, loud: bool = True, detection: Detection | None = None) -> Hear:
    return Hear(np.full(16 * milliseconds, 0.5 * loud, np.float32), item_id, detection, None)


def reply(response_id: str, asked: Asked) -> Reply:
    return Reply(response_id, asked, Manner(), FORMATS[Coding.PCM], None, "A")


async def test_what_is_heard_is_transcribed_and_answered_in_order(attended: Attended) -> None:
    attended.do(hear(300), Finish("item_a"), reply("resp_a", Asked("item_a")))
    await attended.until(Ended)
    kinds = [type(happening) for happening in attended.happenings]
    assert [kind for kind in kinds if kind not in (PartHeard, Sounded)] == [Transcribed, Answered, Ended]
    transcribed = await attended.until(Transcribed)
    assert (transcribed.text, transcribed.seconds) == ("what is inertia", 0.3)


async def test_an_answer_that_is_stopped_leaves_the_turn_to_the_next(attended: Attended) -> None:
    attended.do(reply("resp_a", Asked("item_a")), Stop("resp_a"), hear(300), Finish("item_a"))
    await attended.until(Transcribed)
    attended.do(reply("resp_b", Asked("item_a")))
    await attended.until(Ended, lambda ended: ended.response_id == "resp_b")
    assert not [one for one in attended.happenings if getattr(one, "response_id", "") == "resp_a"]


async def test_the_same_question_can_be_answered_twice(attended: Attended) -> None:
    attended.do(hear(300), Finish("item_a"), reply("resp_a", Asked("item_a")))
    await attended.until(Ended)
    attended.do(reply("resp_b", Asked("item_a")))
    again = await attended.until(Answered, lambda answered: answered.response_id == "resp_b")
    assert again.told["question"] == "what is inertia"


async def test_an_open_microphone_finds_every_utterance(attended: Attended) -> None:
    for _ in range(2):
        attended.do(*[hear(100, "", loud=loud, detection=OPEN) for loud in (False, True, True, False, False, False)])
    ends = [await attended.until(SpeechEnded)]
    ends.append(await attended.until(SpeechEnded, lambda ended: ended.item_id != ends[0].item_id))
    starts = [one for one in attended.happenings if isinstance(one, SpeechBegan)]
    assert [one.item_id for one in starts] == [one.item_id for one in ends]
    assert starts[0].at_ms < ends[0].at_ms < starts[1].at_ms + 300 < ends[1].at_ms
    attended.do(Finish(ends[0].item_id), Finish(ends[1].item_id))
    await attended.until(Transcribed, lambda one: one.item_id == ends[1].item_id)


async def test_times_count_from_the_first_sound_of_the_session(attended: Attended) -> None:
    attended.do(*[hear(100, "", loud=False, detection=OPEN)] * 10, Forget(None), hear(400, "", detection=OPEN))
    assert (await attended.until(SpeechBegan)).at_ms == 1000


async def test_a_commit_in_the_middle_of_speech_begins_another_utterance(attended: Attended) -> None:
    attended.do(hear(400, "", detection=OPEN))
    first = await attended.until(SpeechBegan)
    attended.do(Finish(first.item_id), hear(400, "", detection=OPEN))
    await attended.until(Transcribed)
    await attended.until(SpeechBegan, lambda began: began.item_id != first.item_id)


async def test_what_is_forgotten_is_answered_as_unclear(attended: Attended) -> None:
    attended.do(hear(300), Forget("item_a"), Finish("item_a"), reply("resp_a", Asked("item_a")))
    answered = await attended.until(Answered)
    assert "could not make that out" in answered.answer.text


class Slow:
    """An utterance, or a microphone with one, that takes its time to close."""

    detection, item_id = OPEN, "item_a"

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.speaking: Slow | None = None
        self.is_closed = False

    async def close(self) -> None:
        self.begun.set()
        await self.may_end.wait()
        self.is_closed = True


@pytest.mark.parametrize("what", ["an utterance", "a microphone", "who speaks into it"])
async def test_what_is_being_closed_when_the_client_goes_is_closed_to_the_end(home: Path, what: str) -> None:
    async with _attended(home) as attended:
        attendant, slow, other = attended.attendant, Slow(), Slow()
        other.may_end.set()
        if what == "an utterance":
            attendant._utterances["item_a"] = slow  # type: ignore[assignment]
            attended.do(Forget("item_a"))
        else:
            attendant._microphone, other.speaking = (slow if what == "a microphone" else other), slow  # type: ignore[assignment]
            attended.do(Forget(None))
        await slow.begun.wait()
        closing = asyncio.create_task(attendant.close())
        await asyncio.sleep(0)
        slow.may_end.set()
        await closing
        assert slow.is_closed
        assert other.is_closed == (what == "who speaks into it")


async def test_what_cannot_be_heard_fails_once_whenever_an_answer_is_asked_for(home: Path) -> None:
    async with _attended(home, STRANGERS) as attended:
        attended.do(*[hear(50)] * 5, Finish("item_a"))
        await attended.until(NotTranscribed)
        attended.do(reply("resp_a", Asked("item_a")))
        failed = await attended.until(NotAnswered)
        assert "no tenant" in str(failed.error)
        assert [type(one) for one in attended.happenings] == [NotHeard, NotTranscribed, NotAnswered]


async def test_a_reader_waits_while_too_much_waits_to_be_heard(attended: Attended) -> None:
    attended.do(*[hear(1000, loud=False)] * (MOST_WAITING // 16_000 + 2))
    room = asyncio.create_task(attended.attendant.room())
    await asyncio.sleep(0)
    assert not room.done()
    await room
