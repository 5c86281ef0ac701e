"""What no door should see: too much, too slow, from the wrong place; and what the log says of it."""

import asyncio
import importlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from aula.core.clock import FakeClock
from aula.servers.front import Front
from aula.servers.origins import Origins
from aula.servers.wire import LINK, Link, protocol_for
from aula.serving.alarm import Alarm
from tests.servers.doors import served, small_house

CHAT = "/v1/chat/completions"


def _scope(path: str = CHAT, method: str = "POST", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": named,
    }


class Wire:
    """One request without a socket: what is sent, and pieces of a body that come when the test says so."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.pieces: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.aborted = False

    async def receive(self) -> Any:
        return await self.pieces.get()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    def piece(self, body: bytes, *, more: bool = True) -> None:
        self.pieces.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def abort(self) -> None:
        self.aborted = True

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    def error(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))["error"]


async def _reader(scope: Any, receive: Any, send: Any) -> None:
    """An app that reads everything and answers its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % length})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def front(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Front]:
    async with small_house(tmp_path, clock=clock, serve__max_body_mb=1) as (house, _):
        yield Front(_reader, house)


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_body_is_counted_while_it_comes(front: Front) -> None:
    wire = Wire()
    for _ in range(3):
        wire.piece(b"x" * 2**19)
    await front(_scope(), wire.receive, wire.send)
    assert (wire.status, wire.error()["code"]) == (413, "too_large")
    wire = Wire()
    wire.piece(b"x" * 2**20, more=False)
    await front(_scope(), wire.receive, wire.send)
    assert wire.status == 200


async def test_a_body_that_says_it_is_too_large_is_not_read(front: Front) -> None:
    wire = Wire()
    await front(_scope(content_length=str(2**20 + 1)), wire.receive, wire.send)
    assert wire.status == 413
    assert (b"connection", b"close") in wire.sent[0]["headers"]


async def test_a_body_that_stops_is_not_waited_for(front: Front, clock: FakeClock) -> None:
    wire = Wire()
    wire.piece(b"{")
    answering = asyncio.ensure_future(front(_scope(), wire.receive, wire.send))
    await _settle()
    clock.advance(29.9)
    await _settle()
    assert not answering.done()
    clock.advance(0.1)
    await answering
    assert (wire.status, wire.error()["code"]) == (408, "too_slow")


async def test_a_body_that_drips_is_not_waited_for_either(front: Front, clock: FakeClock) -> None:
    wire = Wire()
    answering = asyncio.ensure_future(front(_scope(), wire.receive, wire.send))
    for _ in range(4):
        await _settle()
        clock.advance(10.0)
        wire.piece(b"x")
    await answering
    assert wire.status == 408


class _Clogged:
    """A connection whose client does not read."""

    def __init__(self, abort: Callable[[], None]) -> None:
        self.transport, self.flow, self.cycle = SimpleNamespace(abort=abort), SimpleNamespace(write_paused=True), None


async def test_a_client_that_does_not_read_is_cut_off(front: Front, clock: FakeClock) -> None:
    wire = Wire()
    wire.reads.clear()
    wire.piece(b"{}", more=False)
    scope = {**_scope(), "state": {LINK: Link(_Clogged(wire.abort), set())}}
    answering = asyncio.ensure_future(front(scope, wire.receive, wire.send))
    await _settle()
    clock.advance(30.0)
    await answering
    assert wire.aborted
    assert not wire.sent


