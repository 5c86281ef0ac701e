"""Sessions on a fake GPU: results, graphs, states, memory, and every error by its type."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aula.backends.session import StatePair
from aula.backends.tensorrt import TensorRtSession
from aula.core.errors import BackendError, DeviceLostError, DeviceMemoryError, VerificationError
from tests.backends.fake_tensorrt import RELEASES, Output
from tests.backends.gpu_engines import (
    COUNTING,
    DOUBLING,
    FIXED,
    FREE,
    STATEFUL,
    TWO_PROFILES,
    Machine,
    floats,
    x,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# Results.


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_computes_by_the_same_calls(release: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, release)
    with machine.doubling() as free, machine.open(machine.save(FIXED, DOUBLING)) as fixed, machine.counting() as state:
        for shape in ((2, 3), (8, 8), (1, 1), (2, 3)):
            given = floats(*shape)
            np.testing.assert_array_equal(free.run(given)["y"], 2 * given["x"])
        given = floats(2, 3)
        np.testing.assert_array_equal(fixed.run(given)["y"], 2 * given["x"])
        assert [state.run(x(1, 2))["y"].tolist() for _ in range(3)] == [[2, 4], [3, 6], [4, 8]]
    assert machine.gpu.held() == {}


def test_an_output_outlives_the_next_run_and_the_session(machine: Machine) -> None:
    with machine.open(machine.save(FIXED, DOUBLING)) as session:
        kept = [session.run({"x": np.full((2, 3), value, np.float32)})["y"] for value in (1, 2)]
    assert [array.max() for array in kept] == [2, 4]


def test_wrong_tensors_are_refused_before_the_runtime_sees_them(machine: Machine) -> None:
    session = machine.doubling(bounds={"x": ((1, 4), (8, 8))})
    assert [spec.shape for spec in session.inputs] == [("free_0", 8)]
    before = machine.gpu.made
    for tensors in ({}, {"z": floats(1, 8)["x"]}, {"x": np.zeros((1, 8))}, floats(1, 4), floats(5, 8)):
        for start in (session.run, session.enqueue):
            with pytest.raises(BackendError, match=r"takes|serves"):
                start(tensors)
    assert machine.gpu.made == before


def test_int64_becomes_int32_where_it_fits(machine: Machine) -> None:
    inputs = {"x": ("int32", (2,))}
    session = machine.open(machine.save(inputs, {"y": Output("x + 1", like="x", dtype="int32")}))
    assert session.run({"x": np.array([-(2**31), 5])})["y"].tolist() == [-(2**31) + 1, 6]
    for beyond in (2**31, -(2**31) - 1):
        with pytest.raises(BackendError, match="beyond int32"):
            session.run({"x": np.array([0, beyond])})
    with pytest.raises(BackendError, match="int16"):
        session.run({"x": np.array([0, 1], dtype=np.int16)})


def test_half_and_bfloat16_states_have_their_own_types(machine: Machine) -> None:
    import ml_dtypes

    inputs = {"x": ("float16", (2,)), "total": ("bfloat16", (2,))}
    outputs = {
        "y": Output("x + total.astype(np.float16)", like="x", dtype="float16"),
        "total_next": Output("total + total", like="total", dtype="bfloat16"),
    }
    states = (StatePair("total", "total_next", initial=0.5),)
    session = machine.open(machine.save(inputs, outputs), states=states)
    made = [session.run({"x": np.zeros(2, np.float16)})["y"] for _ in range(3)]
    assert [array.tolist() for array in made] == [[0.5, 0.5], [1, 1], [2, 2]]
    assert session.read_state("total").dtype == ml_dtypes.bfloat16


def test_a_type_without_arrays_is_refused_when_it_is_opened(machine: Machine) -> None:
    path = machine.save({"x": ("fp8", (2,))}, {"y": Output("x", like="x", dtype="fp8")})
    with pytest.raises(BackendError, match="fp8, which numpy has no type for"):
        machine.open(path)


def test_a_size_that_only_the_computation_knows_is_refused(machine: Machine) -> None:
    with pytest.raises(BackendError, match=r"how large y becomes .*\[-1, 2\]"):
        machine.open(machine.save(FIXED, {"y": Output("x", shape=(-1, 2))}))
    assert machine.gpu.held() == {}


# Graphs.


def test_a_shape_that_comes_again_is_captured_once_and_replayed_after(machine: Machine) -> None:
    session = machine.doubling()
    for seed in range(5):
        given = floats(2, 3, seed=seed)
        np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    told = session.statistics()
    assert (told.captured, told.replayed, told.plain, told.refusals) == (1, 3, 2, ())


def test_another_shape_ends_the_graph_of_the_last(machine: Machine) -> None:
    session = machine.doubling()
    for repetition in range(3):
        for shape in ((2, 3), (4, 4)):
            given = floats(*shape, seed=repetition)
            np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    assert machine.gpu.calls["cudaStreamBeginCapture"] == 0, "no shape came twice running"
    for _ in range(3):
        session.run(floats(4, 4))
    assert (session.statistics().captured, session.statistics().replayed) == (1, 2)
    session.run(floats(2, 3))
    assert session.statistics().captured == 0
    assert "executables" not in machine.gpu.held()


def _end_refused(machine: Machine) -> None:
    machine.gpu.refuse_capture = 900


def _spoilt(machine: Machine) -> None:
    machine.trt.behaviour.spoils_capture = True


def _begin_refused(machine: Machine) -> None:
    machine.gpu.fail("cudaStreamBeginCapture", 900)


def _instantiation_refused(machine: Machine) -> None:
    machine.gpu.fail("cudaGraphInstantiate", 2)


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (_end_refused, "cudaStreamEndCapture"),
        (_spoilt, "CaptureInvalidated"),
        (_begin_refused, "cudaStreamBeginCapture"),
        (_instantiation_refused, r"no memory left \(cudaGraphInstantiate\)"),
    ],
)
def test_where_capture_is_refused_runs_are_started_piece_by_piece(
    machine: Machine, refuse: Callable[[Machine], None], reason: str
) -> None:
    session = machine.doubling()
    refuse(machine)
    for repetition in range(3):
        given = floats(2, 3, seed=repetition)
        np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    told = session.statistics()
    assert (told.captured, told.replayed, told.plain) == (0, 0, 3)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told.refusals)
    assert machine.gpu.calls["cudaStreamBeginCapture"] == 1, "it is not tried again"
    session.close()
    assert machine.gpu.held() == {}


def test_device_milliseconds_are_of_replays(machine: Machine) -> None:
    with machine.counting() as session:
        with pytest.raises(BackendError, match="nothing was run yet"):
            session.device_milliseconds(3)
        session.run(x(1, 1))
        assert session.device_milliseconds(3) == [1, 1, 1]
        assert session.statistics().plain == 4, "two for each turn, before the clock ran"
    assert machine.gpu.held() == {}


# States.


def test_a_state_in_place_has_one_address(machine: Machine) -> None:
    session = machine.counting(in_place=True)
    for _ in range(3):
        session.run(x(1, 2))
    where = {(run["total"], run["total_next"]) for run in machine.trt.behaviour.addresses}
    assert where == {(session.device_tensor("total").address,) * 2}
    assert session.device_tensor("total_next") == session.device_tensor("total")
    assert session.statistics().captured == 1


def test_any_other_state_has_two_buffers_with_a_graph_for_each_turn(machine: Machine) -> None:
    session = machine.counting()
    assert [session.run(x(1, 2))["y"].tolist() for _ in range(5)] == [[n, 2 * n] for n in range(2, 7)]
    where = {(run["total"], run["total_next"]) for run in machine.trt.behaviour.addresses}
    (one,) = {addresses for addresses in where if addresses[0] < addresses[1]}
    assert where == {one, one[::-1]}
    assert (session.statistics().captured, session.statistics().replayed) == (2, 1)
    with pytest.raises(BackendError, match="two buffers that take turns"):
        session.device_tensor("total")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    in_place=st.booleans(),
    captures=st.booleans(),
    steps=st.lists(st.tuples(st.sampled_from(["run", "enqueue", "write", "read", "reset"]), st.integers(-9, 9))),
)
def test_states_are_those_of_a_plain_loop(
    tmp_path: Path, in_place: bool, captures: bool, steps: list[tuple[str, int]]
) -> None:
    machine = Machine(tmp_path)
    machine.trt.behaviour.spoils_capture = not captures
    pair = StatePair("total", "total_next", initial=3.0, in_place=in_place)
    with machine.counting(in_place=in_place, states=(pair,)) as session:
        total = np.full(2, 3, np.float32)
        for step, number in steps:
            values = np.array([number, 1], dtype=np.float32)
            if step == "run":
                assert session.run({"x": values})["y"].tolist() == (2 * values + total).tolist()
                total = total + values
            elif step == "enqueue":
                session.enqueue({"x": values})
                total = total + values
            elif step == "write":
                session.write_state("total", values)
                total = values
            elif step == "read":
                assert session.read_state("total").tolist() == total.tolist()
            else:
                session.reset()
                total = np.full(2, 3, np.float32)
        assert session.read_state("total").tolist() == total.tolist()
    assert machine.gpu.held() == {}


def test_reset_sets_initial_values_and_reaches_no_further(machine: Machine) -> None:
    owner = machine.doubling()
    whole = owner.device_tensor("x")
    session = machine.counting(in_place=True)
    session.attach("total", whole)
    owner.run({"x": np.ones((8, 8), np.float32)})
    session.reset()
    assert session.read_state("total").tolist() == [0, 0]
    owner.enqueue({"x": np.ones((8, 8), np.float32)})  # writes x anew; what follows looks at the memory itself
    owner.collect()
    session.reset()
    session.read_state("total")
    held = np.frombuffer(machine.gpu.device_memory[whole.address], dtype=np.float32)
    assert held.tolist() == [0, 0] + [1] * 62


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("x", np.zeros(2, np.float32), "'x' is no state. Available: total"),
        ("total", np.zeros(3, np.float32), r"is float32\[2\], not float32\[3\]"),
        ("total", np.zeros(2), r"is float32\[2\], not float64\[2\]"),
    ],
)
def test_a_state_is_set_by_its_name_shape_and_type(machine: Machine, name: str, array: Any, said: str) -> None:
    session = machine.counting()
    with pytest.raises(BackendError, match=said):
        session.write_state(name, array)


def test_a_state_the_graph_does_not_have_is_named(machine: Machine) -> None:
    with pytest.raises(BackendError, match="no tensor memory for the declared states"):
        machine.counting(states=(StatePair("memory", "total_next"),))
    assert machine.gpu.held() == {}


# Two sessions.


def test_one_session_reads_what_another_makes_without_the_host(machine: Machine) -> None:
    first, second = machine.doubling(), machine.open(machine.save(FREE, DOUBLING, ({"x": ((8, 8),) * 3},)))
    second.follow(first)
    second.attach("x", first.device_tensor("y"))
    assert second.inputs == ()
    for seed in range(3):
        given = floats(8, 8, seed=seed)
        first.enqueue(given)
        second.enqueue({})
        np.testing.assert_array_equal(second.collect()["y"], 4 * given["x"])
    uploads = machine.gpu.calls["cudaMemcpyAsync"]
    second.run({})
    assert machine.gpu.calls["cudaMemcpyAsync"] == uploads, "a replay copies by its graph"
    second.close()
    first.close()
    assert machine.gpu.held() == {}


def test_two_sessions_keep_one_state(machine: Machine) -> None:
    prefill, step = machine.counting(in_place=True), machine.counting(in_place=True)
    step.follow(prefill)
    step.attach("total", prefill.device_tensor("total"))
    assert prefill.run(x(1, 2))["y"].tolist() == [2, 4]
    assert step.run(x(1, 1))["y"].tolist() == [3, 4]
    assert prefill.run(x(0, 0))["y"].tolist() == [2, 3]
    step.close()
    assert prefill.read_state("total").tolist() == [2, 3], "its owner keeps it"
    prefill.close()
    assert machine.gpu.held() == {}


def test_a_part_of_a_batch_is_attached_by_its_rows(machine: Machine) -> None:
    owner = machine.doubling()
    part = owner.device_tensor("y").part(2, 3)
    assert (part.shape, part.bytes) == ((3, 8), 96)
    assert part.address == owner.device_tensor("y").address + 64


def test_what_cannot_be_attached_is_refused(machine: Machine) -> None:
    session, other = machine.counting(in_place=True), machine.counting()
    wide = machine.doubling().device_tensor("x")
    half = machine.open(machine.save({"x": ("float16", (9,))}, {"y": Output("x", like="x", dtype="float16")}))
    for name, tensor, said in (
        ("z", wide, "no tensor 'z'. Available: x, total, y, total_next"),
        ("total", half.device_tensor("x"), r"total is float32\[2\], but float16\[9\]"),
        ("total", wide.part(0, 0), "for the same rows and sizes"),
        ("total_next", wide, r"what the state total becomes.*Next: attach total"),
    ):
        with pytest.raises(BackendError, match=said):
            session.attach(name, tensor)
    with pytest.raises(BackendError, match="not written in place"):
        other.attach("total", wide)


def test_runs_in_flight_do_not_overwrite_inputs_that_were_not_read(machine: Machine) -> None:
    session = machine.counting()
    array = np.zeros(2, np.float32)
    for value in (1, 2, 3, 4):
        array[:] = value  # the caller's own array, too, may be written on at once
        session.enqueue({"x": array})
    assert session.collect()["y"].tolist() == [8 + 6, 8 + 6]
    assert session.read_state("total").tolist() == [10, 10]


def test_there_is_nothing_to_collect_before_the_first_run(machine: Machine) -> None:
    with pytest.raises(BackendError, match="nothing was run yet"):
        machine.doubling().collect()


# Profiles.


def test_the_first_profile_that_holds_the_bounds_is_chosen(machine: Machine) -> None:
    path = machine.save(FREE, DOUBLING, TWO_PROFILES)
    with machine.open(path, bounds={"x": ((1, 16), (4, 4))}) as many, machine.open(path) as one:
        np.testing.assert_array_equal(many.run(floats(16, 4))["y"], 2 * floats(16, 4)["x"])
        assert one.device_tensor("x").shape == (1, 8)
        with pytest.raises(BackendError, match=r"does not take x of shape \[2, 4\]: Set dimensions .*Next: pad"):
            one.run(floats(2, 4))
        np.testing.assert_array_equal(one.run(floats(1, 4))["y"], 2 * floats(1, 4)["x"])


@pytest.mark.parametrize("bounds", [((1, 17), (4, 4)), ((0, 1), (4, 4)), ((1, 1),)])
def test_bounds_that_no_profile_holds_are_refused(machine: Machine, bounds: Any) -> None:
    path = machine.save(FREE, DOUBLING, TWO_PROFILES)
    with pytest.raises(BackendError, match=r"none of the 2 profiles .*Available: x \[1, 1\] to \[1, 8\], x \[1, 1\]"):
        machine.open(path, bounds={"x": bounds})
    assert machine.gpu.held() == {}


def test_fixed_sizes_hold_their_own_bounds_alone(machine: Machine) -> None:
    path = machine.save(FIXED, DOUBLING)
    machine.open(path, bounds={"x": ((2, 2), (3, 3))}).close()
    with pytest.raises(BackendError, match=r"none of the 1 profiles .* x \[2, 3\] to \[2, 3\]"):
        machine.open(path, bounds={"x": ((2, 2), (4, 4))})
    with pytest.raises(BackendError, match="bounds are given for z"):
        machine.open(path, bounds={"z": ((2, 2),)})


# What is given back.


def test_opening_that_fails_anywhere_gives_everything_back(machine: Machine) -> None:
    path = machine.save({**STATEFUL, "x": FREE["x"]}, COUNTING, ({"x": ((2, 1), (2, 1), (2, 1))},) * 2)
    options = {"states": (StatePair("total", "total_next", initial=1.0),), "bounds": {"x": ((2, 2), (1, 1))}}
    runtime, cuda = machine.runtime(), machine.cuda()
    before = machine.gpu.made
    machine.open(path, runtime=runtime, cuda=cuda, **options).close()
    assert machine.gpu.held() == {}
    count = machine.gpu.made - before
    for code, kind in ((2, DeviceMemoryError), (1, BackendError), (719, DeviceLostError)):
        for place in range(1, count + 1):
            machine.gpu.lost = 0
            machine.gpu.fail_at(place, code)
            caught: BackendError | None = None
            try:
                machine.open(path, runtime=runtime, cuda=cuda, **options).close()
            except BackendError as error:
                caught = error
            assert caught is None or type(caught) is kind, place
            freeing = machine.gpu.failed in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy")
            assert caught is not None or code == 719, "closing after a loss is quiet, anything else is told"
            if code != 719:
                assert sum(machine.gpu.held().values()) == freeing, f"what was to be freed alone is left: {place}"
            machine.gpu.forget()


def test_closing_gives_back_states_graphs_and_host_memory(machine: Machine) -> None:
    sessions = [machine.doubling(), machine.counting(), machine.counting(in_place=True)]
    for size in (1, 2, 8, 8):
        sessions[0].run(floats(size, size))
    for session in sessions[1:]:
        session.run(x(1, 2))
        session.read_state("total")
    assert {"device", "host", "streams", "executables"} <= machine.gpu.held().keys()
    for session in sessions:
        session.close()
        session.close()
    assert machine.gpu.held() == {}
    del session, sessions
    assert not machine.trt.behaviour.contexts


def test_one_thing_that_cannot_be_freed_keeps_nothing_else(machine: Machine) -> None:
    session = machine.counting()
    session.run(x(1, 2))
    machine.gpu.fail("cudaFree", 1)
    with pytest.raises(BackendError, match="cudaFree"):
        session.close()
    assert machine.gpu.held() == {"device": 1}


@pytest.mark.parametrize("code", [700, 719, 214])
def test_a_lost_device_is_told_at_once_and_closing_is_quiet(machine: Machine, code: int) -> None:
    session = machine.doubling()
    for _ in range(2):
        session.run(floats(2, 3))
    machine.gpu.fail("cudaGraphLaunch", code)
    with pytest.raises(DeviceLostError, match="replace the process"):
        session.run(floats(2, 3))
    assert machine.gpu.calls["cudaGraphLaunch"] == 1, "it is not tried again"
    with pytest.raises(DeviceLostError):
        session.run(floats(2, 3))
    session.close()
    session.close()


def test_a_device_lost_in_a_capture_is_no_refusal(machine: Machine) -> None:
    session = machine.doubling()
    session.run(floats(2, 3))
    machine.gpu.fail("cudaStreamEndCapture", 719)
    with pytest.raises(DeviceLostError):
        session.run(floats(2, 3))
    assert session.statistics().refusals == ()


# Errors by type.


def test_nothing_is_deserialised_before_its_digest_matched(machine: Machine) -> None:
    path = machine.save(FIXED, DOUBLING)
    with pytest.raises(BackendError, match=r"nobody vouches for it.*through its bundle"):
        machine.open(path, digest="")
    with pytest.raises(VerificationError, match="was changed, and is not opened"):
        machine.open(path, digest=hashlib.sha256(b"another").hexdigest())
    assert machine.trt.behaviour.deserialised == []
    assert machine.gpu.held() == {}


def test_a_plan_of_another_release_is_refused_with_what_tensorrt_said(machine: Machine) -> None:
    with pytest.raises(BackendError, match=r"engine\d\.plan: The engine plan file is of 8\.6, .*Next: build it for"):
        machine.open(machine.save(FIXED, DOUBLING, release="8.6"))


def test_a_context_that_is_refused_says_why(machine: Machine) -> None:
    path = machine.save(FIXED, DOUBLING)
    machine.trt.behaviour.context_refused = "Assertion mOptimizationProfile >= 0 failed"
    with pytest.raises(BackendError, match=r"mOptimizationProfile.*each profile one context") as plain:
        machine.open(path)
    assert type(plain.value) is BackendError
    machine.trt.behaviour.context_refused = "Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    with pytest.raises(DeviceMemoryError, match=r"no memory left \(Error Code 2"):
        machine.open(path)
    assert machine.gpu.held() == {}


def test_memory_that_is_short_and_runs_that_are_refused_have_their_types(machine: Machine) -> None:
    session = machine.doubling()
    machine.gpu.fail("cudaMalloc", 2)
    with pytest.raises(DeviceMemoryError):
        session.run(floats(2, 3))
    machine.trt.behaviour.run_refused = "Error Code 7: Internal Error"
    with pytest.raises(BackendError, match="TensorRT failed in a run: Error Code 7"):
        session.run(floats(2, 3))
    machine.trt.behaviour.run_refused = ""
    machine.trt.behaviour.address_refused = "y"
    with pytest.raises(BackendError, match="does not take the place of y: Given invalid address"):
        session.run(floats(2, 3))
    machine.trt.behaviour.address_refused = ""
    np.testing.assert_array_equal(session.run(floats(2, 3))["y"], 2 * floats(2, 3)["x"])


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.run(x(1, 2)),
        lambda session: session.enqueue(x(1, 2)),
        lambda session: session.collect(),
        lambda session: session.reset(),
        lambda session: session.read_state("total"),
        lambda session: session.write_state("total", np.zeros(2, np.float32)),
        lambda session: session.device_tensor("x"),
        lambda session: session.device_milliseconds(1),
        lambda session: session.follow(session),
        lambda session: session.attach("x", None),
    ],
)
def test_a_closed_session_holds_nothing_again(machine: Machine, use: Callable[[TensorRtSession], Any]) -> None:
    session = machine.counting(in_place=True)
    session.run(x(1, 2))
    session.close()
    with pytest.raises(BackendError, match="this session is closed"):
        use(session)
    assert machine.gpu.held() == {}


def test_a_session_on_the_second_gpu_stays_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path, devices=2)
    first, second = machine.counting(cuda=machine.cuda(0)), machine.counting(cuda=machine.cuda(1))
    for session, device in ((first, 0), (second, 1), (first, 0)):
        session.run(x(1, 2))
        assert machine.gpu.current == device
    second.read_state("total")
    assert machine.gpu.current == 1
    first.close()
    assert machine.gpu.current == 0


def test_importing_the_backend_needs_neither_tensorrt_nor_cuda() -> None:
    program = (
        "import sys\n"
        "for name in ('tensorrt', 'tensorrt_lean', 'cuda'): sys.modules[name] = None\n"
        "import aula.backends.tensorrt, aula.engine.plans\n"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={"PYTHONPATH": source, "PATH": ""}, check=False
    )
    assert finished.returncode == 0
