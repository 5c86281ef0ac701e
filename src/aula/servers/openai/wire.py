"""Bytes to records and back, errors in OpenAI's shape, and server-sent events."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aula.core.errors import AulaError, InputError
from aula.servers.faults import headers_of, openai_error, status_of

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
RUNG = "X-Aula-Rung"
_PLACE = re.compile(r" - at `\$\.?(.*?)`$")


class FieldError(InputError):
    """A field of the request that cannot be. `param` is its path; `code` and `status` where they are more special."""

    def __init__(self, what: str, *, param: str | None, next_step: str, **more: Any) -> None:
        self.param = param
        self.code: str | None = more.pop("code", None)
        self.status: int | None = more.pop("status", None)
        super().__init__(what, next_step=next_step, **more)


def guarded(handler: Handler) -> Handler:
    """The handler, whose errors become OpenAI's object."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except AulaError as error:
            return refused(error)

    return handle


def refused(error: AulaError) -> Response:
    told = openai_error(error, getattr(error, "param", None))
    told["code"] = getattr(error, "code", None) or told["code"]
    status = getattr(error, "status", None) or status_of(error)[0]
    return Response(encoded({"error": told}), status, headers_of(error), JSON)


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as that record. Raises FieldError with the path of what is wrong."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON:
        raise FieldError(
            f"the body is {media_type or 'of no type'}",
            param=None,
            available=[JSON],
            next_step=f"send JSON, with Content-Type: {JSON}",
            code="unsupported_media_type",
            status=415,
        )
    return decoded(await request.body(), kind)


def decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise field_error(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FieldError(
            f"the body is not JSON ({why})", param=None, next_step="send one JSON object", code="invalid_json"
        ) from error


def field_error(error: msgspec.ValidationError) -> FieldError:
    """msgspec's words, with the place as OpenAI's `param`."""
    text = str(error)
    place = _PLACE.search(text)
    missing = re.search(r"missing required field `(.*?)`", text)
    param = (place[1] if place else "") or None
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
    what = _PLACE.sub("", text)
    what = what[:1].lower() + what[1:]
    return FieldError(f"{param or 'the body'}: {what}", param=param, next_step="correct it; /docs has every field")


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


def reply(value: Any, rung: str | None = None) -> Response:
    return Response(encoded(value), 200, {RUNG: rung} if rung else None, JSON)


def events(records: AsyncIterator[Any], rung: str | None = None, *, done: bool = True) -> StreamingResponse:
    """Each record as one event. An error on the way becomes an event too, since the status was sent long ago."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for record in records:
                yield b"data: " + encoded(record) + b"\n\n"
        except AulaError as error:
            yield b"data: " + encoded({"error": openai_error(error)}) + b"\n\n"
            return
        if done:
            yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **({RUNG: rung} if rung else {})}
    return StreamingResponse(lines(), 200, headers, EVENTS)
