import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session
from tests.backends.hosting.leftovers import children, descriptors, segments
from tests.backends.hosting.odd_engines import OddSession

Host = Callable[..., HostedSession]

# Leftovers are looked for in /proc.
collect_ignore = [] if sys.platform == "linux" else ["test_hosted.py", "test_deaths.py"]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO; an engine that waits there goes on when something is written."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture
def host(gate: Path) -> Iterator[Host]:
    """Hosts an opener (else the odd engine), closes it in the end, and looks for what was left behind."""
    before = children(), descriptors(), segments()
    with contextlib.ExitStack() as stack:

        def opened(opener: Callable[[], Session] | None = None, clock: Any = None, **options: Any) -> HostedSession:
            opener = opener or partial(OddSession, gate)
            return stack.enter_context(HostedSession(opener, Hosting(**options), clock=clock))

        yield opened
    gc.collect()  # an error that a test kept holds frames, and they the memory
    assert (children(), descriptors(), segments()) == before
