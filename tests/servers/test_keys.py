"""Keys: made, read again, compared, revoked, and what each of them opens."""

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from aula.core.clock import FakeClock
from aula.core.errors import (
    InputError,
    KeyAbsentError,
    KeyRefusedError,
    NotAllowedError,
    OverloadError,
    SettingsError,
)
from aula.scheduling.admission import Quota
from aula.servers.callers import DEPARTURES
from aula.servers.keys import KeyedDoorman, KeyStore
from tests.servers.doors import recording, served

CHAT = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}


def _connection(secret: str | None = None, *, subprotocol: bool = False, **headers: str) -> HTTPConnection:
    named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    if secret is not None and not subprotocol:
        named.append((b"authorization", f"Bearer {secret}".encode("latin-1")))
    offered = [f"openai-insecure-api-key.{secret}"] if subprotocol else []
    return HTTPConnection({"type": "http", "headers": named, "subprotocols": offered, DEPARTURES: []})


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "home" / "keys.json")


def test_the_file_holds_no_secret_and_is_its_owners_alone(store: KeyStore) -> None:
    key, secret = store.create("5b", note="tablets")
    raw = store.path.read_text()
    assert secret not in raw
    assert secret.rpartition("-")[2] not in raw
    assert json.loads(raw)["keys"][0]["tenant"] == "5b"
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert store.read() == (key,)


def test_a_key_names_its_caller(store: KeyStore) -> None:
    key, secret = store.create("5b", tier="caption", abilities=("ask", "teach"))
    doorman = KeyedDoorman(store, FakeClock())
    for connection in (_connection(secret), _connection(secret, subprotocol=True), _connection(x_api_key=secret)):
        caller = doorman.admit(connection, "ask")
        assert (caller.tenant, caller.tier, caller.key) == ("5b", "caption", key.name)
    with pytest.raises(NotAllowedError, match="ask, teach"):
        doorman.admit(_connection(secret), "infer")


@pytest.mark.parametrize(
    "twist", ["", "x", "sk-aula-", "sk-aula-zz-zz", "é", "sk-aula-{name}-", "{secret}x", "{secret}\u00ff"]
)
def test_what_is_no_key_is_refused(store: KeyStore, twist: str) -> None:
    key, secret = store.create("5b")
    doorman = KeyedDoorman(store, FakeClock())
    brought = twist.format(name=key.name, secret=secret)
    with pytest.raises(KeyRefusedError if brought else KeyAbsentError):
        doorman.admit(_connection(brought), "ask")


def test_one_keys_name_with_anothers_secret_is_refused(store: KeyStore) -> None:
    (first, secret), (second, _) = store.create("5a"), store.create("5b")
    with pytest.raises(KeyRefusedError):
        KeyedDoorman(store, FakeClock()).admit(_connection(secret.replace(first.name, second.name)), "ask")


def test_a_new_key_and_a_revoked_one_are_known_at_once(store: KeyStore) -> None:
    doorman = KeyedDoorman(store, FakeClock())
    assert doorman.admit(_connection(), "ask").tenant == "local"
    key, secret = store.create("5b")
    with pytest.raises(KeyAbsentError):
        doorman.admit(_connection(), "ask")
    assert doorman.admit(_connection(secret), "ask").tenant == "5b"
    store.revoke(key.name)
    with pytest.raises(KeyRefusedError, match="revoked"):
        doorman.admit(_connection(secret), "ask")


def test_a_file_that_goes_or_breaks_opens_nothing(store: KeyStore) -> None:
    _, secret = store.create("5b")
    doorman = KeyedDoorman(store, FakeClock())
    store.path.write_text("{")
    assert doorman.admit(_connection(secret), "ask").tenant == "5b", "the keys from before hold"
    store.path.unlink()
    for connection in (_connection(), _connection(secret)):
        with pytest.raises((KeyAbsentError, KeyRefusedError)):
            doorman.admit(connection, "ask")
    store.path.write_text("[]")
    with pytest.raises(SettingsError, match="holds no keys"):
        KeyedDoorman(store, FakeClock())


