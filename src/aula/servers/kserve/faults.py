"""Errors as the protocol tells them: {"error": text} and a status over HTTP, a code and a text over gRPC."""

from aula.core.errors import InputError
from aula.servers import faults

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
    """A path at which there is nothing, or nothing by that method; `allow` names the methods that there are."""

    def __init__(self, what: str, *, status: int, next_step: str, allow: str = "") -> None:
        super().__init__(what, next_step=next_step)
        self.status = status
        self.allow = allow


def status_of(error: BaseException) -> int:
    """HTTP's, as every door has it."""
    return faults.status_of(error)[0]


def code_of(error: BaseException) -> str:
    """The name of gRPC's code."""
    return _GRPC.get(status_of(error), "INTERNAL")


def retry_after(error: BaseException) -> str | None:
    """Whole seconds, as HTTP's header has them; None where asking again does not help."""
    seconds = faults.retry_after(error)
    return None if seconds is None else faults.whole(seconds)
