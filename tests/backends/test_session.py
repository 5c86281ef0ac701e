from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import BACKENDS, Session, SessionOptions, StatePair, available_backends, open_session
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class Accumulator(Session):
    """total' = total + x, as a session with one state."""

    def __init__(self, options: SessionOptions) -> None:
        inputs = [TensorSpec("x", "float32", ("n",)), TensorSpec("total", "float32", (1,))]
        outputs = [TensorSpec("y", "float32", (1,)), TensorSpec("total_next", "float32", (1,))]
        super().__init__(inputs, outputs, options)

    def _run(self, tensors: Any) -> dict[str, NDArray[Any]]:
        total = tensors["total"] + tensors["x"].sum(keepdims=True)
        return {"y": total, "total_next": total}


def _accumulator() -> Accumulator:
    return Accumulator(SessionOptions(states=(StatePair("total", "total_next"),)))


def _x(*values: float) -> dict[str, NDArray[Any]]:
    return {"x": np.array(values, dtype=np.float32)}


def test_state_stays_with_the_session_until_reset() -> None:
    session = _accumulator()
    assert [spec.name for spec in session.inputs] == ["x"]
    assert session.run(_x(1, 2))["y"] == 3
    assert session.run(_x(4))["y"] == 7
    session.reset()
    assert session.run(_x(4))["y"] == 4


@pytest.mark.parametrize(
    "tensors",
    [{}, {"z": np.zeros(1, np.float32)}, {"x": np.zeros(1, np.float64)}, {"x": np.zeros((1, 1), np.float32)}],
)
def test_wrong_tensors_are_refused_before_the_runtime_sees_them(tensors: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(BackendError, match=r"takes|x"):
        _accumulator().run(tensors)


def test_a_closed_session_says_so_and_closing_twice_is_lawful() -> None:
    session = _accumulator()
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run(_x(1))


def test_a_state_the_graph_does_not_have_is_named() -> None:
    with pytest.raises(BackendError, match="no tensor memory"):
        Accumulator(SessionOptions(states=(StatePair("memory", "total_next"),)))


def test_unknown_backend_and_missing_file_and_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no backend 'cuda'") as caught:
        open_session("cuda", tmp_path / "model.onnx")
    assert caught.value.available == tuple(sorted(BACKENDS))
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"this is no graph")
    for backend in available_backends():
        with pytest.raises(BackendError, match="no engine file"):
            open_session(backend, tmp_path / "absent.onnx")
        with pytest.raises(BackendError, match=r"cannot load foreign\.onnx"):
            open_session(backend, foreign)
