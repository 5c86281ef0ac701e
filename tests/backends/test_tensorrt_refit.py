"""Plans that come without weights: filled from an ONNX file when they are opened, all or nothing."""

from pathlib import Path
from typing import Any

import pytest

from aula.core.errors import BackendError
from tests.backends.gpu_engines import DOUBLING, FREE, Machine

PROFILES = ({"x": ((1, 1), (2, 4), (8, 8))},)


class Filling:
    """TensorRT 10's Refitter and OnnxParserRefitter, and what was done with them."""

    def __init__(self, trt: Any) -> None:
        self.done: list[str] = []
        self.missing: list[str] = []
        self.reads = self.fits = True
        filling = self

        class Refitter:
            def __init__(self, engine: Any, logger: Any) -> None:
                assert engine is not None
                filling.done.append("refitter")

            def get_missing_weights(self) -> list[str]:
                return filling.missing

            def refit_cuda_engine(self) -> bool:
                filling.done.append("refitted")
                return filling.fits

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, logger: Any) -> None:
                pass

            def refit_from_file(self, path: str) -> bool:
                assert Path(path).is_file()
                filling.done.append(f"read {Path(path).name}")
                return filling.reads

        trt.Refitter, trt.OnnxParserRefitter = Refitter, OnnxParserRefitter


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"weights")
    return path


def test_weights_are_filled_in_before_anything_runs(machine: Machine, weights: Path) -> None:
    filling = Filling(machine.trt)
    with machine.open(machine.save(FREE, DOUBLING, PROFILES), weights=weights):
        assert filling.done == ["refitter", "read weights.onnx", "refitted"]


def test_an_engine_with_its_own_weights_is_left_alone(machine: Machine) -> None:
    filling = Filling(machine.trt)
    with machine.doubling():
        assert filling.done == []


def test_a_graph_that_lacks_weights_is_refused_by_name(machine: Machine, weights: Path) -> None:
    filling = Filling(machine.trt)
    filling.missing = ["encoder.kernel", "encoder.bias"]
    with pytest.raises(BackendError, match=r"2 are missing, encoder\.kernel the first"):
        machine.open(machine.save(FREE, DOUBLING, PROFILES), weights=weights)
    assert "refitted" not in filling.done
    assert machine.gpu.held() == {}


@pytest.mark.parametrize("step", ["reads", "fits"])
def test_a_refusal_leaves_nothing_open(machine: Machine, weights: Path, step: str) -> None:
    filling = Filling(machine.trt)
    setattr(filling, step, False)
    with pytest.raises(BackendError, match="does not take the weights"):
        machine.open(machine.save(FREE, DOUBLING, PROFILES), weights=weights)
    assert machine.gpu.held() == {}


def test_tensorrt_8_says_what_to_install(tmp_path: Path, weights: Path) -> None:
    machine = Machine(tmp_path, "8.6")
    with pytest.raises(BackendError, match="cannot fill in") as refusal:
        machine.open(machine.save(FREE, DOUBLING, PROFILES), weights=weights)
    assert "TensorRT 10" in refusal.value.next_step
