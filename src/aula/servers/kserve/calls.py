"""Before the door over gRPC what the front is before HTTP's: keys, the end of service, a line of the log for each call.

Limits are the same settings, in gRPC's own words."""

import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from starlette.requests import HTTPConnection

from aula.core.errors import OverloadError
from aula.core.settings import Settings
from aula.core.telemetry import HTTP_REQUESTS
from aula.servers.callers import DEPARTURES, Caller
from aula.servers.house import House
from aula.servers.kserve.protocol import SERVICE
from aula.servers.logs import log_request

ABILITY = "infer"
LARGEST = 2**31 - 1
"""Bytes of a message, whatever the settings say: gRPC counts in 32 bits."""


def options_of(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's own for the limits of `serve`."""

    def milliseconds(name: str) -> int:
        return int(1000 * settings.number(name))

    bytes_ = min(settings.whole("serve.max_body_mb") * 2**20, LARGEST)
    head = settings.whole("serve.max_header_kb") * 1024
    return [
        ("grpc.max_receive_message_length", bytes_),
        ("grpc.max_send_message_length", LARGEST),
        ("grpc.max_metadata_size", head),
        ("grpc.absolute_max_metadata_size", head),
        ("grpc.max_allowed_incoming_connections", settings.whole("serve.max_connections")),
        ("grpc.server_handshake_timeout_ms", milliseconds("serve.header_seconds")),
        ("grpc.max_connection_idle_ms", 1000 * settings.whole("serve.keep_seconds")),
        # A peer that is gone without a word is asked whether it lives.
        ("grpc.keepalive_time_ms", 2 * milliseconds("serve.idle_seconds")),
        ("grpc.keepalive_timeout_ms", milliseconds("serve.idle_seconds")),
        ("grpc.so_reuseport", 0),  # else a second server would share the port unnoticed
    ]


def credentials_of(settings: Settings) -> grpc.ServerCredentials | None:
    """The certificate that HTTP has too, which was tried there; None without one."""
    certificate, key = settings.text("serve.tls_cert"), settings.text("serve.tls_key")
    if not certificate:
        return None
    chain = Path(certificate).expanduser().read_bytes()
    return grpc.ssl_server_credentials([(Path(key).expanduser().read_bytes() if key else chain, chain)])


class Call:
    """One call: who asks, and what came of it. `status` is HTTP's, None while nothing is known."""

    __slots__ = ("_began", "_departures", "_house", "_method", "_scope", "context", "received", "sent", "status")

    def __init__(self, house: House, method: str, context: Any) -> None:
        self.context = context
        self.received = 0
        self.sent = 0
        self.status: int | None = None
        self._house = house
        self._method = method
        self._began = house.runtime.clock.now()
        self._departures: list[Callable[[], Awaitable[None] | None]] = []
        self._scope: dict[str, Any] = {}

    def admit(self) -> Caller:
        """A doorman reads headers, and metadata are headers."""
        metadata = self.context.invocation_metadata() or ()
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": f"/{SERVICE}/{self._method}",
            "query_string": b"",
            "headers": [(key.lower().encode(), _header(value)) for key, value in metadata],
            "client": _client(self.context.peer()),
            DEPARTURES: self._departures,
        }
        return self._house.doorman.admit(HTTPConnection(self._scope), ABILITY)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """An inference: finished before the server ends, and not begun any more once it does."""
        traffic = self._house.traffic
        if traffic.is_closing:
            raise OverloadError(
                "this server is about to stop",
                reason="closing",
                retry_after_s=1.0,
                next_step="ask again, and another may answer",
            )
        with traffic.turn():
            yield

    async def end(self) -> None:
        for call in self._departures:
            if (rest := call()) is not None:
                await rest
        self._house.runtime.telemetry.add(HTTP_REQUESTS, "kserve", f"{(self.status or 499) // 100}xx")
        caller = self._scope.get("aula.caller")
        told = {
            "id": secrets.token_hex(8),
            "method": "GRPC",
            "path": f"/{SERVICE}/{self._method}",
            "status": self.status,
            "ms": round(1000 * (self._house.runtime.clock.now() - self._began), 2),
            "bytes_in": self.received,
            "bytes_out": self.sent,
            **({"tenant": caller.tenant, "key": caller.key} if caller is not None else {}),
            **({"cut": True} if self.status is None else {}),
        }
        log_request(told)


def _header(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _client(peer: str) -> tuple[str, int] | None:
    """gRPC writes ipv4:127.0.0.1:50000 and ipv6:%5B::1%5D:50000."""
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None
