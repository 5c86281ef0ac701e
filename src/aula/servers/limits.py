"""How much a client may send, and how slowly: checked before any door sees the request, and while it reads."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

from aula.core.clock import Clock, within
from aula.core.errors import TooLargeError, TooSlowError
from aula.core.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_HEADERS = 100
LEAST_RATE = 1024
"""Bytes a second that a body must bring on the average, once `idle_seconds` are over: one now and then is a siege."""
_TRICKS = re.compile(r"[\x00-\x1f\x7f\\]|(^|/)\.\.?(/|$)")


@dataclass(frozen=True, slots=True)
class Limits:
    """`body` and `head` in bytes, the others in seconds."""

    body: int
    head: int
    idle_seconds: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            body=settings.whole("serve.max_body_mb") * 2**20,
            head=settings.whole("serve.max_header_kb") * 1024,
            idle_seconds=settings.number("serve.idle_seconds"),
        )

    def fault_of(self, scope: Scope) -> tuple[int, str, str] | None:
        """What is wrong with a request's head: the status, the code and the words; None where nothing is."""
        headers = scope["headers"]
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if size > self.head or len(headers) > MOST_HEADERS:
            told = f"the head has {size} bytes and {len(headers)} headers, above {self.head} and {MOST_HEADERS}"
            return 431, "head_too_large", f"{told}. Next: send a shorter one, or raise serve.max_header_kb"
        if _TRICKS.search(scope["path"]):
            return 400, "bad_path", "the path holds dots, backslashes or control characters. Next: name a plain path"
        if (length := _content_length(headers)) is not None and length > self.body:
            return 413, "too_large", str(self._too_large(length))
        return None

    def _too_large(self, length: int) -> TooLargeError:
        return TooLargeError(
            f"the request has {length} bytes or more, above {self.body}",
            next_step="send less at once, or raise serve.max_body_mb",
        )


def _content_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    told = next((value for name, value in headers if name == b"content-length"), b"")
    return int(told) if told.isdigit() else None


class Metered:
    """One request's two ways, counted and timed."""

    def __init__(self, limits: Limits, clock: Clock, receive: Receive, send: Send, abort: Callable[[], None]) -> None:
        self.received = 0
        self.sent = 0
        self._limits = limits
        self._clock = clock
        self._receive = receive
        self._send = send
        self._abort = abort
        self._began: float | None = None
        self._is_whole = False

    async def receive(self) -> Message:
        """Raises TooLargeError and TooSlowError. Once the body is whole, only the client's going is waited for."""
        if self._is_whole:
            return await self._receive()
        idle = self._limits.idle_seconds
        now = self._clock.now()
        self._began = now if self._began is None else self._began
        try:
            async with within(self._clock, idle):
                message = await self._receive()
        except TimeoutError:
            raise self._too_slow() from None
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self._limits.body:
            raise self._limits._too_large(self.received)
        passed = self._clock.now() - self._began
        if not self._is_whole and passed > idle and self.received < LEAST_RATE * (passed - idle):
            raise self._too_slow()
        return message

    async def send(self, message: Message) -> None:
        """Raises OSError for a client that does not read, whose connection is cut off."""
        self.sent += len(message.get("body", b""))
        try:
            async with within(self._clock, self._limits.idle_seconds):
                await self._send(message)
        except TimeoutError:
            self._abort()
            raise OSError("the client does not read") from None

    def _too_slow(self) -> TooSlowError:
        return TooSlowError(
            f"the body stopped after {self.received} bytes", next_step="send it without pauses, or in smaller requests"
        )
