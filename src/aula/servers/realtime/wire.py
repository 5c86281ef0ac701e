"""Texts to events and back, in the names that the client speaks."""

import base64
import binascii

import msgspec

from aula.servers.realtime import beta
from aula.servers.realtime.errors import ClientError, JsonObject

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Wire:
    def __init__(self, *, speaks_beta: bool, most: int) -> None:
        """`most` characters of one event."""
        self._beta = speaks_beta
        self._most = most

    def read(self, text: str) -> JsonObject:
        """An event in GA names. Raises ClientError for what is no JSON object, or too large."""
        if len(text) > self._most:
            raise ClientError(
                f"The event has {len(text)} characters, more than {self._most}. Next: send sound in smaller pieces",
                code="event_too_large",
            )
        try:
            event = _decoder.decode(text)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise ClientError(f"The event is not JSON ({error}).", code="invalid_json") from error
        if not isinstance(event, dict):
            raise ClientError("An event is a JSON object with a type.", code="invalid_event")
        return beta.to_ga(event) if self._beta else event

    def write(self, event: JsonObject) -> str | None:
        """None for an event that the client's names do not know."""
        named = beta.to_beta(event) if self._beta else event
        return None if named is None else _encoder.encode(named).decode()


def from_base64(text: str, param: str) -> bytes:
    """Raises ClientError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ClientError(f"{param} is not base64 ({error})", code="invalid_audio", param=param) from error