def test_a_rate_holds_before_any_work(store: KeyStore) -> None:
    clock = FakeClock()
    _, secret = store.create("5b", quota=Quota(rate=1.0, burst=2))
    doorman = KeyedDoorman(store, clock)
    for _ in range(2):
        doorman.admit(_connection(secret), "ask")
    with pytest.raises(OverloadError) as caught:
        doorman.admit(_connection(secret), "ask")
    assert (caught.value.reason, caught.value.retry_after_s) == ("rate", 1.0)
    clock.advance(1.0)
    doorman.admit(_connection(secret), "ask")


def test_so_many_at_a_time(store: KeyStore) -> None:
    _, secret = store.create("5b", quota=Quota(concurrency=1))
    doorman = KeyedDoorman(store, FakeClock())
    first = _connection(secret)
    doorman.admit(first, "ask")
    with pytest.raises(OverloadError, match="concurrency"):
        doorman.admit(_connection(secret), "ask")
    for leave in first.scope[DEPARTURES]:
        leave()
    doorman.admit(_connection(secret), "ask")


def test_a_key_speaks_for_its_tenant_and_no_more_urgently_than_it_may(store: KeyStore) -> None:
    _, secret = store.create("5b", tier="caption")
    _, proxy = store.create("school", abilities=("ask", "delegate"))
    doorman = KeyedDoorman(store, FakeClock())
    assert doorman.admit(_connection(secret, x_aula_tier="batch"), "ask").tier == "batch"
    with pytest.raises(NotAllowedError, match="more urgent"):
        doorman.admit(_connection(secret, x_aula_tier="question"), "ask")
    with pytest.raises(NotAllowedError, match="may not speak for others"):
        doorman.admit(_connection(secret, x_aula_tenant="5a"), "ask")
    assert doorman.admit(_connection(proxy, x_aula_tenant="5a"), "ask").tenant == "5a"


@pytest.mark.parametrize(
    "wrong", [{"tenant": ""}, {"tenant": "a\nb"}, {"tier": "urgent"}, {"abilities": ("fly",)}], ids=str
)
def test_a_key_that_cannot_be_is_not_made(store: KeyStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        store.create(**{"tenant": "5b", **wrong})
    assert store.read() == ()


async def test_every_endpoint_asks_for_the_key_before_it_reads(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, ask = store.create("5b", abilities=("ask",))
    key, gone = store.create("5b")
    store.revoke(key.name)
    calls: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"json": CHAT},
        "/v1/embeddings": {"json": {"model": "aula-embed", "input": "x"}},
        "/v1/audio/speech": {"json": {"model": "tts-1", "input": "x"}},
        "/v1/audio/transcriptions": {"files": {"file": ("q.wav", recording(0.2))}, "data": {"model": "whisper-1"}},
    }
    async with (
        served(tmp_path, doorman=KeyedDoorman(store, FakeClock())) as door,
        httpx.AsyncClient(base_url=door.url) as client,
    ):

        async def status(path: str, secret: str | None, **body: Any) -> int:
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            answer = await client.post(path, headers=headers, **body)
            assert answer.status_code == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
            return answer.status_code

        for path, body in calls.items():
            assert await status(path, None, **body) == 401
            assert await status(path, "sk-aula-wrong", **body) == 401
            assert await status(path, gone, **body) == 401
            assert await status(path, ask, **body) == (200 if "chat" in path else 403)
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": f"Bearer {ask}"})).status_code == 200
        assert (await client.get("/livez")).status_code == (await client.get("/readyz")).status_code == 200


async def test_over_its_rate_a_key_is_told_when_to_come_back(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, secret = store.create("5b", quota=Quota(rate=0.5, burst=1))
    async with (
        served(tmp_path, doorman=KeyedDoorman(store, FakeClock())) as door,
        httpx.AsyncClient(base_url=door.url, headers={"Authorization": f"Bearer {secret}"}) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await client.post("/v1/chat/completions", content=b"never read")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert refused.json()["error"]["type"] == "rate_limit_error"
