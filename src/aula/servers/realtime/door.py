"""Who comes in: the routes, the keys, and how many at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from aula.core.errors import AulaError, KeyRefusedError, OverloadError
from aula.servers.faults import headers_of, status_of
from aula.servers.house import House
from aula.servers.realtime.dialogues import Dialogues
from aula.servers.realtime.errors import ClientError, JsonObject, error_of
from aula.servers.realtime.operations import ExpiresAfter, SecretWanted
from aula.servers.realtime.options import MODEL, Options, course_of
from aula.servers.realtime.secrets import LEAST_SECONDS, MOST_SECONDS, PREFIX, Bearer, ClientSecrets
from aula.servers.realtime.shapes import checked
from aula.servers.realtime.visit import POLICY, Visit
from aula.servers.realtime.wire import Wire

ABILITY = "ask"
SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_BETA_SUBPROTOCOL = "openai-beta.realtime-v1"
_MOST_BODY = 131_072
_UNTIL_CLOSED = 3
"""Rounds of the loop after which a refused connection is closed. Whoever returns before is taken by uvicorn for one who
forgot the handshake, and each refusal would be an error in its log."""
WEBSOCKET_OPTIONS: dict[str, Any] = {"ws_max_size": 16 * 2**20, "ws_per_message_deflate": False}
"""For uvicorn. Sound does not shrink: compressing it costs each connection memory and each chunk time."""


@dataclass(frozen=True, slots=True)
class DoorStatistics:
    """`open` connections now; those `refused` since the start because there were too many."""

    open: int
    refused: int


class Door:
    """The Realtime door of one House."""

    def __init__(self, house: House) -> None:
        self.secrets = ClientSecrets(house.runtime.clock)
        self._house = house
        self._dialogues = Dialogues(house)
        self._open = 0
        self._refused = 0

    def routes(self) -> list[BaseRoute]:
        return [
            WebSocketRoute("/v1/realtime", self._connect, name="realtime"),
            Route("/v1/realtime/client_secrets", self._mint, methods=["POST"], name="realtime_client_secrets"),
        ]

    def statistics(self) -> DoorStatistics:
        return DoorStatistics(self._open, self._refused)

    async def _connect(self, socket: WebSocket) -> None:
        try:
            bearer = self._bearer(socket)
            if self._open >= self._house.settings.whole("realtime.sessions"):
                self._refused += 1
                raise OverloadError(
                    f"{self._open} Realtime connections are open, which is as many as may be",
                    reason="connections",
                    retry_after_s=5.0,
                    next_step="try again in a moment, or raise realtime.sessions",
                )
        except AulaError as error:
            await socket.send_denial_response(_refusal(error))
            for _ in range(_UNTIL_CLOSED):
                await asyncio.sleep(0)
            return
        self._open += 1
        try:
            await self._receive(socket, bearer)
        finally:
            self._open -= 1

    async def _receive(self, socket: WebSocket, bearer: Bearer) -> None:
        offered = _offered(socket)
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        speaks_beta = "realtime=v1" in socket.headers.get("openai-beta", "") or _BETA_SUBPROTOCOL in offered
        wire = Wire(speaks_beta=speaks_beta, most=self._house.settings.whole("realtime.event_kb") * 1024)
        try:
            options = self._options(bearer.session, socket.query_params.get("model"))
        except ClientError as error:
            told = {"type": "error", "event_id": "event_0", "error": {**error_of(error), "event_id": None}}
            await socket.send_text(wire.write(told) or "")
            await socket.close(POLICY, "there is no such model")
            return
        await Visit(self._house, self._dialogues, bearer.caller, wire, options, socket).run()

    async def _mint(self, request: Request) -> Response:
        """A secret for a browser. Its session object is checked now, so that no browser meets the error."""
        try:
            caller = self._house.doorman.admit(request, ABILITY)
            wanted: SecretWanted = checked(SecretWanted, await _body(request), "body")
            after = wanted.expires_after or ExpiresAfter()
            if after.anchor != "created_at" or not LEAST_SECONDS <= after.seconds <= MOST_SECONDS:
                raise ClientError(
                    f"expires_after counts {LEAST_SECONDS} to {MOST_SECONDS} seconds from created_at",
                    param="expires_after",
                )
            session = wanted.session or {"type": "realtime"}
            options = self._options(session, None)
            await self._house.course(options.course)
        except (ClientError, AulaError) as error:
            return _refusal(error)
        minted = self.secrets.mint(caller, session, after.seconds)
        shown = {"id": f"sess_{minted.value.split('_')[1]}", **options.shown()}
        return JSONResponse({"value": minted.value, "expires_at": minted.expires_at, "session": shown})

    def _bearer(self, connection: HTTPConnection) -> Bearer:
        """Raises what the doorman raises."""
        value = _secret_of(connection)
        if value is not None:
            bearer = self.secrets.find(value)
            if bearer is None:
                raise KeyRefusedError(
                    "the client secret is unknown, or has expired",
                    next_step="ask your own server for another: POST /v1/realtime/client_secrets",
                )
            self._house.doorman.again(bearer.caller)
            return bearer
        return Bearer(self._house.doorman.admit(connection, ABILITY), {})

    def _options(self, session: JsonObject, model: str | None) -> Options:
        options = Options(self._house.settings.text("course")).updated(session)
        if model is None:
            return options
        usual = options.course
        return options.updated({"model": f"{MODEL}:{course_of(model, usual)}"})


def _offered(socket: WebSocket) -> Sequence[str]:
    offered: Sequence[str] = socket.scope.get("subprotocols", ())
    return offered


def _secret_of(connection: HTTPConnection) -> str | None:
    """The ephemeral secret that was brought, in a header or as a subprotocol."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    brought = [value.strip()] if scheme.lower() == "bearer" else []
    subprotocols = connection.scope.get("subprotocols", ())
    brought += [one.removeprefix(_KEY_SUBPROTOCOL) for one in subprotocols if one.startswith(_KEY_SUBPROTOCOL)]
    return next((one for one in brought if one.startswith(PREFIX)), None)


async def _body(request: Request) -> object:
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > _MOST_BODY:
            raise ClientError(f"the body is larger than {_MOST_BODY} bytes", code="body_too_large")
    if not raw:
        return {}
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ClientError("the body is not UTF-8", code="invalid_json") from error
    return Wire(speaks_beta=False, most=_MOST_BODY).read(text)


def _refusal(error: AulaError | ClientError) -> JSONResponse:
    told = error_of(error)
    if isinstance(error, ClientError):
        return JSONResponse({"error": told}, 413 if told["code"] == "body_too_large" else 400)
    # Too many connections is how OpenAI's clients know it: they wait, and come again.
    status = 429 if isinstance(error, OverloadError) else status_of(error)[0]
    return JSONResponse({"error": told}, status, headers_of(error))
