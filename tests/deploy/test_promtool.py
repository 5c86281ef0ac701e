"""Prometheus' own tool reads what we say: the figures of a server that has worked, and the alert rules."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.deploy.test_monitoring import FOLDER
from tests.servers.doors import served


@pytest.fixture
def promtool() -> str:
    found = os.environ.get("AULA_PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is absent: apt install prometheus, or name it in AULA_PROMTOOL")
    return found


def _run(*words: str, told: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, input=told, capture_output=True, text=True, check=False)


async def test_it_reads_every_figure_and_has_no_complaint(promtool: str, tmp_path: Path) -> None:
    async with served(tmp_path) as door, httpx.AsyncClient(base_url=door.url) as client:
        question = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}
        assert (await client.post("/v1/chat/completions", json=question)).status_code == 200
        assert (await client.post("/v1/embeddings", json={"model": "none", "input": "x"})).status_code == 404
        text = (await client.get("/metrics")).text
    ended = await asyncio.to_thread(_run, promtool, "check", "metrics", told=text)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_the_alert_rules_are_rules(promtool: str) -> None:
    rules = str(FOLDER / "alerts.yml")
    ended = _run(promtool, "check", "rules", rules)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS" in ended.stdout
