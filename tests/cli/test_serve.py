"""`aula serve` as a process of its own, with the models that come with it: the READMEs' very lines, and its end."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aula.audio.resampling import Resampler
from aula.core.settings import Settings
from aula.core.types import Context, SpeakRequest
from aula.models.espeak import EspeakSpeaker
from aula.servers.logs import LOGGERS
from tests.cli.running import Run
from tests.conftest import REPOSITORY

READMES = ("README.md", "README.zh.md")


class Process:
    """The process; `lines` are those of its log, `ready` the one that says so."""

    def __init__(self, home: Path, *options: str) -> None:
        environment = {**os.environ, "AULA_HOME": str(home), "PYTHONPATH": str(REPOSITORY / "src")}
        environment.pop("NOTIFY_SOCKET", None)
        words = [sys.executable, "-P", "-m", "aula", "serve", "--port", "0", "--grpc-port", "0", "--log", "json"]
        self._process = subprocess.Popen(
            [*words, *options], stderr=subprocess.PIPE, text=True, env=environment, cwd=home
        )
        self.lines: list[dict[str, Any]] = []
        self.ready = self._until("ready")

    @property
    def url(self) -> str:
        return str(self.ready["address"])

    def _until(self, message: str | None) -> dict[str, Any]:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["message"] == message:
                return self.lines[-1]
        assert message is None, f"it ended before it said {message!r}: {self.lines}"
        return {}

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        self._until(None)
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A command owns its process, and configures its log; a test does not."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture(scope="module")
def process(home: Path, models: None) -> Iterator[Process]:
    running = Process(home)
    yield running
    running.kill()


@pytest.mark.parametrize("document", READMES)
def test_the_ten_lines_of_the_readme_run(process: Process, document: str) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "audio.transcriptions" in one]
    assert len(block.split("\n\n", 1)[1].strip().splitlines()) <= 10
    assert "http://127.0.0.1:8000" in block
    program = block.replace("http://127.0.0.1:8000", process.url)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    heard, cited, vectors = ended.stdout.splitlines()
    assert re.match(r"heard: \S.* \| answered: Inertia is", heard)
    assert cited.startswith("from: ")
    assert vectors == "2 vectors of 384"


def test_both_readmes_show_the_same_lines() -> None:
    blocks = [
        [
            one
            for one in re.findall(r"```python\n(.*?)```", (REPOSITORY / name).read_text("utf-8"), re.S)
            if "aula-embed" in one
        ]
        for name in READMES
    ]
    assert blocks[0] == blocks[1]


def _block(document: str, word: str) -> str:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if word in one]
    return str(block)


def test_a_spoken_turn_and_a_triton_client_as_the_readme_shows_them(process: Process, tmp_path: Path) -> None:
    """With the true models; the other README's lines are run against small ones."""
    speaker = EspeakSpeaker(Settings())
    spoken = np.concatenate(list(speaker.speak(SpeakRequest("What is inertia?", words_per_minute=150), Context())))
    resampler = Resampler(speaker.rate, 24_000)
    sound = np.concatenate(
        [resampler.feed(spoken.astype(np.float32) / np.float32(32768)), resampler.flush(), np.zeros(6000, np.float32)]
    )
    (tmp_path / "question.pcm").write_bytes((sound * 32767).astype("<i2").tobytes())
    for word, last in (("realtime.connect", r"Inertia is .*"), ("import tritonclient", r"\(1, 384\)")):
        program = _block("README.md", word).replace("127.0.0.1:8000", process.url.removeprefix("http://"))
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stderr
        assert re.match(last, ended.stdout.splitlines()[-1]), ended.stdout


def test_it_is_ready_lives_and_counts(process: Process) -> None:
    ready = httpx.get(f"{process.url}/readyz")
    assert ready.status_code == 200
    assert all(one["ok"] for one in ready.json()["capabilities"].values())
    assert "aula_http_requests_total" in httpx.get(f"{process.url}/metrics").text
    assert process.ready["is_open"] is True


def test_it_ends_when_it_is_asked_and_its_log_is_json_to_the_end(home: Path, models: None) -> None:
    process = Process(home)
    try:
        assert httpx.get(f"{process.url}/livez").text == "ok\n"
        assert process.end() == 0
    finally:
        process.kill()
    assert process.lines[-1]["message"] == "ending"
    assert any(line.get("path") == "/livez" and line["status"] == 200 for line in process.lines)


def test_beyond_loopback_without_keys_it_says_what_to_do(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AULA_SERVE_KEYS", str(tmp_path / "none.json"))
    ended = run("serve", "--host", "0.0.0.0", "--port", "0")
    assert ended.code == 2
    assert "aula key create" in ended.err


def test_a_settings_file_that_is_not_there_is_told(run: Run) -> None:
    ended = run("serve", "--config", "absent.toml")
    assert ended.code == 2
    assert "absent.toml" in ended.err
