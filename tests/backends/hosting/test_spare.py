"""A second process that has imported the backend takes the place of one that died."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting import keeper as keeper_module
from aula.backends.session import available_backends, open_session
from aula.core.errors import ProcessAwayError, ProcessLostError
from tests.backends.graphs import doubling
from tests.backends.hosting.conftest import Host
from tests.backends.hosting.leftovers import AT_LAST, ended

X = {"x": np.ones(3, np.float32)}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_SPARE_AFTER_SECONDS", 0.0)


@pytest.fixture
def session(host: Host, tmp_path: Path) -> HostedSession:
    path = doubling(tmp_path / "model.onnx", "n")
    return host(partial(open_session, available_backends()[0], path), spare=True, settled_s=0.0)


def spare(session: HostedSession) -> int:
    """Wait for it: its process number."""
    keeper = session._keeper
    with keeper._news:
        assert keeper._news.wait_for(lambda: keeper._spare is not None, AT_LAST)
        assert keeper._spare is not None
        return keeper._spare.pid


def killed(session: HostedSession) -> None:
    pid = session.health().pid
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    with pytest.raises((ProcessLostError, ProcessAwayError)):
        session.run(X)
    assert session.wait_ready(AT_LAST)


def test_the_spare_takes_the_place_of_the_dead_and_another_is_kept(session: HostedSession) -> None:
    for _ in range(2):
        waiting = spare(session)
        killed(session)
        assert session.health().pid == waiting
        assert session.run(X)["y"].tolist() == [2, 2, 2]
    assert spare(session) != session.health().pid
    assert (session.statistics().starts, session.statistics().deaths) == (3, 2), "a spare is no start"


def test_a_spare_that_died_is_no_help_and_no_harm(session: HostedSession) -> None:
    waiting = spare(session)
    os.kill(waiting, signal.SIGKILL)
    assert ended(waiting)
    killed(session)
    assert session.health().pid != waiting
    assert session.run(X)["y"].tolist() == [2, 2, 2]


def test_closing_ends_the_spare_too(session: HostedSession) -> None:
    waiting = spare(session)
    session.close()
    assert ended(waiting)


def test_an_engine_of_no_known_backend_has_no_spare(host: Host) -> None:
    session = host(spare=True)
    assert session.run(X)["y"].tolist() == [2, 2, 2]
    assert session._keeper._spare is None
