"""What a hosted session shares with any other, and what it tells of itself."""

import gc
import hashlib
import os
import signal
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import HostChange, Hosting, HostState
from aula.backends.session import SessionOptions, StatePair, available_backends, open_session
from aula.core.clock import FakeClock
from aula.core.errors import (
    BackendError,
    BundleError,
    DeadlineError,
    DeviceLostError,
    ProcessAwayError,
    ProcessHungError,
    ProcessLostError,
)
from tests.backends.gpu_engines import floats
from tests.backends.graphs import counting, dense, doubling
from tests.backends.hosting.conftest import Host
from tests.backends.hosting.leftovers import AT_LAST, ended
from tests.backends.hosting.odd_engines import (
    Odd,
    Total,
    die_loading,
    fake_plan,
    hang_loading,
    load_once,
    old_plan,
    refuse,
    refuse_oddly,
    several_sizes,
)

HOSTED = SessionOptions(threads=1, hosted=Hosting())
HERE = SessionOptions(threads=1)

backends = pytest.mark.parametrize("backend", available_backends())


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


@backends
def test_it_computes_and_describes_what_a_session_in_this_process_does(backend: str, tmp_path: Path) -> None:
    path = dense(tmp_path / "model.onnx")
    with open_session(backend, path, HERE) as here, open_session(backend, path, HOSTED) as there:
        assert isinstance(there, HostedSession)
        assert (there.backend, there.inputs, there.outputs) == (here.backend, here.inputs, here.outputs)
        assert there.options == here.options
        assert there.dtype_of("x") == "float32"
        assert there.precisions() == here.precisions()
        for rows in (1, 3, 3, 700, 2, 0):
            tensors = floats(rows, 64, seed=rows)
            (mine,), (other,) = here.run(tensors).values(), there.run(tensors).values()
            np.testing.assert_array_equal(mine, other)
            assert other.flags.writeable


@backends
def test_outputs_are_the_caller_s_own_and_any_arrangement_is_read(backend: str, tmp_path: Path) -> None:
    with open_session(backend, doubling(tmp_path / "model.onnx", "rows", 4), HOSTED) as session:
        values = np.arange(8, dtype=np.float32).reshape(2, 4)
        frozen = values.copy()
        frozen.flags.writeable = False
        kept = []
        for given in (values, frozen, np.asfortranarray(values), np.repeat(values, 2, 0)[::2], values):
            kept.append(session.run({"x": given})["y"])
            values += 0
        values[:] = -1
        kept.append(session.run({"x": values})["y"])
    for made in kept[:-1]:
        np.testing.assert_array_equal(made, 2 * frozen)
    assert kept[-1].max() == -2


@backends
def test_a_steady_array_is_sent_once_and_others_each_time(backend: str, tmp_path: Path) -> None:
    """Whoever breaks the promise sees that nothing was sent."""
    with open_session(backend, doubling(tmp_path / "model.onnx", "rows", 4), HOSTED) as session:
        assert isinstance(session, HostedSession)
        session.steady = frozenset({"x"})

        def made(array: Any) -> float:
            return float(session.run({"x": array})["y"].max())

        array = np.ones((2, 4), np.float32)
        assert made(array) == 2
        array[:] = 5
        assert made(array) == 2
        other, larger = array + 1, np.full((700, 4), 7, np.float32)
        assert [made(other), made(array), made(larger), made(array), made(array)] == [12, 10, 14, 10, 10]
        array[:] = 9
        os.kill(session.health().pid, signal.SIGKILL)
        with pytest.raises((ProcessLostError, ProcessAwayError)):
            made(array)
        assert session.wait_ready(60)
        assert made(array) == 18, "another process has nothing yet"
        session.settle()
        session.steady = ()
        array[:] = 1
        assert made(array) == 2


@backends
def test_states_stay_in_the_process_until_reset(backend: str, tmp_path: Path) -> None:
    options = SessionOptions(
        threads=1,
        states=(StatePair("total", "total_next", initial=1.0),),
        state_shapes={"total": (2,)},
        hosted=Hosting(),
    )
    with open_session(backend, counting(tmp_path / "model.onnx"), options) as session:
        assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["x", "y"]
        assert session.dtype_of("total") == "float32"
        made = []
        for turn in range(6):
            if turn == 4:
                session.reset()
            made.append(session.run(x(1, 2))["y"].tolist())
    assert made == [[2, 3], [3, 5], [4, 7], [5, 9], [2, 3], [3, 5]]


