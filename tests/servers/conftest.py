"""Fixtures that the doors' tests share."""

import io
import logging
from collections.abc import Iterator

import pytest

from aula.servers.logs import LOGGERS, configure


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What aula serve would log, as JSON."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    configure("json", stream)
    yield stream
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
