"""What a client did wrong, in the protocol's own shape; and our errors in it."""

from typing import Any

from aula.core.errors import (
    AudioError,
    AulaError,
    CourseNotFoundError,
    InputError,
    NothingHeardError,
    OverloadError,
    UnsupportedLanguageError,
)

JsonObject = dict[str, Any]


class ClientError(Exception):
    """An event that cannot be obeyed. The session goes on; the client is told which event, and why."""

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.error: JsonObject = {
            "type": "invalid_request_error",
            "code": code,
            "message": message,
            "param": param,
        }


_CODES: tuple[tuple[type[AulaError], str], ...] = (
    (CourseNotFoundError, "model_not_found"),
    (NothingHeardError, "nothing_heard"),
    (UnsupportedLanguageError, "unsupported_language"),
    (AudioError, "invalid_audio"),
    (InputError, "invalid_value"),
    (OverloadError, "rate_limit_exceeded"),
)
_KINDS = {"rate_limit_exceeded": "rate_limit_error", "server_error": "server_error"}


def error_of(error: BaseException, param: str | None = None) -> JsonObject:
    """Any error as the protocol's object. What is none of ours is a defect, and its words stay in the house."""
    if isinstance(error, ClientError):
        return dict(error.error)
    if not isinstance(error, AulaError):
        return {
            "type": "server_error",
            "code": "server_error",
            "message": "The server failed at this. Next: try again, and tell its operator if it lasts.",
            "param": param,
        }
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "server_error")
    kind = _KINDS.get(code, "invalid_request_error")
    told: JsonObject = {"type": kind, "code": code, "message": str(error), "param": param}
    if error.retry_after_s is not None:
        told["retry_after_s"] = round(error.retry_after_s, 3)
    return told
