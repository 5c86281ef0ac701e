"""What the log says after turns at every door: neither secrets nor speech, and a line for each request."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from aula.core.clock import SystemClock
from aula.core.types import Context, Understanding
from aula.servers.keys import KeyedDoorman, KeyStore
from aula.servers.logs import log_stray
from tests.servers.doors import Models, recording, served
from tests.servers.realtime.speaking import loud, quiet, text_of

PUSH = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


async def _turn(url: str, secret: str) -> list[dict[str, Any]]:
    """Aloud; its last event is the response's end."""
    address = f"{url.replace('http', 'ws', 1)}/v1/realtime?api_key=sk-aula-query"
    events: list[dict[str, Any]] = []
    async with (
        websockets.connect(address, subprotocols=["realtime", f"openai-insecure-api-key.{secret}"]) as socket,  # type: ignore[list-item]
        asyncio.timeout(20),
    ):
        for event in (
            {"type": "session.update", "session": PUSH},
            {"type": "input_audio_buffer.append", "audio": text_of(loud(350) + quiet(100))},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        ):
            await socket.send(json.dumps(event))
        while not events or events[-1]["type"] != "response.done":
            events.append(json.loads(await socket.recv()))
    return events


async def test_neither_secrets_nor_speech_whatever_happens(
    tmp_path: Path, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    understand = Models.understand
    defects = ["Inertia, said the student, and then it broke"]

    def break_once(self: Models, text: str, context: Context) -> Understanding:
        if defects and context.tenant == "5b":
            raise RuntimeError(defects.pop())
        return understand(self, text, context)

    store = KeyStore(tmp_path / "keys.json")
    _, secret = store.create("5b")
    async with (
        served(tmp_path, doorman=KeyedDoorman(store, SystemClock())) as door,
        httpx.AsyncClient(base_url=door.url, headers={"Authorization": f"Bearer {secret}"}) as client,
    ):
        minted = (await client.post("/v1/realtime/client_secrets", json={})).json()["value"]
        monkeypatch.setattr(Models, "understand", break_once)
        for bearer in (minted, secret):
            for _ in range(2):
                done = (await _turn(door.url, bearer))[-1]["response"]
        assert done["status"] == "completed"
        await client.post(
            "/v1/audio/transcriptions",
            files={"file": ("what is inertia.wav", recording(0.4))},
            data={"model": "whisper-1", "prompt": "inertia"},
        )
        await client.post("/v1/audio/speech", json={"model": "tts-1", "voice": "alloy", "input": "inertia"})
    text = logged.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["path"] for line in lines if line.get("method") == "WEBSOCKET"] == ["/v1/realtime"] * 4
    assert {line["tenant"] for line in lines if "tenant" in line} == {"5b"}
    assert not defects, "something broke"
    for word in ("sk-aula", "ek_", secret.rpartition("-")[2], minted[-10:], "nertia", "what is", "student"):
        assert word not in text


async def test_what_nobody_awaited_is_told_without_its_words(logged: io.StringIO) -> None:
    try:
        raise ValueError("what the student said")
    except ValueError as error:
        log_stray(None, {"message": "Task exception was never retrieved", "exception": error, "future": "said"})
    log_stray(None, {"message": "Unclosed transport", "transport": "said"})
    first, second = (json.loads(line) for line in logged.getvalue().splitlines())
    assert (first["type"], second["message"]) == ("ValueError", "Unclosed transport")
    assert first["where"]
    assert "said" not in logged.getvalue()