@backends
def test_wrong_tensors_are_refused_here_with_the_same_words(backend: str, tmp_path: Path) -> None:
    path = doubling(tmp_path / "model.onnx", "rows", 4)
    bounds = {"x": ((1, 8), (4, 4))}
    with (
        open_session(backend, path, SessionOptions(threads=1, bounds=bounds)) as here,
        open_session(backend, path, SessionOptions(threads=1, bounds=bounds, hosted=Hosting())) as there,
    ):
        assert isinstance(there, HostedSession)
        good = np.zeros((2, 4), np.float32)
        wrong: list[dict[str, Any]] = [
            {},
            {"z": good},
            {"x": good, "z": good},
            {"x": good[0]},
            {"x": good[:, :3]},
            {"x": np.zeros((9, 4), np.float32)},
            {"x": good.astype(np.float64)},
            {"x": good.astype(np.int64)},
            {"x": good.astype(object)},
        ]
        for tensors in wrong:
            told = []
            for session in (here, there):
                with pytest.raises(BackendError) as caught:
                    session.run(tensors)
                told.append(str(caught.value))
            assert told[0] == told[1]
        assert (there.run({"x": good})["y"] == 0).all(), "and the next run is served"
        assert there.statistics().deaths == 0


def test_what_open_session_refuses_is_refused_alike(tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"this is no graph")
    wrong = [("cuda", "absent.onnx"), ("onnxruntime", "absent.onnx"), ("onnxruntime", "foreign.onnx")]
    for backend, name in wrong:
        told = []
        for options in (HERE, HOSTED):
            with pytest.raises(BackendError) as caught:
                open_session(backend, tmp_path / name, options)
            told.append((str(caught.value), caught.value.available))
        assert told[0] == told[1]


def test_engines_of_several_sizes_live_in_one_process(host: Host, tmp_path: Path) -> None:
    session = host(partial(several_sizes, doubling(tmp_path / "model.onnx", "rows", 4)))
    for rows in (1, 5, 1):
        tensors = floats(rows, 4, seed=rows)
        np.testing.assert_array_equal(session.run(tensors)["y"], 2 * tensors["x"])
    with pytest.raises(BackendError, match="no profile of this engine holds") as caught:
        session.run(floats(9, 4))
    assert len(caught.value.available) == 2
    assert session.statistics().starts == 1


def test_loaders_errors_keep_their_type(host: Host) -> None:
    with pytest.raises(BundleError, match="another machine") as caught:
        host(refuse)
    assert caught.value.available == ("cpu", "sm75")
    with pytest.raises(BackendError, match="ZeroDivisionError: not one of ours"):
        host(refuse_oddly)
    with pytest.raises(ProcessLostError, match=r"while it loaded.*exit code 7.*the driver said no"):
        host(die_loading)
    with pytest.raises(ProcessHungError, match="did not load"):
        host(hang_loading, load_s=0.5)


def test_an_opener_that_cannot_be_told_or_found_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be told how"):
        host(lambda: Total())
    with pytest.raises(BackendError, match="cannot be told how"):
        host(partial(Total, threading.Lock()))  # type: ignore[arg-type]


def test_a_closed_session_says_so_and_closing_twice_is_lawful(host: Host) -> None:
    session = host()
    pid = session.health().pid
    session.close()
    session.close()
    assert ended(pid)
    for use in (lambda: session.run(x(1)), session.precisions):
        with pytest.raises(BackendError, match="closed"):
            use()
    assert session.health().state is HostState.CLOSED
    assert not session.wait_ready(AT_LAST)
    session.revive()
    session.reset()


def test_a_session_that_nobody_closed_ends_its_process(host: Host, gate: Path) -> None:
    session = HostedSession(Total)
    pid, gone = session.health().pid, weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
    assert ended(pid)