async def test_an_answer_has_no_time_limit_while_it_is_made(front: Front, clock: FakeClock) -> None:
    """Once the whole body is there, waiting for the client's going must not end in a time-out."""
    wire = Wire()
    done = asyncio.Event()

    async def thinks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        await done.wait()
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    front._app = thinks
    wire.piece(b"{}", more=False)
    answering = asyncio.ensure_future(front(_scope(), wire.receive, wire.send))
    await _settle()
    clock.advance(3600.0)
    await _settle()
    done.set()
    await answering
    assert wire.status == 200


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/v1/models", lambda error: error["code"]), ("/v2/models", lambda error: "head_too_large" if error else "")],
)
async def test_a_head_that_is_too_large_is_refused_in_the_protocols_shape(front: Front, path: str, shape: Any) -> None:
    many = {f"x-{number}": "y" for number in range(101)}
    for headers in ({"x_big": "y" * 17_000}, many):
        wire = Wire()
        await front(_scope(path, "GET", **headers), wire.receive, wire.send)
        assert wire.status == 431
        assert shape(wire.error()) == "head_too_large"


@pytest.mark.parametrize("path", ["/v1/../etc/passwd", "/v1/..", "/./x", "/a\\b", "/a\x00b", "/a\r\nb", "/.."])
async def test_path_tricks_are_refused(front: Front, path: str) -> None:
    wire = Wire()
    await front(_scope(path, "GET"), wire.receive, wire.send)
    assert (wire.status, wire.error()["code"]) == (400, "bad_path")


async def test_a_plain_path_with_dots_in_a_name_is_none_of_these(front: Front) -> None:
    wire = Wire()
    wire.piece(b"", more=False)
    await front(_scope("/v1/models/a..b.c"), wire.receive, wire.send)
    assert wire.status == 200


async def test_a_defect_is_told_without_its_words(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the student said: my name is Anna")

    front._app = breaks
    wire = Wire()
    with caplog.at_level(logging.ERROR, "aula"):
        await front(_scope(), wire.receive, wire.send)
    assert wire.status == 500
    assert "Anna" not in json.dumps(wire.error()) + caplog.text
    assert caplog.records[0].told["type"] == "ValueError"  # type: ignore[attr-defined]


# origins and hosts


@pytest.mark.parametrize(
    ("origin", "method", "wanted"),
    [
        (None, "POST", 200),
        ("http://here:8000", "POST", 200),
        ("https://school.example", "POST", 200),
        ("https://evil.example", "POST", 403),
        ("null", "POST", 403),
        ("https://evil.example", "GET", 200),
    ],
)
async def test_pages_of_other_sites_may_not_call_unless_listed(
    tmp_path: Path, origin: str | None, method: str, wanted: int
) -> None:
    async with small_house(tmp_path, serve__origins="https://school.example, https://b.example/") as (house, _):
        front = Front(_reader, house)
        wire = Wire()
        wire.piece(b"", more=False)
        headers = {"host": "here:8000", **({"origin": origin} if origin else {})}
        await front(_scope(CHAT, method, **headers), wire.receive, wire.send)
        assert wire.status == wanted
        allowed = dict(wire.sent[0]["headers"]).get(b"access-control-allow-origin")
        is_listed = origin is not None and "evil" not in origin and origin != "null"
        assert allowed == (origin.encode() if is_listed and origin else None)


async def test_a_browser_that_asks_whether_it_may_is_answered(tmp_path: Path) -> None:
    async with small_house(tmp_path, serve__origins="https://school.example") as (house, _):
        front = Front(_reader, house)
        asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,x-y"}
        for origin, status in (("https://school.example", 204), ("https://evil.example", 403)):
            wire = Wire()
            await front(_scope(CHAT, "OPTIONS", origin=origin, **asked), wire.receive, wire.send)
            assert wire.status == status
            told = dict(wire.sent[0]["headers"])
            assert (told.get(b"access-control-allow-headers") == b"authorization,x-y") is (status == 204)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 421), ("", 421)],
)
async def test_without_keys_a_foreign_name_that_points_here_is_not_ours(tmp_path: Path, host: str, wanted: int) -> None:
    async with small_house(tmp_path) as (house, _):
        front = Front(_reader, house, Origins.from_settings(house.settings, only_loopback=True))
        wire = Wire()
        wire.piece(b"", more=False)
        await front(_scope(host=host), wire.receive, wire.send)
        assert wire.status == wanted


