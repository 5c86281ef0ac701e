"""Some hundreds of fuzz.py's messages; `make fuzz` sends ten thousand to each of the two doors."""

import os

import pytest

from tests.servers.kserve.fuzz import attack
from tests.servers.kserve.serving import serving

MOST_GROWTH = 32 * 2**20
"""Of twenty thousand messages, in a process that also sends them."""


@pytest.mark.parametrize("seed", [1, 2])
async def test_both_doors_bear_it(seed: int) -> None:
    with serving() as doors:
        outcome = await attack(doors, 400, seed)
        assert doors.call(doors.house.runtime.statistics).in_flight == 0
    assert outcome.failures == []
    assert outcome.answers.total() == 400
    lawful = outcome.answers["200"] + outcome.answers["OK"]
    assert 40 < lawful < 300, "some were lawful, and most were not"


@pytest.mark.skipif("AULA_FUZZ" not in os.environ, reason="ten thousand messages for each door: make fuzz")
async def test_ten_thousand() -> None:
    with serving() as doors:
        outcome = await attack(doors, 20_000, 7)
        assert doors.call(doors.house.runtime.statistics).in_flight == 0
    print(
        f"\nKServe, HTTP and gRPC: {dict(outcome.answers.most_common())}; grown {outcome.grown_bytes / 2**20:.1f} MiB"
    )
    assert outcome.failures == []
    assert outcome.grown_bytes < MOST_GROWTH
