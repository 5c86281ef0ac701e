"""Before every door: limits, origins, the end of service, and one line of the log for each request."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from aula.core.errors import AulaError
from aula.core.telemetry import HTTP_REQUESTS
from aula.servers.callers import DEPARTURES
from aula.servers.faults import refusal, shaped
from aula.servers.house import House
from aula.servers.limits import Limits, Message, Metered, Receive, Scope, Send
from aula.servers.logs import log_defect, log_request
from aula.servers.origins import Origins, origin_of

App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})
"""Answered to the very end."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_DOORS = {"v1": "openai", "v2": "kserve", "metrics": "health", "livez": "health", "readyz": "health"}


class Front:
    """An ASGI middleware. It answers for what no door should see, and adds to every answer an X-Request-Id."""

    def __init__(self, app: App, house: House, origins: Origins | None = None) -> None:
        self._app = app
        self._house = house
        self._clock = house.runtime.clock
        self._limits = Limits.from_settings(house.settings)
        self._origins = origins or Origins.from_settings(house.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, self._clock.now())
        scope[DEPARTURES] = []
        headers = dict(scope["headers"])
        answer = self._refused(scope, headers)
        metered = Metered(self._limits, self._clock, receive, send, _abort_of(scope))
        is_http = scope["type"] == "http"

        async def sending(message: Message) -> None:
            visit.saw(message)
            if message["type"].endswith("http.response.start"):
                message["headers"] = [*message.get("headers", ()), *self._added(visit, headers)]
            await (metered.send(message) if is_http else send(message))

        try:
            if answer is not None:
                await answer(scope, receive, sending)
            elif is_http:
                await self._open(scope, metered.receive, sending, visit)
            else:
                await self._app(scope, receive, sending)
        except (ClientDisconnect, OSError):
            visit.left()
        except Exception as error:
            log_defect(error, visit.id)
            if visit.status is not None or not is_http:
                raise
            await refusal(scope["path"], error)(scope, receive, sending)
        finally:
            for call in scope.get(DEPARTURES, ()):
                if (rest := call()) is not None:
                    await rest
            door = _DOORS.get(scope["path"].split("/", 2)[1], "pages") if scope["path"].startswith("/") else "pages"
            self._house.runtime.telemetry.add(HTTP_REQUESTS, door, f"{(visit.status or 499) // 100}xx")
            log_request(visit.told(scope, self._clock.now(), metered))

    async def _open(self, scope: Scope, receive: Receive, send: Send, visit: "_Visit") -> None:
        try:
            if scope["method"] not in _SAFE and scope["path"].startswith(("/v1", "/v2")):
                with self._house.traffic.turn():
                    await self._app(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except AulaError as error:
            if visit.status is not None:
                raise
            await refusal(scope["path"], error)(scope, receive, send)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """The answer to what comes no further: also to a browser that asks whether it may ask."""
        path, origin = scope["path"], origin_of(headers)
        if (fault := self._limits.fault_of(scope)) is not None:
            # What is left of the request is not worth reading.
            return shaped(path, *fault, {"Connection": "close"})
        if not self._origins.knows_host(headers):
            words = "this server is not called by that name. Next: use its own, or add it to serve.hosts"
            return shaped(path, 421, "wrong_host", words)
        is_preflight = scope.get("method") == "OPTIONS" and b"access-control-request-method" in headers
        if not self._origins.admits(headers) and (is_preflight or scope.get("method") not in _SAFE):
            words = "pages of this origin may not call. Next: add it to serve.origins"
            return shaped(path, 403, "wrong_origin", words)
        if is_preflight and origin is not None:
            return Response(status_code=204, headers=self._origins.preflight(headers, origin))
        if self._house.traffic.is_closing and path not in ALWAYS:
            words = "this server is about to stop. Next: ask again, and another may answer"
            return shaped(path, 503, "closing", words, {"Retry-After": "1", "Connection": "close"})
        return None

    def _added(self, visit: "_Visit", headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        added = {"X-Request-Id": visit.id, "X-Content-Type-Options": "nosniff"}
        origin = origin_of(headers)
        if origin is not None and self._origins.admits(headers) and not visit.is_preflight:
            added |= self._origins.headers(origin)
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in added.items()]


class _Visit:
    """What the log says of one request."""

    def __init__(self, scope: Scope, began: float) -> None:
        self.id = secrets.token_hex(8)
        self.status: int | None = None
        self.is_preflight = scope.get("method") == "OPTIONS"
        self._began = began
        self._is_cut = False

    def saw(self, message: Message) -> None:
        if message["type"].endswith("http.response.start"):
            self.status = message["status"]
        elif message["type"] == "websocket.accept":
            self.status = 101

    def left(self) -> None:
        self._is_cut = True

    def told(self, scope: Scope, now: float, metered: Metered) -> dict[str, Any]:
        """No query, no header and no body: secrets and speech live there."""
        caller = scope.get("aula.caller")
        return {
            "id": self.id,
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"][:200],
            "status": self.status,
            "ms": round(1000 * (now - self._began), 2),
            "bytes_in": metered.received,
            "bytes_out": metered.sent,
            **({"tenant": caller.tenant, "key": caller.key} if caller is not None else {}),
            **({"cut": True} if self._is_cut or self.status is None else {}),
        }


def _abort_of(scope: Scope) -> Callable[[], None]:
    """Cuts the connection off where the server offers that; a client that never reads would else keep it."""
    abort = (scope.get("state") or {}).get("abort")
    return abort if callable(abort) else lambda: None
