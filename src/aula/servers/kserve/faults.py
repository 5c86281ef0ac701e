"""Errors as the protocol tells them: {"error": text} and a status over HTTP, a code and a text over gRPC."""

import math

from aula.core.errors import (
    AulaError,
    DeadlineError,
    InputError,
    ModelNotFoundError,
    NoRungError,
    OverloadError,
)

DEFECT = "the server failed at this, by a defect of its own. Next: try again, and tell its operator if it lasts"
_QUOTAS = frozenset({"rate", "concurrency", "device_time"})
"""Refusals for what the tenant itself did; others tell how the server is."""
_STATUSES: tuple[tuple[type[AulaError], int], ...] = (
    (ModelNotFoundError, 404),
    (DeadlineError, 504),
    (NoRungError, 503),
    (InputError, 400),
)
_GRPC = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class NotServedError(InputError):
    """The protocol, or Triton beyond it, knows this, and nothing here does it."""

    status = 501


class NotYoursError(InputError):
    """A tenant or a tier that the caller's key is not for."""

    status = 403


class TooMuchError(InputError):
    """More bytes than this door takes."""

    status = 413


class NowhereError(InputError):
    """A path at which there is nothing, or nothing by that method."""

    def __init__(self, what: str, *, status: int, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.status = status


def status_of(error: BaseException) -> int:
    """HTTP's. An error may bring its own, as those of keys do; what is no error of ours is a defect."""
    own = getattr(error, "status", None)
    if isinstance(error, AulaError) and isinstance(own, int):
        return own
    if isinstance(error, OverloadError):
        return 429 if error.reason in _QUOTAS else 503
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def code_of(error: BaseException) -> str:
    """The name of gRPC's code."""
    return _GRPC.get(status_of(error), "INTERNAL")


def message_of(error: BaseException) -> str:
    """What may be told: a defect's own words stay in the house."""
    return str(error) if isinstance(error, AulaError) else DEFECT


def retry_after(error: BaseException) -> str | None:
    """Whole seconds, as HTTP's header has them; None where asking again does not help."""
    if not isinstance(error, AulaError) or error.retry_after_s is None:
        return None
    return str(max(1, math.ceil(error.retry_after_s)))
