"""A few of the stories that `make soak` tells for ten minutes."""

import asyncio
from collections import Counter

import pytest

from tests.serving.hand import by_hand
from tests.soak import by_hand_once, live_once


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_stories_by_hand_come_out_even_and_replay(first: int) -> None:
    seen: list[Counter[str]] = []
    for seed in (*range(first, first + 10), first):
        with by_hand():
            seen.append(asyncio.run(by_hand_once(seed)))
    assert seen[0] == seen[-1], "the same seed, the same story"


@pytest.mark.parametrize("seed", [1, 16])
async def test_live_stories_come_out_even(seed: int) -> None:
    seen = await live_once(seed)
    assert seen["answered"]
    assert seen["refused"]
