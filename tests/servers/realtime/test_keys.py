"""Keys at the door of conversations: true keys, limits that hold for each turn, pages of other sites, frames."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from aula.core.clock import FakeClock
from aula.scheduling.admission import Quota
from aula.servers.keys import KeyedDoorman, KeyStore
from tests.servers.doors import Served, served
from tests.servers.realtime.speaking import loud, quiet, text_of

PUSH = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
TEXT = {"type": "realtime", "output_modalities": ["text"]}
QUESTION = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is inertia?"}]},
}


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
async def door(tmp_path: Path, store: KeyStore) -> AsyncIterator[Served]:
    store.create("nobody")
    async with served(
        tmp_path, doorman=KeyedDoorman(store, FakeClock()), serve__origins="https://school.example"
    ) as one:
        yield one


def _connect(door: Served, secret: str | None = None, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return websockets.connect(f"{door.url.replace('http', 'ws', 1)}/v1/realtime", additional_headers=headers, **more)


async def _status(door: Served, secret: str | None = None, **more: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        await _connect(door, secret, **more)
    return refused.value.response.status_code, json.loads(refused.value.response.body)["error"]["code"]


async def _until(socket: Any, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (event := json.loads(await socket.recv()))["type"] != kind:
            pass
    return dict(event)


async def test_a_key_opens_and_whatever_is_wrong_with_it_has_its_own_status(door: Served, store: KeyStore) -> None:
    _, secret = store.create("5b")
    gone, gone_secret = store.create("5b")
    store.revoke(gone.name)
    _, other = store.create("5b", abilities=("infer",))
    _, busy = store.create("5b", quota=Quota(rate=0.1, burst=1))
    assert await _status(door) == (401, "missing_api_key")
    assert await _status(door, "sk-aula-wrong") == (401, "invalid_api_key")
    assert await _status(door, gone_secret) == (401, "invalid_api_key")
    assert await _status(door, other) == (403, "not_allowed")
    async with _connect(door, secret) as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"
    async with _connect(door, busy) as socket:
        await socket.recv()
    assert await _status(door, busy) == (429, "rate_limit_exceeded")


async def test_a_rate_counts_turns_and_not_only_connections(door: Served, store: KeyStore) -> None:
    _, secret = store.create("5b", quota=Quota(rate=0.001, burst=3))
    async with _connect(door, secret) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": TEXT}))
        for wanted in ("completed", "completed", "failed"):
            await socket.send(json.dumps(QUESTION))
            await socket.send(json.dumps({"type": "response.create"}))
            done = (await _until(socket, "response.done"))["response"]
            assert done["status"] == wanted
        assert done["status_details"]["error"]["code"] == "rate_limit_exceeded"


async def test_beyond_its_rate_nothing_is_heard(door: Served, store: KeyStore) -> None:
    _, secret = store.create("5b", quota=Quota(rate=0.001, burst=2))
    async with _connect(door, secret) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": PUSH}))
        sound = {"type": "input_audio_buffer.append", "audio": text_of(loud(350) + quiet(100))}
        for event in (sound, {"type": "input_audio_buffer.commit"}, {"type": "response.create"}):
            await socket.send(json.dumps(event))
        assert (await _until(socket, "response.done"))["response"]["status"] == "completed", "a turn counts once"
        opened = door.models.open
        await socket.send(json.dumps(sound))
        assert (await _until(socket, "error"))["error"]["code"] == "rate_limit_exceeded"
        assert door.models.open == opened


async def test_a_key_that_is_revoked_ends_its_conversations_and_its_secrets(door: Served, store: KeyStore) -> None:
    key, secret = store.create("5b")
    async with httpx.AsyncClient(base_url=door.url, headers={"Authorization": f"Bearer {secret}"}) as http:
        minted = (await http.post("/v1/realtime/client_secrets", json={})).json()["value"]
    async with _connect(door, minted) as socket:
        await socket.send(json.dumps({"type": "session.update", "session": TEXT}))
        await _until(socket, "session.updated")
        store.revoke(key.name)
        await socket.send(json.dumps(QUESTION))
        await socket.send(json.dumps({"type": "response.create"}))
        done = (await _until(socket, "response.done"))["response"]
        assert (done["status"], done["status_details"]["error"]["code"]) == ("failed", "invalid_api_key")
    assert await _status(door, minted) == (401, "invalid_api_key")


async def test_only_pages_that_are_listed_may_open_a_conversation(door: Served, store: KeyStore) -> None:
    """A browser asks nobody before it opens a WebSocket: the server must look."""
    _, secret = store.create("5b")
    assert await _status(door, secret, origin="https://elsewhere.example") == (403, "wrong_origin")
    for origin in ("https://school.example", door.url):
        async with _connect(door, secret, origin=origin) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"


async def test_a_frame_beyond_the_event_is_told_and_one_beyond_that_ends_the_connection(
    door: Served, store: KeyStore
) -> None:
    """The door's own options reach uvicorn: no compression, and frames of 16 MiB."""
    _, secret = store.create("5b")
    async with _connect(door, secret, max_size=None) as socket:
        assert "Sec-WebSocket-Extensions" not in socket.response.headers
        await socket.recv()
        await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 10_000_000}))
        assert (await _until(socket, "error"))["error"]["code"] == "event_too_large"
        with suppress(ConnectionClosed):  # it may be closed before all was sent
            await socket.send("A" * (17 * 2**20))
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


async def test_sound_before_the_session_is_set_up_and_events_out_of_order(door: Served, store: KeyStore) -> None:
    _, secret = store.create("5b")
    async with _connect(door, secret) as socket:
        for event in (
            {"type": "input_audio_buffer.append", "audio": text_of(quiet(50))},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.cancel"},
            {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 0},
        ):
            await socket.send(json.dumps(event))
        for code in ("input_audio_buffer_commit_empty", "response_cancel_not_active"):
            assert (await _until(socket, "error"))["error"]["code"] == code
        assert (await _until(socket, "error"))["error"]["param"] == "item_id"
