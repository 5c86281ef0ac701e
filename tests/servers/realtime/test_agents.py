"""The door with a client in another language: OpenAI's agents for JavaScript, from npm.

mkdir /tmp/agents && cd /tmp/agents && npm install @openai/agents-realtime@0.20 zod
AULA_NODE_MODULES=/tmp/agents/node_modules pytest tests/servers/realtime/test_agents.py
"""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.servers.realtime.speaking import loud, quiet, served

SCRIPT = Path(__file__).with_name("agents_client.mjs")
MODULES = Path(os.environ.get("AULA_NODE_MODULES", ""))


async def test_openais_agents_ask_aloud_and_in_writing(home: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (MODULES / "@openai" / "agents-realtime").is_dir():
        pytest.skip("no Node, or AULA_NODE_MODULES names no folder with @openai/agents-realtime (npm install it there)")
    sound = tmp_path / "question.pcm"
    sound.write_bytes(loud(400) + quiet(200))
    async with served(home / "realtime") as door:
        client = await asyncio.create_subprocess_exec(
            node,
            str(SCRIPT),
            f"{door.websocket}/realtime?model=aula:small",
            str(sound),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(MODULES)},
        )
        out, problems = await client.communicate()
    assert client.returncode == 0, (out + problems).decode()[-2000:]
    seen = json.loads(out.decode().splitlines()[-1])
    assert seen["errors"] == []
    assert seen["aloud"] == "what is inertia and"
    assert "Inertia is the tendency" in seen["answer"]
    assert seen["audioBytes"] > 24_000
    assert seen["history"].count(["user", 1]) == 3
