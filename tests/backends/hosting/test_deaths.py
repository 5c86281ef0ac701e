"""The process dies, hangs or starves; or its host does. Nothing is answered twice, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting import process as process_module
from aula.backends.hosting.records import HostChange, HostState
from aula.backends.session import SessionOptions, available_backends, open_session
from aula.core.errors import (
    BackendError,
    DeviceLostError,
    ProcessAwayError,
    ProcessHungError,
    ProcessLostError,
    ProcessMemoryError,
)
from tests.backends.graphs import doubling
from tests.backends.hosting.conftest import Host
from tests.backends.hosting.leftovers import AT_LAST, children, descriptors, ended
from tests.backends.hosting.odd_engines import Odd

ROOT = Path(__file__).resolve().parents[3]
KILLS, LEAST_DEATHS = 20, 10


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        (Odd.KILLED, ProcessLostError, r"signal 9 \(SIGKILL\)"),
        (Odd.CRASH, ProcessLostError, r"signal 11 \(SIGSEGV\).*odd_engines"),
        (Odd.LEAVE, ProcessLostError, r"exit code 3\b.*standard output \| I have had enough"),
        (Odd.HANG, ProcessHungError, r"no answer for 0\.3 s"),
        (Odd.HANG_WITH_THE_LOCK, ProcessHungError, r"no answer for 0\.3 s"),
        (Odd.DEAF, ProcessLostError, "ended by itself"),
        (Odd.NO_MEMORY, ProcessMemoryError, "no memory left"),
        (Odd.LOSE_DEVICE, DeviceLostError, "GPU 0 is lost"),
    ],
)
def test_whatever_ends_it_the_run_hears_a_typed_error_and_the_next_process_serves(
    host: Host, how: Odd, kind: type[BackendError], words: str
) -> None:
    session = host(hang_s=0.3)
    with pytest.raises(kind, match=words) as caught:
        session.run(x(how))
    assert type(caught.value) is kind
    assert caught.value.next_step
    _whole_again(session, deaths=1)
    assert session.run(x(7))["y"] == 14
    statistics = session.statistics()
    assert (statistics.deaths, statistics.starts, statistics.hung) == (1, 2, int(kind is ProcessHungError))


@pytest.mark.parametrize("how", [Odd.DEFECT, Odd.STRINGS])
def test_what_the_process_survives_costs_one_run(host: Host, how: Odd) -> None:
    session = host()
    with pytest.raises(BackendError, match=r"ZeroDivisionError: a defect|cannot be shared") as caught:
        session.run(x(how))
    assert type(caught.value) is BackendError
    assert session.run(x(7))["y"] == 14
    assert session.statistics().deaths == 0


def test_the_limit_of_memory_holds_and_is_named(host: Host) -> None:
    session = host(memory_bytes=2 << 30)
    with pytest.raises(ProcessMemoryError, match="no memory left"):
        session.run(x(Odd.EAT_MEMORY))
    _whole_again(session, deaths=1)
    assert session.run(x(7))["y"] == 14


def test_an_engine_that_does_not_fit_the_limit_is_refused_and_not_tried_again(host: Host, tmp_path: Path) -> None:
    opener = partial(open_session, "onnxruntime", doubling(tmp_path / "model.onnx", "n"))
    with pytest.raises(BackendError, match=r"memory|map|ended while it loaded"):
        host(opener, memory_bytes=1 << 20)


def test_a_kill_for_want_of_memory_is_called_that(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([0, 1, 1, 1])
    monkeypatch.setattr(process_module, "_out_of_memory_kills", lambda: next(kills))
    session = host()
    with pytest.raises(ProcessMemoryError, match="for want of memory"):
        session.run(x(Odd.KILLED))
    _whole_again(session, deaths=1)


def test_an_array_larger_than_memory_is_refused_and_harms_nobody(host: Host) -> None:
    session = host()
    huge = np.broadcast_to(np.float32(1), 1 << 42)
    for _ in range(2):
        with pytest.raises(BackendError, match="shared memory"):
            session.run({"x": huge})
        assert session.run(x(7, 8))["y"].tolist() == [14, 16]
    assert session.statistics().deaths == 0


def test_what_stands_in_line_when_it_dies_is_refused_at_once(host: Host, gate: Path) -> None:
    session = host(wait_s=1000.0, longest_wait_s=1000.0)
    session.run(x(1))
    with pytest.raises(ProcessLostError):
        session.run(x(Odd.KILLED))
    _whole_again(session, deaths=1)
    heard: list[BaseException] = []

    def ask(value: float) -> None:
        try:
            session.run(x(value))
        except BackendError as error:
            heard.append(error)

    threads = [threading.Thread(target=ask, args=(Odd.WAIT,))]
    threads[0].start()
    _until(lambda: session._runs._line.taken)
    for number in range(4):
        threads.append(threading.Thread(target=ask, args=(7,)))
        threads[-1].start()
        _until(lambda number=number: session._runs._line.length > number)
    os.kill(session.health().pid, signal.SIGKILL)
    for thread in threads:
        thread.join(AT_LAST)
    assert Counter(type(error) for error in heard) == {ProcessLostError: 1, ProcessAwayError: 4}
    assert session.statistics().in_flight == 0


@pytest.mark.parametrize(("seed", "backend"), list(enumerate(available_backends())))
def test_killed_at_random_moments_every_run_is_answered_or_refused_exactly_once(
    seed: int, backend: str, tmp_path: Path, host: Host
) -> None:
    """Clients ask without a break, each for numbers of its own; a killer strikes after a random number of answers, and
    at times while the new process loads."""
    rng = np.random.default_rng(seed)
    path = doubling(tmp_path / "model.onnx", "n")
    session = host(partial(open_session, backend, path, SessionOptions(threads=1)), settled_s=0.0)
    over = threading.Event()
    answers = threading.Semaphore(0)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    counting = threading.Lock()

    def client(number: int) -> None:
        asked = 0
        while not over.is_set():
            asked += 1
            sent = np.array([number, asked, *range(asked % 50)], np.float32)
            try:
                (made,) = session.run({"x": sent}).values()
                if made.shape != sent.shape or (made != 2 * sent).any():
                    wrong.append(f"{sent} became {made}")
                end = "answered"
                answers.release()
            except ProcessLostError:
                end = "lost"
            except ProcessAwayError:
                end = "refused"
                session.wait_ready(AT_LAST)
            with counting:
                outcomes["submitted"] += 1
                outcomes[end] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(3)]
    for thread in clients:
        thread.start()
    killed = 0
    while killed < KILLS or session.statistics().deaths < LEAST_DEATHS:
        for _ in range(int(rng.integers(1, 60))):
            assert answers.acquire(timeout=AT_LAST), "the service is whole again after each kill"
        killed += _strike(session)
        if rng.random() < 0.25:
            _until(lambda: session.health().state is HostState.STARTING or session.wait_ready(0.0))
            killed += _strike(session)
    for _ in range(5):
        assert answers.acquire(timeout=AT_LAST)
    over.set()
    for thread in clients:
        thread.join(AT_LAST)
    assert not wrong
    statistics = session.statistics()
    told = {name: getattr(statistics, name) for name in ("submitted", "answered", "lost", "refused")}
    assert told == {name: outcomes[name] for name in told}
    assert told["submitted"] == told["answered"] + told["lost"] + told["refused"]
    assert (statistics.failed, statistics.late, statistics.in_flight) == (0, 0, 0)
    assert statistics.starts == statistics.deaths + 1 > LEAST_DEATHS


def test_a_session_closed_in_the_middle_of_a_run_ends_it(host: Host, gate: Path) -> None:
    session = host()
    heard: list[BaseException] = []

    def ask() -> None:
        try:
            session.run(x(Odd.WAIT))
        except BackendError as error:
            heard.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    _until(lambda: session._runs._line.taken)
    pid = session.health().pid
    session.close()
    asker.join(AT_LAST)
    assert ended(pid)
    assert isinstance(heard[0], ProcessLostError)
    assert "closed" in str(heard[0])


def test_an_answer_that_nobody_took_is_not_taken_for_the_next(host: Host) -> None:
    session = host()
    process = session._keeper.process()
    process.send_run(x(5), reset=False)  # and whoever sent this is interrupted before he waits
    assert session.run(x(7))["y"] == 14
    assert session.run(x(8))["y"] == 16


def test_an_interrupt_gives_the_run_up_and_harms_nobody_else(
    host: Host, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = host()
    process = session._keeper.process()
    answer = process.answer

    def interrupted(left: Callable[[], float]) -> Any:
        monkeypatch.setattr(process, "answer", answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run(x(Odd.WAIT))
    gate.write_bytes(b"!")
    assert session.run(x(7))["y"] == 14
    monkeypatch.setattr(process, "send_run", lambda *_, **__: interrupted(lambda: 0.0))
    with pytest.raises(KeyboardInterrupt):
        session.run(x(7))
    _whole_again(session, deaths=1)
    assert session.run(x(8))["y"] == 16


def test_where_no_process_can_be_started_it_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(BackendError, match=r"no process can be started.*temporarily unavailable"):
        host()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BackendError, match="POSIX"):
        host()


def test_a_host_that_cannot_start_it_anew_tries_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    session = host(wait_s=0.01)
    start = process_module._start
    times = iter([True, True, False])

    def sometimes(*arguments: int) -> Any:
        if next(times, False):
            raise OSError(24, "Too many open files")
        return start(*arguments)

    monkeypatch.setattr(process_module, "_start", sometimes)
    with pytest.raises(ProcessLostError):
        session.run(x(Odd.KILLED))
    _whole_again(session, deaths=3)
    assert "Too many open files" in session.health().last_death
    assert session.run(x(7))["y"] == 14


def test_a_listener_may_close_the_session(host: Host) -> None:
    session = host()
    closed = threading.Event()

    def listen(change: HostChange) -> None:
        if change.state is HostState.WAITING:
            session.close()
        if change.state is HostState.CLOSED:
            closed.set()

    session.on_change = listen
    with pytest.raises(ProcessLostError):
        session.run(x(Odd.KILLED))
    assert closed.wait(AT_LAST)


def test_many_lives_leave_nothing_behind(host: Host) -> None:
    session = host(settled_s=0.0)
    held = []
    for life in range(5):
        session.run({"x": np.zeros(1 << 18, np.float32)})
        held.append((len(descriptors()), len(children())))
        with pytest.raises(ProcessLostError):
            session.run(x(Odd.KILLED))
        _whole_again(session, deaths=life + 1)
    assert len(set(held)) == 1


def test_a_fork_s_copy_neither_runs_nor_ends_it(host: Host) -> None:
    session = host()
    session.run(x(7))
    keeper = session._keeper
    pid, (readable, writable) = session.health().pid, os.pipe()
    keeper._owner = session._runs._owner = -1  # what a fork's copy sees: another process than its own
    try:
        with pytest.raises(BackendError, match="fork"):
            session.run(x(7))
        keeper.close()
    finally:
        keeper._owner = session._runs._owner = os.getpid()
        os.close(readable)
        os.close(writable)
    assert session.run(x(7))["y"] == 14
    assert session.health().pid == pid


# The host dies.

_PROGRAM = """
import sys, threading
from pathlib import Path
import numpy as np
from aula.backends.hosted import HostedSession
from tests.backends.hosting.odd_engines import Odd, OddSession

