"""The READMEs' ten lines of a spoken turn, run as they stand but for the address."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.servers.realtime.speaking import loud, quiet, served

ADDRESS = "http://127.0.0.1:8000/v1"


def snippet(document: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / document).read_text(encoding="utf-8"), re.S)
    (block,) = [block for block in blocks if "realtime.connect" in block]
    return str(block)


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")  # openai's way with websockets 17
@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
async def test_the_spoken_turn_of_the_readme(
    document: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = snippet(document)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    assert ADDRESS in code
    (tmp_path / "question.pcm").write_bytes(loud(350) + quiet(250))
    monkeypatch.chdir(tmp_path)
    async with served(home / "realtime") as door:
        await asyncio.to_thread(exec, code.replace(ADDRESS, door.http), {})
    printed = capsys.readouterr().out
    assert "Inertia is the tendency" in printed
    assert re.search(r"^response\.output_audio\.delta \d+$", printed, re.M)