def test_health_and_changes_tell_what_came_and_went(host: Host) -> None:
    session = host()
    heard: list[HostChange] = []
    back = threading.Event()

    def listen(change: HostChange) -> None:
        heard.append(change)
        if change.state is HostState.READY:
            back.set()
        raise ZeroDivisionError("a listener's own fault harms nobody")

    session.on_change = listen
    first = session.health()
    assert (first.state, first.retry_at, first.last_death) == (HostState.READY, None, "")
    with pytest.raises(ProcessLostError, match=r"SIGKILL"):
        session.run(x(Odd.KILLED))
    assert back.wait(AT_LAST)
    assert [change.state for change in heard] == [HostState.WAITING, HostState.STARTING, HostState.READY]
    assert "SIGKILL" in heard[0].cause
    assert session.changes[-3:] == tuple(heard)
    second = session.health()
    assert second.pid not in (0, first.pid)
    assert "SIGKILL" in second.last_death
    statistics = session.statistics()
    assert (statistics.starts, statistics.deaths, statistics.lost, statistics.in_flight) == (2, 1, 1, 0)
    assert statistics.shared_bytes > 0


def test_a_process_that_dies_again_and_again_is_waited_for_and_an_operator_can_hurry(host: Host) -> None:
    clock = FakeClock()
    session = host(clock=clock, wait_s=1000.0, longest_wait_s=4000.0)
    for death in range(3):
        assert session.wait_ready(AT_LAST)
        with pytest.raises(ProcessLostError):
            session.run(x(Odd.KILLED))
        if death:
            waited = threading.Event()
            session.on_change = lambda change, waited=waited: waited.set()
            if session.health().retry_at in (None, clock.now()):
                assert waited.wait(AT_LAST)
            assert session.health().retry_at == clock.now() + 1000 * death
            assert not session.wait_ready(0.0)
            with pytest.raises(ProcessAwayError, match="SIGKILL") as caught:
                session.run(x(1))
            assert caught.value.retry_after_s == 1000 * death
            session.on_change = None
            if death == 1:
                clock.advance(1000)
            session.revive()
    assert session.wait_ready(AT_LAST)
    assert session.run(x(4))["y"] == 8
    assert session.statistics().refused == 2


def test_a_load_that_fails_later_is_tried_again(host: Host, tmp_path: Path) -> None:
    session = host(partial(load_once, tmp_path / "marker"), wait_s=0.01)
    with pytest.raises(ProcessLostError):
        session.run(x(Odd.KILLED))
    assert session.wait_ready(AT_LAST)
    assert session.run(x(4))["y"] == 8
    assert "another machine" in session.health().last_death
    assert (session.statistics().starts, session.statistics().deaths) == (3, 2)


# Deadlines.


def test_a_deadline_that_is_past_starts_nothing(host: Host) -> None:
    session = host(clock=FakeClock(start=50))
    for deadline in (50.0, 0.0, -1.0, float("-inf"), float("nan")):
        with pytest.raises(DeadlineError, match="before the run could start"):
            session.run(x(1), deadline=deadline)
    assert session.run(x(1), deadline=1e12)["y"] == 2
    assert session.statistics().late == 5


def test_a_late_run_is_told_at_once_and_its_answer_is_nobody_else_s(host: Host, gate: Path) -> None:
    session = host()
    with pytest.raises(DeadlineError, match="before the engine answered"):
        session.run(x(Odd.WAIT, 5), deadline=_soon())
    with pytest.raises(DeadlineError, match="busy with a run that came too late"):
        session.run(x(3), deadline=_soon())
    gate.write_bytes(b"!")
    assert session.run(x(7))["y"] == 14
    assert session.statistics().deaths == 0
    assert session.statistics().late == 2


def test_a_late_run_that_never_ends_is_ended(host: Host) -> None:
    session = host(hang_s=0.3)
    heard = threading.Event()
    session.on_change = lambda change: heard.set() if change.state is HostState.READY else None
    with pytest.raises(DeadlineError):
        session.run(x(Odd.HANG), deadline=_soon())
    assert heard.wait(AT_LAST), "nobody else asks, and the process is still started anew"
    assert session.run(x(7))["y"] == 14
    assert session.statistics().hung == 1


def test_whoever_comes_after_a_late_run_hears_when_it_is_ended(host: Host) -> None:
    session = host(hang_s=0.3)
    with pytest.raises(DeadlineError):
        session.run(x(Odd.HANG), deadline=_soon())
    with pytest.raises(ProcessAwayError):
        session.run(x(7))


