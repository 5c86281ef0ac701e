"""What a client did wrong, in the protocol's own shape; and our errors in it."""

from typing import Any

from aula.servers.faults import message_of, retry_after, status_of, type_of

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


def error_of(error: BaseException, param: str | None = None) -> JsonObject:
    """Any error as the protocol's object. What is none of ours is a defect, and its words stay in the house."""
    if isinstance(error, ClientError):
        return dict(error.error)
    status, code = status_of(error)
    told: JsonObject = {"type": type_of(status), "code": code, "message": message_of(error), "param": param}
    if (seconds := retry_after(error)) is not None:
        told["retry_after_s"] = round(seconds, 3)
    return told
