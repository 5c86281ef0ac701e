"""Some hundreds of malformed requests; `python -m tests.servers.openai.fuzz` makes ten thousand."""

from pathlib import Path

from tests.servers.doors import served
from tests.servers.openai.fuzz import run


async def test_malformed_requests_are_answered_and_leave_nothing_behind(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        found = await run(door, 400, seed=7)
    assert found.faults == []
    assert found.left_open == 0
    assert sum(found.statuses.values()) == 400
    assert found.statuses["200"] > 0, "some of them are lawful, or the rest would prove little"
