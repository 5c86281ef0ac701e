"""Some hundreds of malformed requests; `make fuzz` makes ten thousand."""

import os
from pathlib import Path

import pytest

from tests.servers.doors import served
from tests.servers.openai.fuzz import run


async def test_malformed_requests_are_answered_and_leave_nothing_behind(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        found = await run(door, 400, seed=7)
    assert found.faults == []
    assert found.left_open == 0
    assert sum(found.statuses.values()) == 400
    assert found.statuses["200"] > 0, "some of them are lawful, or the rest would prove little"


@pytest.mark.skipif("AULA_FUZZ" not in os.environ, reason="ten thousand requests: make fuzz")
async def test_ten_thousand(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        found = await run(door, 10_000, seed=7)
    print(f"\nOpenAI REST: {dict(found.statuses.most_common())}; grown {found.grown_bytes / 2**20:.1f} MiB")
    assert found.faults == []
    assert found.left_open == 0
    assert found.more_threads < 8, "asyncio's own pool grows to a few, and then no more"
    assert found.grown_bytes < 32 * 2**20, "of client and server together"
