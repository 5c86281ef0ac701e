"""Errors as every door tells them: a status of HTTP, a code for programs, and each protocol's own shape by the path."""

import math
from typing import Any

from starlette.responses import JSONResponse, Response

from aula.core.errors import (
    AccessError,
    AudioError,
    AulaError,
    CourseNotFoundError,
    DeadlineError,
    InputError,
    KeyAbsentError,
    KeyRefusedError,
    ModelNotFoundError,
    NoRungError,
    NothingHeardError,
    OverloadError,
    TooLargeError,
    TooSlowError,
    UnsupportedLanguageError,
)

_FAULTS: tuple[tuple[type[AulaError], int, str], ...] = (
    (KeyAbsentError, 401, "missing_api_key"),
    (KeyRefusedError, 401, "invalid_api_key"),
    (AccessError, 403, "not_allowed"),
    (TooLargeError, 413, "too_large"),
    (TooSlowError, 408, "too_slow"),
    (AudioError, 400, "invalid_audio"),
    (InputError, 400, "invalid_value"),
    (NothingHeardError, 400, "nothing_heard"),
    (UnsupportedLanguageError, 400, "unsupported_language"),
    (CourseNotFoundError, 404, "model_not_found"),
    (ModelNotFoundError, 404, "model_not_found"),
    (DeadlineError, 504, "deadline_exceeded"),
    (NoRungError, 503, "out_of_order"),
)
_QUOTAS = frozenset({"rate", "concurrency", "device_time"})
"""Refusals that are the caller's own doing; others are the server's state."""
DEFECT = "the server failed at this, by a defect of its own. Next: try again, and tell its operator if it lasts"


def status_of(error: BaseException) -> tuple[int, str]:
    """The status and the code. An error may bring a status of its own; what is no error of ours is a defect."""
    if isinstance(error, OverloadError):
        return (429, "rate_limit_exceeded") if error.reason in _QUOTAS else (503, "overloaded")
    own = getattr(error, "status", None) if isinstance(error, AulaError) else None
    for kind, status, code in _FAULTS:
        if isinstance(error, kind):
            return own or status, code
    return own or 500, "server_error"


def message_of(error: BaseException) -> str:
    """What may be told: a defect's own words stay in the house."""
    return str(error) if isinstance(error, AulaError) else DEFECT


def retry_after(error: BaseException) -> float | None:
    """Seconds; None where asking again does not help."""
    return error.retry_after_s if isinstance(error, AulaError) else None


def whole(amount: float) -> str:
    """As HTTP's headers write it: not before the time has come."""
    return str(max(1, math.ceil(amount)))


def headers_of(error: BaseException) -> dict[str, str]:
    headers: dict[str, str] = {}
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = whole(seconds)
        headers["Retry-After-Ms"] = whole(1000 * seconds)
    if isinstance(error, TooLargeError | TooSlowError):
        headers["Connection"] = "close"  # the rest of the body is not worth reading
    if isinstance(error, DeadlineError):
        headers["X-Should-Retry"] = "false"  # OpenAI's clients ask again after a 504, and would be as late again
    if isinstance(error, KeyAbsentError | KeyRefusedError):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def openai_error(error: BaseException, param: str | None = None) -> dict[str, Any]:
    status, code = status_of(error)
    return {"message": message_of(error), "type": type_of(status), "param": param, "code": code}


def shaped(path: str, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """A fault of the door itself, as whoever calls that path expects it: OpenAI's object, the Open Inference
    Protocol's, or a plain one."""
    if path.startswith("/v1"):
        body: dict[str, Any] = {"error": {"message": message, "type": type_of(status), "param": None, "code": code}}
    elif path.startswith("/v2"):
        body = {"error": message}
    else:
        body = {"error": {"message": message, "code": code}}
    return JSONResponse(body, status, headers)


def refusal(path: str, error: BaseException) -> Response:
    return shaped(path, *status_of(error), message_of(error), headers_of(error))


def type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
