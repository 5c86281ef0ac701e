"""What the pages ask is answered in JSON; an error comes in the three parts that it has, so that a page can put each
where it belongs and say it in the reader's language."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from aula.core.errors import (
    AulaError,
    CourseNotFoundError,
    DeadlineError,
    InputError,
    NoRungError,
    OverloadError,
    SettingsError,
    UnsupportedLanguageError,
)
from aula.servers.callers import Caller, Doorman

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Any]]
"""Gives an ASGI application: a Response, or a stream of events."""
_MOST_BODY = 16_384
_QUOTAS = frozenset({"rate", "concurrency", "device_time"})
"""Refusals that are the caller's own doing; others are the server's state."""
_STATUS: tuple[tuple[type[AulaError], int], ...] = (
    (CourseNotFoundError, 404),
    (InputError, 400),
    (SettingsError, 400),
    (UnsupportedLanguageError, 400),
    (NoRungError, 503),
    (DeadlineError, 504),
)
_NOWHERE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def answer(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=_NOWHERE)


def refusal(error: AulaError) -> Response:
    headers = dict(_NOWHERE)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return JSONResponse({"error": told(error)}, status_of(error), headers)


def told(error: AulaError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "available": list(error.available),
        "next": error.next_step,
        "reason": error.reason,
        "retry_after_s": error.retry_after_s,
    }


def status_of(error: AulaError) -> int:
    """An error of keys says itself what HTTP calls it."""
    if isinstance(error, OverloadError):
        return 429 if error.reason in _QUOTAS else 503
    found = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return int(getattr(error, "status", found))


def guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors are answered."""

    async def answered(request: Request) -> Any:
        try:
            return await endpoint(request)
        except AulaError as error:
            return refusal(error)

    return answered


def admit_any(doorman: Doorman, connection: HTTPConnection, abilities: Sequence[str]) -> Caller:
    """Whoever has one of these abilities. Raises what the doorman raises for the first of them."""
    first: AulaError | None = None
    for ability in abilities:
        try:
            return doorman.admit(connection, ability)
        except AulaError as error:
            if error.reason is not None:
                raise
            first = first or error
    assert first is not None
    raise first


async def body_as(request: Request, shape: type[T]) -> T:
    """The JSON object that was sent. Raises InputError."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MOST_BODY:
            raise InputError(f"the body has more than {_MOST_BODY} bytes", next_step="send what this page sends")
    try:
        return msgspec.json.decode(bytes(raw), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"the body is not what is asked for ({error})", next_step="send what this page sends"
        ) from error
