"""A few hundred of fuzz.py's messages (`make fuzz`: ten thousand), and the state machine under anything at all."""

import asyncio
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.core.clock import FakeClock
from aula.core.errors import EngineError, NothingHeardError
from aula.core.types import Answer, Intent
from aula.servers.realtime.conversation import Conversation
from aula.servers.realtime.messages import (
    Answered,
    Ended,
    Happening,
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
from aula.servers.realtime.options import Options
from aula.servers.realtime.wire import Wire
from tests.servers.realtime.fuzz import attack, lawful
from tests.servers.realtime.speaking import served

ANSWER = Answer("Inertia is laziness.", "en", Intent.CONTENT, refused=False)


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_served_door_bears_it(home: Path, seed: int) -> None:
    async with served(home / "realtime") as door:
        outcome = await attack(door, 300, seed)
        assert outcome.sent == 300
        assert outcome.failures == []
        assert len(outcome.events) > 5, "something was lawful too"
        async with asyncio.timeout(20):
            while door.door.statistics().open or door.transcriber.opened > door.transcriber.closed:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.mark.skipif("AULA_FUZZ" not in os.environ, reason="ten thousand messages: make fuzz")
async def test_ten_thousand(home: Path) -> None:
    async with served(home / "realtime") as door:
        await attack(door, 300, 8)  # what is made once is made before memory is looked at
        tracemalloc.start()
        try:
            outcome = await attack(door, 10_000, 7)
        finally:
            tracemalloc.stop()
        async with asyncio.timeout(20):
            while door.door.statistics().open or door.transcriber.opened > door.transcriber.closed:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    print(f"\nRealtime: {dict(outcome.codes.most_common())}; grown {outcome.grown_kb:.0f} KiB")
    assert outcome.failures == []
    assert outcome.grown_kb < 4096


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=150)
def test_whatever_happens_in_whatever_order_nothing_unwanted_leaves(random_: random.Random, beta: bool) -> None:
    """A stopped response says nothing more; each response ends once; every event can be written in either name."""
    clock = FakeClock()
    conversation = Conversation(Options("small"), clock)
    wire = Wire(speaks_beta=beta, most=100_000)
    wanted: set[str] = set()
    ended: set[str] = set()
    asked: list[str] = ["none"]
    items: list[str] = ["item_a", "item_b"]
    for _ in range(60):
        if random_.random() < 0.5:
            outs = conversation.receive(lawful(random_, items))
        elif random_.random() < 0.1:
            clock.advance(3.0)
            outs = conversation.passed()
        else:
            outs = conversation.told(_happening(random_, items, asked))
        for out in outs:
            if isinstance(out, Reply):
                wanted.add(out.response_id)
                asked.append(out.response_id)
            elif isinstance(out, Stop):
                wanted.discard(out.response_id)
            elif isinstance(out, dict):
                wire.write(out)
                if "item" in out:
                    items.append(out["item"]["id"])
                if out["type"] == "response.output_audio.delta":
                    assert out["response_id"] in wanted
                    assert out["response_id"] not in ended
                if out["type"] == "response.done":
                    assert out["response"]["id"] not in ended
                    ended.add(out["response"]["id"])
    assert set(asked[1:]) - ended <= {conversation.response.id if conversation.response else ""}


def _happening(random_: random.Random, items: list[str], asked: list[str]) -> Happening:
    item, response = random_.choice(items), random_.choice(asked[-3:])
    begun = f"item_n{len(items)}"  # whoever hears never gives a name twice
    items.append(begun)
    happenings: list[Happening] = [
        SpeechBegan(begun, 100),
        SpeechEnded(item, 900),
        PartHeard(item, random_.choice(["what", "what is", "that"])),
        Transcribed(item, "what is inertia", 1.0),
        NotTranscribed(item, NothingHeardError("silence", next_step="speak")),
        NotHeard(item, EngineError("gone", next_step="wait")),
        Answered(response, ANSWER, {}),
        Sounded(response, b"\0\0"),
        Ended(response),
        NotAnswered(response, EngineError("gone", next_step="wait")),
    ]
    return happenings[random_.randrange(len(happenings))]