async def test_a_websocket_of_a_foreign_page_is_denied(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        wire = Wire()
        scope = {**_scope("/v1/realtime", host="here", origin="https://evil.example"), "type": "websocket"}
        del scope["method"]
        scope["extensions"] = {"websocket.http.response": {}}
        await Front(_reader, house)(scope, wire.receive, wire.send)
        assert wire.sent[0]["type"] == "websocket.http.response.start"
        assert wire.status == 403


# the connection before the request


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.aborted = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def get_extra_info(self, name: str) -> None:
        return None

    def get_protocol(self) -> Any:
        return self.protocol

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture(params=["h11", "httptools"])
async def connect(tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Both readers of HTTP that uvicorn may use."""
    pytest.importorskip(request.param)
    module = importlib.import_module(f"uvicorn.protocols.http.{request.param}_impl")
    base = module.H11Protocol if request.param == "h11" else module.HttpToolsProtocol
    async with small_house(tmp_path, clock=clock, serve__max_connections=2) as (house, _):
        alarm = Alarm(clock)
        config = uvicorn.Config(_reader, http=protocol_for(house, alarm, base), log_config=None, lifespan="off")
        config.load()
        state = ServerState()

        def make() -> tuple[Any, Transport]:
            protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg]
            transport = Transport()
            transport.protocol = protocol
            protocol.connection_made(transport)
            return protocol, transport

        yield make
        alarm.close()


async def test_a_head_that_drips_is_not_waited_for(connect: Any, clock: FakeClock) -> None:
    protocol, transport = connect()
    for byte in (b"G", b"E", b"T"):
        protocol.data_received(byte)
        await _settle()
        clock.advance(3.0)
    await _settle()
    assert not transport.closed
    clock.advance(1.0)
    await _settle()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.closed


async def test_a_head_without_an_end_is_not_kept(connect: Any) -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n")
    for _ in range(5):
        protocol.data_received(b"X-More: " + b"y" * 15_000 + b"\r\n")
        if transport.closed:
            break
    assert transport.written.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert transport.closed


async def test_bytes_that_are_no_http_in_the_middle_of_a_body_end_it_once(connect: Any) -> None:
    protocol, transport = connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    await _settle()
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert transport.written.count(b"HTTP/1.1 ") == 1
    assert transport.closed


async def test_a_connection_that_says_nothing_is_left(connect: Any, clock: FakeClock) -> None:
    _, transport = connect()
    await _settle()
    clock.advance(10.0)
    await _settle()
    assert transport.aborted
    assert transport.written == b""


async def test_a_whole_head_ends_the_wait_and_a_second_request_begins_a_new_one(connect: Any, clock: FakeClock) -> None:
    protocol, transport = connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await _settle()
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    clock.advance(10.0)
    await _settle()
    assert not transport.is_closing(), "uvicorn's own wait between requests is another"
    protocol.data_received(b"GET")
    await _settle()
    clock.advance(10.0)
    await _settle()
    assert b"408" in transport.written
    protocol.connection_lost(None)


async def test_one_connection_too_many_is_told(connect: Any) -> None:
    for _ in range(2):
        assert connect()[1].written == b""
    _, transport = connect()
    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert transport.closed


# the log


async def test_the_log_holds_neither_secrets_nor_speech(tmp_path: Path, logged: io.StringIO) -> None:
    async with served(tmp_path) as door, httpx.AsyncClient(base_url=door.url) as client:
        answer = await client.post(
            f"{CHAT}?key=sk-aula-query",
            json={"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]},
            headers={"Authorization": "Bearer sk-aula-header"},
        )
        await client.get("/v1/nothing%0Ahere")
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    (first,) = [line for line in lines if line.get("path") == CHAT]
    assert (first["status"], first["tenant"], first["id"]) == (200, "local", answer.headers["x-request-id"])
    for word in ("sk-aula", "inertia", "Inertia"):
        assert word not in logged.getvalue()
    assert any(line.get("status") == 400 for line in lines), "a line for each request, one line each"
