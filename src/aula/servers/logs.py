"""One line for each request, for people or as JSON. Neither secrets nor speech: a line never holds a header, a query
or a body. Importing configures nothing; `configure` is for whoever owns the process."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

_REQUESTS = logging.getLogger("aula.requests")
_SERVER = logging.getLogger("aula.server")
LOGGERS = {"aula": logging.INFO, "uvicorn": logging.WARNING, "python_multipart": logging.ERROR}
"""Whose words are written, from which level on. Bad forms are told to their senders, not warned of."""


def log_request(told: dict[str, Any]) -> None:
    _REQUESTS.info("%s %s", told["method"], told["path"], extra={"told": told})


def log_notice(what: str, **told: Any) -> None:
    _SERVER.info(what, extra={"told": told})


def log_warning(what: str, **told: Any) -> None:
    _SERVER.warning(what, extra={"told": told})


def log_defect(error: BaseException, request_id: str) -> None:
    """Where it happened, and of what kind; not its words, which may quote what a student said."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.name}:{frame.lineno}" for frame in frames[-6:]]
    told = {"id": request_id, "type": type(error).__name__, "where": where}
    _SERVER.error("a defect", extra={"told": told})


def log_stray(_loop: object, context: dict[str, Any]) -> None:
    """For an event loop: what nobody awaited. asyncio's own handler would print the error's words."""
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_defect(error, "")
    else:
        log_warning(str(context.get("message")))


def configure(form: str, stream: TextIO | None = None) -> None:
    """`form` is text, json or none. uvicorn's warnings come along."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for name, level in LOGGERS.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(max(level, logging.WARNING) if form == "none" else level)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        return json.dumps(told, ensure_ascii=True, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = dict(getattr(record, "told", {}))
        clock = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        if record.name == _REQUESTS.name:
            status = told.get("status") or "cut"
            who = f" {told['tenant']}" if "tenant" in told else ""
            line = f"{told['method']} {told['path']} {status} {told['ms']:.1f} ms{who}"
        else:
            more = " ".join(f"{name}={value}" for name, value in told.items())
            line = f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({more})" if more else "")
        # A path may hold anything; a log's reader must not take it for lines or colours of ours.
        if not line.isprintable():
            line = "".join(one if one.isprintable() else "?" for one in line)
        return f"{clock} {line}"
