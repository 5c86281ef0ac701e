"""A client for whatever speaks OpenAI's chat protocol, which trusts nothing that it is sent.

Sentences come out as soon as they are whole. An upstream may be slow, cut off, endless, no JSON, or say no: each of
them has one word.
"""

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

import msgspec

from aula.assistant.languages import sentences
from aula.core.clock import Clock
from aula.core.errors import SettingsError
from aula.core.settings import Settings

KEY_VARIABLE = "AULA_GENERATOR_KEY"
"""The only place for the generator's own key: settings are shown, and written down."""
MOST_CHARACTERS = 600
"""Of one sentence: what goes on longer is none."""
MOST_BYTES = 256 * 1024

_LEADING_MARKS = re.compile(r"(?:\s*\[\d{1,3}\])+")


class RubbishError(Exception):
    """What the generator did; `why` is one word for the log and the answer's extension."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Generator:
    """A client for one base URL. `transport` is for tests."""

    def __init__(
        self,
        url: str,
        model: str,
        clock: Clock,
        *,
        seconds: float,
        most_tokens: int,
        key: str | None = None,
        transport: Any = None,
    ) -> None:
        """`seconds` from the question to the last word. Raises SettingsError for what is no URL."""
        if not re.match(r"https?://[^/\s]+", url):
            raise SettingsError(f"generator.url is {url!r}", next_step="set it like http://127.0.0.1:8080/v1")
        self.clock = clock
        self.seconds = seconds
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._most_tokens = most_tokens
        self._key = key
        self._transport = transport
        self._client: Any = None

    @classmethod
    def from_settings(
        cls, settings: Settings, clock: Clock, environment: Mapping[str, str] | None = None
    ) -> Self | None:
        """None where no generator is set."""
        if not settings.text("generator.url"):
            return None
        return cls(
            settings.text("generator.url"),
            settings.text("generator.model"),
            clock,
            seconds=settings.number("generator.seconds"),
            most_tokens=settings.whole("generator.tokens"),
            key=(os.environ if environment is None else environment).get(KEY_VARIABLE) or None,
        )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def sentences(self, messages: Sequence[Mapping[str, str]], language: str) -> AsyncGenerator[str, None]:
        """Whole sentences with the marks behind them. Raises RubbishError for an upstream that fails or does not
        end its stream."""
        buffer = ""
        async with aclosing(self._texts(messages)) as texts:
            async for text in texts:
                buffer += text
                whole, buffer = _cut(buffer, language)
                for sentence in whole:
                    yield sentence
                if len(buffer) > MOST_CHARACTERS:
                    raise RubbishError("endless")
        for sentence in _joined(sentences(buffer, language)):
            yield sentence

    async def _texts(self, messages: Sequence[Mapping[str, str]]) -> AsyncGenerator[str, None]:
        """Pieces of text as they come."""
        import httpx2

        if self._client is None:
            # The clock of the caller is what counts; and no proxy of the environment hears what students ask.
            self._client = httpx2.AsyncClient(transport=self._transport, timeout=None, trust_env=False)
        body = {
            "model": self._model,
            "messages": list(messages),
            "stream": True,
            "temperature": 0,
            "max_tokens": self._most_tokens,
        }
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with self._client.stream("POST", self._url, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise RubbishError(f"status_{response.status_code}")
                if "event-stream" not in response.headers.get("content-type", ""):
                    yield _whole_text(await _bounded(response))
                    return
                async for text in _event_texts(response):
                    yield text
        except httpx2.HTTPError as error:
            raise RubbishError("unreachable" if isinstance(error, httpx2.ConnectError) else "cut") from error


def _cut(buffer: str, language: str) -> tuple[list[str], str]:
    """Sentences that are whole, and what is not yet: marks that follow a full stop belong to what they follow."""
    parts = _joined(sentences(buffer, language))
    if not parts:
        return [], buffer
    last = parts[-1]
    if len(parts) > 1 and not last.startswith("["):
        return parts[:-1], last
    return parts[:-2], buffer[buffer.rindex(parts[-2]) :] if len(parts) > 1 else buffer


def _joined(parts: Sequence[str]) -> list[str]:
    """Marks at the beginning of a part go to the end of the one before."""
    joined: list[str] = []
    for part in parts:
        marks = _LEADING_MARKS.match(part)
        if marks and joined:
            joined[-1] += " " + marks[0].strip()
            part = part[marks.end() :].strip()
        if part:
            joined.append(part)
    return joined


async def _bounded(response: Any) -> bytes:
    raw = bytearray()
    async for piece in response.aiter_bytes():
        raw += piece
        if len(raw) > MOST_BYTES:
            raise RubbishError("endless")
    return bytes(raw)


async def _event_texts(response: Any) -> AsyncIterator[str]:
    """The text of server-sent events. Raises RubbishError where they do not end as OpenAI's do."""
    buffer, received = bytearray(), 0
    has_ended = False
    async for piece in response.aiter_bytes():
        received += len(piece)
        if received > MOST_BYTES:
            raise RubbishError("endless")
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            text, is_last = _delta(bytes(data))
            has_ended = has_ended or is_last
            if text:
                yield text
    if not has_ended:
        raise RubbishError("cut")


def _delta(data: bytes) -> tuple[str, bool]:
    choice = _choice(data)
    if choice is None:
        return "", False  # usage, or a sign of life
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        raise RubbishError("not_json")
    return _content(delta, choice), choice.get("finish_reason") is not None


def _whole_text(raw: bytes) -> str:
    """An upstream that does not stream."""
    choice = _choice(raw)
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict):
        raise RubbishError("not_json")
    return _content(message, choice)


def _choice(raw: bytes) -> dict[str, Any] | None:
    try:
        told = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RubbishError("not_json") from error
    if not isinstance(told, dict):
        raise RubbishError("not_json")
    if "error" in told:
        raise RubbishError("failed")
    choices = told.get("choices")
    if not isinstance(choices, list) or (choices and not isinstance(choices[0], dict)):
        raise RubbishError("not_json")
    return choices[0] if choices else None


def _content(message: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise RubbishError("refused")
    content = message.get("content")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise RubbishError("not_json")
    return content
