"""A whole house over true sockets, under clients that mean no good: each gets its answer or is left, and the next one
is served. Malformed messages are fuzz.py's, in each door's own folder."""

import asyncio
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from aula.core.clock import FakeClock
from aula.servers.wire import listen
from tests.servers.doors import Served, served
from tests.servers.kserve.serving import GATE, plain, toy_rung

QUESTION = {"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}
SESSIONS = 1000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def door(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Served]:
    async with served(tmp_path, clock=clock, engines=[toy_rung(GATE, plain)]) as one:
        yield one


async def _is_well(door: Served) -> bool:
    async with httpx.AsyncClient(base_url=door.url) as client:
        return (await client.post("/v1/chat/completions", json=QUESTION)).status_code == 200


async def _passes(clock: FakeClock, holds: Callable[[], bool], step: float = 1.0) -> None:
    """Time goes on until that holds."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)
            clock.advance(step)


async def _left(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _raw(door: Served, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(door.address.host, door.address.port)
    writer.write(head)
    await writer.drain()
    return reader, writer


HALVES = {
    "half a head": b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    "half a body": b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"model"',
    "half tensors": b"POST /v2/models/gate/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{",
    "half a handshake": b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("head", HALVES.values(), ids=HALVES.keys())
async def test_fifty_that_stop_in_the_middle_are_told_and_left(door: Served, clock: FakeClock, head: bytes) -> None:
    opened = await asyncio.gather(*(_raw(door, head) for _ in range(50)))
    answers = asyncio.gather(*(reader.read() for reader, _ in opened))
    assert await _is_well(door), "they are in nobody's way"
    await _passes(clock, answers.done)
    assert {answer[9:12] for answer in await answers} == {b"408"}
    for _, writer in opened:
        await _left(writer)
    await _passes(clock, lambda: door.house.traffic.connections == 0)
    assert await _is_well(door)


async def test_one_that_never_reads_its_answer_is_cut_off(door: Served, clock: FakeClock) -> None:
    """Two minutes of sound are more than the kernel's buffers hold."""
    body = json.dumps({"model": "tts-1", "voice": "alloy", "input": "a " * 2040, "response_format": "wav"}).encode()
    head = (
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    )
    _, writer = await _raw(door, head % len(body) + b"\r\n" + body)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await _passes(clock, lambda: bool(door.models.said), step=0.0)
    await _passes(clock, lambda: door.models.closed == door.models.open and not door.house.traffic.turns)
    await _left(writer)
    assert await _is_well(door)


async def test_the_kernel_gives_up_peers_that_are_gone() -> None:
    """Half-open connections: nothing comes any more, and nobody says so."""
    with listen("127.0.0.1", 0, 60.0) as listening:
        assert listening.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's algorithm on: 40 ms an answer"
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/../metrics", 400),
        ("/v1/%2e%2e/metrics", 400),
        ("/v2/models/..%2f..%2fetc/infer", 400),
        ("/v2/models/%00/infer", 400),
        ("/v1/models/aula%5c..%5cx", 400),
        ("/%2e/livez", 400),
        ("//etc/passwd", 404),
        ("/v1/models/aula:..", 404),
    ],
)
async def test_path_tricks_at_every_door(door: Served, path: str, status: int) -> None:
    reader, writer = await _raw(door, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    await _left(writer)
    assert int(answer[9:12]) == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v2/models/x/infer", "/v1/realtime"])
async def test_huge_heads_at_every_door(door: Served, path: str) -> None:
    for headers in ("X-Long: " + "a" * 30_000, "\r\n".join(["X: y"] * 150), "X-Endless: " + "a" * 200_000):
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        more = upgrade + "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n" if "realtime" in path else ""
        reader, writer = await _raw(door, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}{headers}\r\n\r\n".encode())
        assert (await reader.read(12))[9:12] == b"431"
        await _left(writer)
    assert await _is_well(door)


async def test_unknown_models_at_every_door(door: Served) -> None:
    async with httpx.AsyncClient(base_url=door.url) as client:
        for path, body in (
            ("/v1/chat/completions", {**QUESTION, "model": "gpt-9"}),
            ("/v1/embeddings", {"model": "gpt-9", "input": "x"}),
            ("/v1/audio/speech", {"model": "gpt-9", "voice": "alloy", "input": "x"}),
            ("/v1/chat/completions", {**QUESTION, "model": "aula:../../etc"}),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        answer = await client.post("/v2/models/gpt-9/infer", json={"inputs": []})
        assert (answer.status_code, "gpt-9" in answer.json()["error"]) == (404, True)
    address = f"{door.url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-9"
    async with websockets.connect(address) as talking:
        assert json.loads(await talking.recv())["error"]["code"] == "model_not_found"


async def test_a_thousand_conversations_at_once(tmp_path: Path) -> None:
    """Half as many may be open: the others are told at once, the open ones are answered, and all is given back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * SESSIONS:
        pytest.skip(f"this machine allows {hard} open files: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * SESSIONS), hard))
    try:
        async with served(tmp_path, realtime__sessions=SESSIONS // 2) as door:
            address = f"{door.url.replace('http', 'ws', 1)}/v1/realtime"
            waiting = (websockets.connect(address, open_timeout=60, ping_interval=None) for _ in range(SESSIONS))
            answers: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
            inside = [one for one in answers if not isinstance(one, BaseException)]
            refused = [one for one in answers if isinstance(one, InvalidStatus)]
            assert (len(inside), len(refused)) == (SESSIONS // 2, SESSIONS // 2)
            assert {one.response.status_code for one in refused} == {429}
            assert await _is_well(door)
            for place in (0, len(inside) - 1):
                await inside[place].send('{"type": "session.update", "session": {}}')
                while json.loads(await inside[place].recv())["type"] != "session.updated":
                    pass
            for one in inside:
                one.transport.abort()
            async with asyncio.timeout(30):
                while door.house.traffic.guests:  # noqa: ASYNC110 - it ends in the server's own tasks
                    await asyncio.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
