"""The connection under every door: what leaves together, and who hears that it is lost."""

import asyncio
import json
from contextlib import closing
from typing import Any

import pytest

from aula.core.settings import Settings
from aula.servers.serving import open_doors
from aula.servers.wire import MOST_JOINED, Joining, link_of
from tests.servers.kserve.serving import Gate, make_house, until

ONE = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()


class Plain:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def write(self, data: bytes) -> None:
        self.did.append(data)

    def close(self) -> None:
        self.did.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.did


@pytest.fixture
async def plain() -> Plain:
    return Plain()


@pytest.fixture
async def joining(plain: Plain) -> Joining:
    return Joining(plain, asyncio.get_running_loop())


async def test_a_head_leaves_with_its_body(plain: Plain, joining: Joining) -> None:
    joining.write(b"head ")
    assert plain.did == []
    joining.write(b"body")
    assert plain.did == [b"head body"]
    await asyncio.sleep(0)
    assert plain.did == [b"head body"]


async def test_what_nothing_follows_leaves_in_the_next_round(plain: Plain, joining: Joining) -> None:
    joining.write(b"head")
    await asyncio.sleep(0)
    assert plain.did == [b"head"]
    joining.write(b"piece")
    await asyncio.sleep(0)
    assert plain.did == [b"head", b"piece"]


async def test_much_is_not_copied_and_order_is_kept(plain: Plain, joining: Joining) -> None:
    much = bytes(MOST_JOINED + 1)
    joining.write(b"head")
    joining.write(much)
    joining.write(much)
    assert plain.did[0] == b"head"
    assert plain.did[1] is much
    assert plain.did[2] is much


async def test_closing_loses_nothing(plain: Plain, joining: Joining) -> None:
    joining.write(b"refused")
    joining.close()
    assert plain.did == [b"refused", "closed"]
    assert joining.is_closing()


def test_another_server_has_no_link() -> None:
    assert link_of({"type": "http"}) is None
    assert link_of({"type": "http", "state": {}}) is None


async def test_a_client_who_closes_his_connection_is_not_worked_for() -> None:
    gate = Gate()
    house = make_house(gate)
    house.settings = Settings({"serve.port": 0, "serve.grpc_port": -1})
    async with house.runtime, open_doors(house) as address:
        await house.runtime.load("gate")
        gate.is_open.clear()
        gate.entered.clear()
        ran = gate.runs
        first = await _asks(address.port)
        await asyncio.to_thread(gate.entered.wait, 30)
        second = await _asks(address.port)
        await until(lambda: house.runtime.statistics().in_flight == 2)
        second[1].close()
        await until(lambda: house.runtime.statistics().cancelled == 1)
        gate.is_open.set()
        with closing(first[1]):
            assert (await first[0].readline()).startswith(b"HTTP/1.1 200")
        await until(lambda: house.runtime.statistics().in_flight == 0)
        assert gate.runs == ran + 1, "what nobody waits for is not run"


async def _asks(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v2/models/gate/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(ONE)}\r\n\r\n"
    writer.write(head.encode() + ONE)
    return reader, writer
