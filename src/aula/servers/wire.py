"""uvicorn's HTTP connection, with the patience that it lacks: the head of a request must arrive in time, there are only
so many connections, and whoever serves a request can cut its connection off, or hear that it is lost. And an answer's
head leaves with its body."""

import asyncio
import http
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from aula.servers.house import House
from aula.serving.alarm import Alarm, Bell

MOST_HEAD = 64 * 1024
"""Bytes of a head that nobody has read to its end; what is read is judged by `serve.max_header_kb`."""
LINK = "aula.link"
MOST_JOINED = 64 * 1024
"""Bytes that are copied to leave at once with what is before them."""


def protocol_for(house: House, alarm: Alarm, base: Any = AutoHTTPProtocol) -> Any:
    """The class that uvicorn makes one of for each connection: on httptools where that is installed, else on h11."""
    most = house.settings.whole("serve.max_connections")
    seconds = house.settings.number("serve.header_seconds")

    class Connection(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._bell: Bell | None = None
            self._heard = 0
            self._mourners: set[Callable[[], None]] = set()
            # Each request's scope has a copy.
            self.app_state: dict[str, Any] = {**vars(self)["app_state"], LINK: Link(self, self._mourners)}

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Joining(transport, self.loop))
            house.traffic.connections = len(self.connections)
            if len(self.connections) > most:
                self._end(503, b"Retry-After: 1\r\n", b"too many connections")
                return
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._heard += len(data)
            super().data_received(data)
            self._watch()
            if self._bell is not None and self._heard > MOST_HEAD:
                self._end(431, b"", b"the head of the request is too large")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()
            house.traffic.connections = len(self.connections)
            for mourner in tuple(self._mourners):
                mourner()

        def handle_websocket_upgrade(self, *event: Any) -> None:
            self._calm()
            self.transport: Any = vars(self)["transport"].plain
            super().handle_websocket_upgrade(*event)
            _refuse_unless_begun(self.transport)

        def on_response_complete(self) -> None:
            self._heard = 0
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            """The bytes are no HTTP. Whoever serves the request that they belong to must not answer it too."""
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            super().send_400_response(msg)

        def _watch(self) -> None:
            """Between requests uvicorn waits for the next one; once a byte of it came, the rest must follow."""
            between = self.cycle is None or self.cycle.response_complete
            if not between or self.transport.is_closing() or self.transport.get_protocol() is not self:
                self._calm()
            elif self._bell is None and (self._heard or self.cycle is None):
                self._bell = alarm.at(alarm.now() + seconds, self._tire)

        def _calm(self) -> None:
            if self._bell is not None:
                alarm.take_back(self._bell)
                self._bell = None

        def _tire(self) -> None:
            self._bell = None
            if self._heard:
                self._end(408, b"", b"the head of the request did not arrive in time")
            else:
                self.transport.abort()  # a browser that connected ahead of its needs: nothing to say

        def _end(self, status: int, more: bytes, why: bytes) -> None:
            phrase = http.HTTPStatus(status).phrase.encode()
            head = b"HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: text/plain\r\n" % (status, phrase)
            self.transport.write(head + more + b"Content-Length: %d\r\n\r\n" % len(why) + why)
            self.transport.close()

    return Connection


class Link:
    """What whoever serves a request may know of its connection, and do to it. `mourners` are called when it is lost."""

    __slots__ = ("_connection", "mourners")

    def __init__(self, connection: Any, mourners: set[Callable[[], None]]) -> None:
        self._connection = connection
        self.mourners = mourners

    def abort(self) -> None:
        self._connection.transport.abort()

    @property
    def has_come(self) -> bool:
        """More of the request can be had without waiting for it."""
        return bool(self._connection.cycle is not None and self._connection.cycle.message_event.is_set())

    @property
    def is_clogged(self) -> bool:
        """The client reads more slowly than it is sent to: the next write waits for it."""
        return bool(self._connection.flow.write_paused)


class Joining:
    """A transport that keeps a first write until the next one, or the loop's next round: uvicorn writes an answer's
    head and its body each for itself, and every write is a call of the kernel's here and another at the client."""

    __slots__ = ("_kept", "_loop", "plain")

    def __init__(self, plain: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.plain = plain
        self._loop = loop
        self._kept: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def write(self, data: bytes) -> None:
        if self._kept is None and len(data) <= MOST_JOINED:
            self._kept = data
            self._loop.call_soon(self._flush)
        elif self._kept is not None and len(data) <= MOST_JOINED:
            kept, self._kept = self._kept, None
            self.plain.write(kept + data)
        else:
            self._flush()
            self.plain.write(data)

    def close(self) -> None:
        self._flush()
        self.plain.close()

    def _flush(self) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self.plain.write(kept)


def link_of(scope: Mapping[str, Any]) -> Link | None:
    """None where another server than `aula serve` took the request."""
    return (scope.get("state") or {}).get(LINK)


def _refuse_unless_begun(transport: Any) -> None:
    """A head that is lawful HTTP may be more than websockets reads (lines of 8 KiB, 128 headers). It has its answer
    ready, which uvicorn 0.54 neither sends nor waits for: such a connection would stay for ever."""
    protocol = transport.get_protocol()
    if not getattr(protocol, "handshake_initiated", True) and not transport.is_closing():
        transport.write(b"".join(protocol.conn.data_to_send()))
        transport.close()


def listen(host: str, port: int, unread_seconds: float) -> socket.socket:
    """A listening socket, which knows that it is TCP's: asyncio looks, before it lets answers leave without waiting for
    the peer's acknowledgement (TCP_NODELAY; 40 ms otherwise). A peer that answers nothing, or reads nothing, is given
    up by the kernel itself: also where a WebSocket is in the middle of a message. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            # Connections inherit these.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * unread_seconds))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(unread_seconds)))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        made.bind(address)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