print("once")
session = HostedSession(OddSession)
print(session.run({"x": np.ones(1, np.float32)})["y"][0])
print(session.health().pid, flush=True)
"""
_BUSY = """
threading.Thread(target=lambda: session.run({"x": np.array([Odd.HANG_WITH_THE_LOCK], np.float32)}), daemon=True).start()
while not session._runs._line.taken:
    pass
print("busy", flush=True)
"""
_WAIT = "sys.stdin.read()\n"


def _started(program: Path, text: str) -> "subprocess.Popen[str]":
    program.write_text(text, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
    )


def test_a_program_without_a_main_guard_runs_once_and_leaves_nothing(tmp_path: Path) -> None:
    told, _ = _started(tmp_path / "program.py", _PROGRAM).communicate(timeout=AT_LAST)
    once, made, pid = told.split()
    assert (once, made) == ("once", "2.0")
    assert ended(int(pid))


@pytest.mark.parametrize("busy", ["", _BUSY], ids=["idle", "busy and deaf"])
def test_when_the_host_is_killed_the_process_ends_too(tmp_path: Path, busy: str) -> None:
    program = _started(tmp_path / "program.py", _PROGRAM + busy + _WAIT)
    assert program.stdout is not None
    lines = [program.stdout.readline() for _ in range(4 if busy else 3)]
    program.kill()
    program.communicate(timeout=AT_LAST)
    assert ended(int(lines[2]))


def test_the_thread_that_opened_it_may_end(host: Host) -> None:
    opened: list[HostedSession] = []
    thread = threading.Thread(target=lambda: opened.append(host()))
    thread.start()
    thread.join(AT_LAST)
    assert opened[0].run(x(7))["y"] == 14
    assert opened[0].statistics().deaths == 0


def _strike(session: HostedSession) -> int:
    """1 where there was somebody to kill."""
    pid = session.health().pid
    if not pid:
        return 0
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _whole_again(session: HostedSession, deaths: int) -> None:
    _until(lambda: session.statistics().deaths >= deaths)
    assert session.wait_ready(AT_LAST)


def _until(true: Any) -> None:
    """Other threads are on their way there."""
    while not true():
        threading.Event().wait(0.001)
