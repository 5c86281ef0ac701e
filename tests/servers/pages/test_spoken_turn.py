"""A whole spoken turn: Chromium with a file for a microphone, `aula serve` as a process of its own, and the models that
come with it. Nothing here is made up but the student's voice, which is eSpeak NG's."""

import json
import os
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

pytest.importorskip("selenium", reason="the browser's tests need selenium")

from aula.core.errors import ModelNotFoundError
from aula.models import bert, silero
from tests.conftest import REPOSITORY
from tests.servers.pages.browser import chromium, wanted_programs

QUESTION = "What is kinetic energy?"
VOICE = "en-us+f3"


@contextmanager
def aula_serve(home: Path) -> Iterator[str]:
    """Its address. The process ends with the block, as systemd would end it."""
    environment = {**os.environ, "AULA_HOME": str(home), "PYTHONPATH": str(REPOSITORY / "src")}
    environment.pop("NOTIFY_SOCKET", None)
    words = [sys.executable, "-P", "-m", "aula", "serve", "--port", "0", "--grpc-port", "-1", "--log", "json"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd=home)
    assert process.stderr is not None
    try:
        address = next((json.loads(line)["address"] for line in process.stderr if '"ready"' in line), None)
        assert address is not None, "it ended before it was ready"
        logged: list[str] = []
        reading = threading.Thread(target=logged.extend, args=(process.stderr,), daemon=True)
        reading.start()
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        reading.join()
        assert "kinetic" not in "".join(logged).lower(), "no word that was spoken is in the log"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def record(url: str, path: Path) -> Path:
    """The question as the server itself speaks it, after a second in which the microphone opens."""
    wanted = {"model": "tts-1", "voice": VOICE, "input": QUESTION, "response_format": "pcm", "speed": 0.86}
    spoken = np.frombuffer(httpx.post(f"{url}/v1/audio/speech", json=wanted, timeout=60).content, "<i2")
    samples = np.concatenate([np.zeros(24_000, "<i2"), spoken, np.zeros(12_000, "<i2")])
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def test_hold_speak_release_hear_and_read_where_it_stands(home: Path, tmp_path: Path) -> None:
    wanted_programs()
    try:
        bert.minilm_checkpoint()
        silero.find_graph()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    with aula_serve(home) as url:
        voice = record(url, tmp_path / "question.wav")
        with chromium(tmp_path / "profile", microphone=Path(f"{voice}%noloop")) as page:
            page.open(f"{url}/")
            page.until("document.body.dataset.line === 'open'")
            with page.holding("#hold"):
                page.until("document.querySelector('#hold').dataset.state === 'listening'")
                page.until("document.querySelector('.asked.partial')?.innerText.toLowerCase().includes('what is')")
                page.rest(2.0)
            page.until("document.querySelector('#hold').dataset.state === 'speaking'")
            page.until("window.loudest()[1] > -60")
            page.until("document.querySelector('.turn .meta') !== null")
            assert page.text(".turn .answer")
            assert "ms" in page.text(".latency")

            # What the recogniser makes of a synthetic voice is not the pages' matter; a typed question is cited surely.
            page.find("#question").send_keys(QUESTION + "\n")
            page.until("document.querySelectorAll('.turn .meta').length === 2")
            assert "because it is moving" in page.text(".turn:last-child .answer")
            page.run("document.querySelector('.turn:last-child .cite').click()")
            page.until("document.querySelector('#passage mark') !== null")
            assert page.text("#passage-title") == "Kinetic energy"
            page.run("document.querySelector('#passage-close').click()")

            page.open(f"{url}/teacher")
            page.until(
                "[...document.querySelectorAll('.topic h4')].some((one) => one.textContent === 'Kinetic energy')"
            )
            page.open(f"{url}/operator")
            page.until("document.querySelectorAll('.falls tbody tr').length === 2")
            page.until("document.querySelector('[data-clock=A]') !== null")
            assert page.asked_for() == {url.removeprefix("http://")}
            assert page.complaints() == []