def test_a_deadline_passes_in_the_line_too(host: Host, gate: Path) -> None:
    session = host()
    outcomes: list[Any] = []
    busy = threading.Thread(target=lambda: outcomes.append(session.run(x(Odd.WAIT))))
    busy.start()
    while not session._runs._line.taken:
        threading.Event().wait(0.001)
    with pytest.raises(DeadlineError, match="turn"):
        session.run(x(1), deadline=_soon())
    gate.write_bytes(b"!")
    busy.join()
    assert outcomes[0]["y"] == 2 * Odd.WAIT


def _soon() -> float:
    from aula.core.clock import SystemClock

    return SystemClock().now() + 0.05


# States.


def test_states_that_ended_with_their_process_are_not_silently_new(host: Host) -> None:
    session = host(Total)
    assert session.run(x(1))["y"] == 11
    _kill(session)
    for _ in range(2):
        with pytest.raises(ProcessLostError, match="states of this session are lost"):
            session.run(x(1))
    session.reset()
    assert session.run(x(2))["y"] == 12
    session.reset()
    _kill(session)
    assert session.run(x(3))["y"] == 13, "none had moved since the reset"


def test_states_that_a_late_run_moved_are_in_doubt(host: Host, gate: Path) -> None:
    session = host(partial(Total, gate))
    assert session.run(x(1))["y"] == 11
    with pytest.raises(DeadlineError):
        session.run(x(1000), deadline=_soon())
    gate.write_bytes(b"!")
    with pytest.raises(ProcessLostError, match="whose answer nobody heard"):
        session.run(x(1))
    session.reset()
    assert session.run(x(2))["y"] == 12


def _kill(session: HostedSession) -> None:
    import os
    import signal

    dead = session.health().pid
    os.kill(dead, signal.SIGKILL)
    assert ended(dead)
    while (now := session.health()).state is not HostState.READY or now.pid == dead:  # its end may not be noticed yet
        assert session.wait_ready(AT_LAST)


# TensorRT, on fakes.


def test_a_plan_lives_in_the_process_with_its_states(host: Host, tmp_path: Path) -> None:
    session = host(partial(fake_plan, tmp_path / "gpu"))
    for rows in (2, 2, 8):
        tensors = floats(rows, 4)
        np.testing.assert_array_equal(session.run(tensors)["y"], 2 * tensors["x"])
    with pytest.raises(BackendError, match="pad or cut"):
        session.run(floats(9, 4))
    stateful = host(partial(fake_plan, tmp_path / "gpu", stateful=True))
    assert [stateful.run(x(1, 2))["y"].tolist() for _ in range(2)] == [[2, 4], [3, 6]]
    stateful.reset()
    assert stateful.run(x(1, 2))["y"].tolist() == [2, 4]


def test_a_lost_card_loses_the_process_alone(host: Host, tmp_path: Path) -> None:
    session = host(partial(fake_plan, tmp_path / "gpu", lost_after=6))
    pid = session.health().pid

    def run_on() -> None:
        for _ in range(100):
            session.run(floats(2, 4))

    with pytest.raises(DeviceLostError, match="lost to this process"):
        run_on()
    assert session.statistics().answered > 0
    assert session.wait_ready(AT_LAST)
    assert session.health().pid != pid
    np.testing.assert_array_equal(session.run(floats(2, 4))["y"], 2 * floats(2, 4)["x"])
    assert session.statistics().failed == 1


def test_numbers_are_narrowed_there(host: Host, tmp_path: Path) -> None:
    session = host(partial(old_plan, tmp_path))
    assert session.run({"x": np.array([1, 2])})["y"].tolist() == [2, 3]
    with pytest.raises(BackendError, match="beyond int32"):
        session.run({"x": np.array([1, 2**31])})
    with pytest.raises(BackendError, match="float64"):
        session.run({"x": np.array([1.0, 2.0])})


def test_plans_are_opened_by_name_too(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"no plan")
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    told = []
    for hosted in (None, Hosting()):
        with pytest.raises(BackendError) as caught:
            open_session("tensorrt", plan, SessionOptions(digest=digest, hosted=hosted))
        told.append(str(caught.value))
    assert told[0] == told[1]
