"""Opening and closing the doors: addresses, keys, TLS, and turns that are finished."""

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from aula.core.clock import FakeClock
from aula.core.errors import SettingsError
from aula.core.types import Context, Understanding
from aula.runtime import Runtime
from aula.servers import kserve, serving
from aula.servers.house import House
from aula.servers.notices import notify_systemd
from aula.servers.serving import Address, is_loopback, open_doors
from aula.servers.traffic import Traffic
from tests.servers.certificates import certificate
from tests.servers.doors import Models, served, small_house

QUESTION = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}


async def test_a_turn_under_way_is_finished_and_no_new_one_is_begun(tmp_path: Path, monkeypatch: Any) -> None:
    entered, free = threading.Event(), threading.Event()
    understand = Models.understand

    def wait(self: Models, text: str, context: Context) -> Understanding:
        entered.set()
        free.wait()
        return understand(self, text, context)

    monkeypatch.setattr(Models, "understand", wait)
    async with small_house(tmp_path) as (house, _), httpx.AsyncClient() as client:
        async with open_doors(house) as address:
            await asyncio.gather(*(client.get(f"{address.http}/livez") for _ in range(2)))  # connections that are kept
            asking = asyncio.ensure_future(client.post(f"{address.http}/v1/chat/completions", json=QUESTION))
            await asyncio.to_thread(entered.wait)

            async def meanwhile() -> tuple[int, str, type]:
                """On the connection that was kept, and on a new one."""
                await house.traffic.closing.wait()
                try:
                    ready = await client.get(f"{address.http}/readyz")
                    late = await client.post(f"{address.http}/v1/chat/completions", json=QUESTION)
                    with pytest.raises(httpx.ConnectError) as refused:
                        await client.get(f"{address.http}/livez")
                    return late.status_code, ready.json()["why"], refused.type
                finally:
                    free.set()

            watching = asyncio.ensure_future(meanwhile())
        answered = await asking
        assert answered.status_code == 200
        assert answered.json()["choices"][0]["message"]["content"].startswith("Inertia")
        assert await watching == (503, "closing", httpx.ConnectError)


async def test_without_turns_nothing_is_waited_for() -> None:
    assert await Traffic().finished(FakeClock(), 1.0)


async def test_a_turn_that_does_not_end_is_not_waited_for_for_ever() -> None:
    clock, traffic = FakeClock(), Traffic()
    with traffic.turn():
        waiting = asyncio.ensure_future(traffic.finished(clock, 5.0))
        await asyncio.sleep(0)
        clock.advance(5.0)
        assert not await waiting


async def test_beyond_loopback_keys_are_needed_or_a_word(tmp_path: Path) -> None:
    async with small_house(tmp_path, serve__host="0.0.0.0") as (house, _):
        with pytest.raises(SettingsError, match="there are no keys"):
            async with open_doors(house):
                pass
    async with (
        small_house(tmp_path, serve__host="0.0.0.0", serve__without_keys=True) as (house, _),
        open_doors(house) as address,
    ):
        assert address.is_open


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        async with small_house(tmp_path, serve__port=other.getsockname()[1]) as (house, _):
            with pytest.raises(SettingsError, match="cannot be listened on"):
                async with open_doors(house):
                    pass


async def test_not_ready_before_it_is_warm(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _), httpx.AsyncClient() as client:
        seen: list[Any] = []

        async def warm() -> None:
            port = next(iter(house.traffic.ports))
            seen.append(await client.get(f"http://127.0.0.1:{port}/readyz"))
            seen.append(await client.get(f"http://127.0.0.1:{port}/livez"))

        async with open_doors(house, warm=warm) as address:
            seen.append(await client.get(f"{address.http}/readyz"))
        assert [one.status_code for one in seen] == [503, 200, 200]
        assert seen[2].json()["capabilities"]["embed"]["rung"] == "tiny-embed"


async def test_the_collector_passes_over_what_is_loaded_until_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = asyncio.Event()
    spared: list[int] = []

    def ready(_: Address) -> None:
        spared.append(gc.get_freeze_count())
        stop.set()

    async with small_house(tmp_path) as (house, _):

        @asynccontextmanager
        async def opened(*_: Any, **__: Any) -> AsyncIterator[Runtime]:
            yield house.runtime

        monkeypatch.setattr(serving, "open_runtime", opened)
        await serving.serve(house.settings, on_ready=ready, stop=stop)
    assert spared[0] > 10_000
    assert gc.get_freeze_count() == 0


class _Grpc:
    """As the other door's: bound when it is made, then started and stopped."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.did: list[str] = []

    async def start(self) -> None:
        self.did.append("start")

    async def stop(self, grace: float) -> None:
        self.did.append("stop")


async def test_grpc_is_started_and_stopped_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Grpc] = []

    async def grpc_server(house: House, address: str) -> _Grpc:
        made.append(_Grpc(address))
        return made[0]

    monkeypatch.setattr(kserve, "grpc_server", grpc_server, raising=False)
    async with small_house(tmp_path, serve__grpc_port=0) as (house, _):
        async with open_doors(house) as address:
            assert made[0].address == address.grpc
            assert made[0].did == ["start"]
            assert int(made[0].address.rpartition(":")[2]) > 0
        assert made[0].did == ["start", "stop"]
    async with served(tmp_path, serve__grpc_port=-1) as door:
        assert door.address.grpc is None


async def test_https_with_acertificate(tmp_path: Path) -> None:
    path = certificate(tmp_path / "tls.pem")
    async with served(tmp_path, serve__tls_cert=str(path)) as door:
        assert door.url.startswith("https://")
        import ssl

        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(path))) as client:
            assert (await client.get(f"{door.url}/livez")).text == "ok\n"
        trusted = ssl.create_default_context(cafile=str(path))
        async with websockets.connect(f"{door.url.replace('https', 'wss')}/v1/realtime", ssl=trusted) as talking:
            assert "session.created" in str(await talking.recv())


async def test_a_file_that_is_no_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls.pem").write_text("nothing")
    with pytest.raises(SettingsError, match=r"serve\.tls_cert"):
        async with served(tmp_path, serve__tls_cert=str(tmp_path / "tls.pem")):
            pass


def test_systemd_is_told_where_it_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_systemd("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "s"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        assert notify_systemd("READY=1")
        assert line.recv(64) == b"READY=1"


@pytest.mark.parametrize(
    ("host", "wanted"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_what_is_loopback(host: str, wanted: bool) -> None:
    assert is_loopback(host) is wanted
