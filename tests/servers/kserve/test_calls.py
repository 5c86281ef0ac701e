"""gRPC in a whole house: its certificate, true keys, limits, the log, and the end of service."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.core.telemetry import HTTP_REQUESTS
from aula.scheduling.admission import Quota
from aula.servers.keys import KeyedDoorman, KeyStore
from aula.servers.kserve.protocol import SERVICE, protocol
from aula.servers.serving import open_doors
from tests.servers.certificates import certificate
from tests.servers.doors import Served, served, small_house
from tests.servers.kserve.serving import GATE, TWICE, Gate, toy_rung, twice

messages = protocol()
TENSOR = np.array([1, 2, 3], np.float32).tobytes()


def _wish(model: str = "gate", raw: bytes = TENSOR) -> Any:
    inputs = [{"name": "x", "shape": [len(raw) // 4], "datatype": "FP32"}]
    return messages.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=[raw])


def _infer(channel: grpc.aio.Channel) -> Callable[..., Any]:
    taken, given = messages.methods["ModelInfer"]
    infer: Callable[..., Any] = channel.unary_unary(f"/{SERVICE}/ModelInfer", taken.SerializeToString, given.FromString)
    return infer


def _bearer(secret: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {secret}"),)}


async def _refused(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details() or ""


@asynccontextmanager
async def _served(home: Path, gate: Gate | None = None, **options: Any) -> AsyncIterator[Served]:
    engines = [toy_rung(GATE, gate or Gate()), toy_rung(TWICE, twice)]
    async with served(home, engines=engines, serve__grpc_port=0, **options) as door:
        yield door


async def test_the_certificate_of_https_is_that_of_grpc_too(tmp_path: Path) -> None:
    path = certificate(tmp_path / "tls.pem")
    async with _served(tmp_path, serve__tls_cert=str(path)) as door:
        trusted = grpc.ssl_channel_credentials(path.read_bytes())
        async with grpc.aio.secure_channel(str(door.address.grpc), trusted) as channel:
            assert (await _infer(channel)(_wish())).raw_output_contents == [TENSOR]
        async with grpc.aio.insecure_channel(str(door.address.grpc)) as plain:
            assert (await _refused(_infer(plain)(_wish())))[0] == "UNAVAILABLE"


async def test_true_keys_over_both_doors(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, right = store.create("5b", abilities=("infer",), tier="caption")
    gone, gone_secret = store.create("5b", abilities=("infer",))
    store.revoke(gone.name)
    _, other = store.create("5b")
    _, slow = store.create("5b", abilities=("infer",), quota=Quota(rate=0.5, burst=1))
    wish = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
    async with (
        _served(tmp_path, doorman=KeyedDoorman(store, FakeClock())) as door,
        grpc.aio.insecure_channel(str(door.address.grpc)) as channel,
        httpx.AsyncClient(base_url=door.url) as http,
    ):
        infer = _infer(channel)

        async def over_http(secret: str, **more: Any) -> int:
            headers = {"Authorization": f"Bearer {secret}"}
            return (await http.post("/v2/models/gate/infer", json={**wish, **more}, headers=headers)).status_code

        await infer(_wish(), **_bearer(right))
        assert await over_http(right) == 200
        for secret, code, status in (
            ("sk-aula-wrong", "UNAUTHENTICATED", 401),
            (gone_secret, "UNAUTHENTICATED", 401),
            (other, "PERMISSION_DENIED", 403),
        ):
            assert (await _refused(infer(_wish(), **_bearer(secret))))[0] == code
            assert await over_http(secret) == status
        assert (await _refused(infer(_wish())))[0] == "UNAUTHENTICATED"
        assert await over_http(right, parameters={"tenant": "6a"}) == 403
        assert await over_http(right, parameters={"tier": "question"}) == 403
        await infer(_wish(), **_bearer(slow))
        assert (await _refused(infer(_wish(), **_bearer(slow))))[0] == "RESOURCE_EXHAUSTED"
        assert await over_http(slow) == 429


async def test_so_many_at_a_time_hold_over_grpc(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, secret = store.create("5b", abilities=("infer",), quota=Quota(concurrency=1))
    gate = Gate()
    gate.is_open.clear()
    async with (
        _served(tmp_path, gate, doorman=KeyedDoorman(store, FakeClock())) as door,
        grpc.aio.insecure_channel(str(door.address.grpc)) as channel,
    ):
        infer = _infer(channel)
        first = infer(_wish(), **_bearer(secret))
        await asyncio.to_thread(gate.entered.wait)
        assert (await _refused(infer(_wish(), **_bearer(secret))))[0] == "RESOURCE_EXHAUSTED"
        gate.is_open.set()
        await first
        await infer(_wish(), **_bearer(secret))


async def test_bytes_beyond_the_limits_are_refused_over_both_doors(tmp_path: Path) -> None:
    large = bytes(2 * 2**20)

    async def pieces() -> AsyncIterator[bytes]:
        """Without a length that would tell."""
        for _ in range(4):
            yield bytes(2**19)

    async with (
        _served(tmp_path, serve__max_body_mb=1) as door,
        grpc.aio.insecure_channel(str(door.address.grpc)) as channel,
        httpx.AsyncClient(base_url=door.url) as http,
    ):
        assert (await _refused(_infer(channel)(_wish(raw=large))))[0] == "RESOURCE_EXHAUSTED"
        for content in (large, pieces()):
            answer = await http.post("/v2/models/gate/infer", content=content)
            assert (answer.status_code, type(answer.json()["error"])) == (413, str)
        metadata = (("x-long", "a" * 40_000),)
        assert (await _refused(_infer(channel)(_wish(), metadata=metadata)))[0] == "RESOURCE_EXHAUSTED"
        assert (await _infer(channel)(_wish())).raw_output_contents == [TENSOR]


async def test_connections_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with _served(tmp_path, serve__max_connections=2) as door, AsyncExitStack() as stack:
        address = str(door.address.grpc)
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, own)) for _ in range(3)]
        for channel in channels[:2]:
            await _infer(channel)(_wish())
        assert (await _refused(_infer(channels[2])(_wish())))[0] == "UNAVAILABLE"


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path) -> None:
    async with _served(tmp_path, serve__header_seconds=0.2) as door:
        reader, writer = await asyncio.open_connection(*str(door.address.grpc).split(":"))
        try:
            assert b"Did not receive HTTP/2" in await reader.read(), "told, and then closed"
        finally:
            writer.close()
            await writer.wait_closed()


async def test_a_stream_that_says_nothing_is_ended(tmp_path: Path) -> None:
    clock = FakeClock()
    async with (
        _served(tmp_path, clock=clock, serve__keep_seconds=60) as door,
        grpc.aio.insecure_channel(str(door.address.grpc)) as channel,
    ):
        stream = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            messages.ModelInferRequest.SerializeToString,
            messages.ModelStreamInferResponse.FromString,
        )()
        await stream.write(_wish())
        assert (await stream.read()).infer_response.model_name == "gate"
        reading = asyncio.ensure_future(stream.read())
        while not reading.done():
            await asyncio.sleep(0.001)
            clock.advance(1)
        assert (await _refused(reading))[0] == "DEADLINE_EXCEEDED"


async def test_a_call_under_way_is_finished_and_no_new_one_is_begun(tmp_path: Path) -> None:
    gate = Gate()
    gate.is_open.clear()
    async with small_house(tmp_path, engines=[toy_rung(GATE, gate)], serve__grpc_port=0) as (house, _):
        async with open_doors(house) as address:
            channel = grpc.aio.insecure_channel(str(address.grpc))
            infer = _infer(channel)
            first = infer(_wish())
            await asyncio.to_thread(gate.entered.wait)

            async def meanwhile() -> tuple[tuple[str, str], int]:
                await house.traffic.closing.wait()
                try:
                    return await _refused(infer(_wish())), house.traffic.turns
                finally:
                    gate.is_open.set()

            watching = asyncio.ensure_future(meanwhile())
            ending = asyncio.ensure_future(_value(first))
            house.traffic.close()
            (code, why), turns = await watching
            assert (code, turns) == ("UNAVAILABLE", 1)
            assert "about to stop" in why
        assert (await ending).raw_output_contents == [TENSOR]
        await channel.close()


async def _value(call: Any) -> Any:
    return await call


async def test_each_call_has_a_line_in_the_log_and_counts(tmp_path: Path, logged: io.StringIO) -> None:
    async with _served(tmp_path) as door, grpc.aio.insecure_channel(str(door.address.grpc)) as channel:
        await _infer(channel)(_wish(), metadata=(("authorization", "Bearer sk-aula-secret"),))
        await _refused(_infer(channel)(_wish("nobody")))
        counted = door.house.runtime.telemetry.value(HTTP_REQUESTS, "kserve", "2xx")
        refused = door.house.runtime.telemetry.value(HTTP_REQUESTS, "kserve", "4xx")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    told = [(line["status"], line["tenant"]) for line in lines if line.get("method") == "GRPC"]
    assert told == [(200, "local"), (404, "local")]
    assert (counted, refused) == (1, 1)
    assert "sk-aula" not in logged.getvalue()
