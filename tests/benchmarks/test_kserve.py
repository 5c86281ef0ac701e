"""The benchmark's requests are lawful, and its lean clients hear what comes back."""

import numpy as np
import pytest

from aula.core.types import TensorSpec
from aula.runtime import EngineInfo
from benchmarks.kserve import asking, asking_grpc
from benchmarks.kserve.engines import DEPTH
from benchmarks.kserve.requests import grpc_request, http_request
from benchmarks.kserve.running import Ran, ran
from tests.servers.kserve.serving import Arrays, serving, toy_rung

SPECS = [TensorSpec(name, "float32", ("rows", DEPTH)) for name in ("x", "y")]
ENGINE = EngineInfo("engine", "1", "toy", (SPECS[0],), (SPECS[1],), 16)


def test_both_clients_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def halves(tensors: Arrays) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        seen.append(tensors["x"].shape)
        return {"y": tensors["x"].copy()}

    monkeypatch.setattr(asking, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(asking_grpc, "WARM_SECONDS", 0.0)
    with serving(rungs=[toy_rung(ENGINE, halves)]) as doors:
        port = int(doors.http.partition(":")[2])
        told = asking.ask(port, 4, 0.2, http_request())
        assert told["all"] >= 4
        over_grpc = asking_grpc.ask(int(doors.grpc.partition(":")[2]), 0.2, grpc_request())
        assert over_grpc["p99_ms"] >= over_grpc["p50_ms"] > 0
        assert 0 < ran(port).busy_since(Ran(0.0, 0.0, 0, 0)) < 1
        assert doors.call(doors.house.runtime.statistics).failed == 0
    assert {shape[1] for shape in seen} == {DEPTH}


def test_a_fault_ends_the_measurement() -> None:
    with serving() as doors, pytest.raises(RuntimeError, match="404"):
        asking.ask(int(doors.http.partition(":")[2]), 1, 0.2, http_request())


def test_a_run_that_four_share_counts_once() -> None:
    before, after = Ran(10.0, 1.0, 100, 50), Ran(12.0, 5.0, 140, 60)
    assert after.busy_since(before) == pytest.approx(4.0 * 10 / 40 / 2.0)
    assert after.run_ms_since(before) == pytest.approx(100.0)
