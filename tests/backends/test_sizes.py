"""Bounds and names of sizes, the same on every backend."""

from pathlib import Path

import numpy as np
import pytest

from aula.backends.session import SessionOptions, StatePair, available_backends, open_session
from aula.core.errors import BackendError
from tests.backends.graphs import counting, doubling

every_backend = pytest.mark.parametrize("backend", available_backends())


def _ones(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(shape, dtype=np.float32)}


@every_backend
def test_free_sizes_keep_their_names(backend: str, tmp_path: Path) -> None:
    with open_session(backend, doubling(tmp_path / "model.onnx", "batch", 3, "width")) as session:
        assert [spec.shape for spec in session.inputs] == [("batch", 3, "width")]


@every_backend
def test_equal_bounds_fix_an_axis_and_others_limit_it(backend: str, tmp_path: Path) -> None:
    model = doubling(tmp_path / "model.onnx", "batch", "length")
    options = SessionOptions(bounds={"x": ((1, 1), (2, 4))})
    with open_session(backend, model, options) as session:
        assert [spec.shape for spec in session.inputs] == [(1, "length")]
        for length in (2, 4, 3):
            assert (session.run(_ones(1, length))["y"] == np.full((1, length), 2)).all()


@every_backend
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3), r"axis 0 \(batch\) of input x has size 2, but this session serves 1\."),
        ((1, 5), r"axis 1 \(length\) of input x has size 5, but this session serves 2 to 4\."),
        ((1, 1), r"axis 1 \(length\) of input x has size 1, but this session serves 2 to 4\."),
        ((1,), r"float32\[1\] but the engine takes"),
    ],
)
def test_a_size_outside_the_bounds_is_named(backend: str, shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    model = doubling(tmp_path / "model.onnx", "batch", "length")
    session = open_session(backend, model, SessionOptions(bounds={"x": ((1, 1), (2, 4))}))
    with session, pytest.raises(BackendError, match=said):
        session.run(_ones(*shape))


@every_backend
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"z": ((1, 1),)}, r"bounds are given for z, which the graph does not take\. Available: x"),
        ({"x": ((1, 1),)}, r"for 1 axes of input x, which has \['batch', 3\]"),
        ({"x": ((4, 2), (3, 3))}, r"axis 0 \(batch\) of input x cannot have sizes from 4 to 2\."),
        ({"x": ((1, 2), (4, 5))}, r"axis 1 of input x cannot have sizes from 4 to 5, and the graph fixes it at 3"),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    backend: str, bounds: dict[str, tuple[tuple[int, int], ...]], said: str, tmp_path: Path
) -> None:
    model = doubling(tmp_path / "model.onnx", "batch", 3)
    with pytest.raises(BackendError, match=said):
        open_session(backend, model, SessionOptions(bounds=bounds))


@every_backend
def test_a_state_of_free_size_takes_the_size_given_for_it(backend: str, tmp_path: Path) -> None:
    options = SessionOptions(
        states=(StatePair("total", "total_next"),), state_shapes={"total": (2,)}, bounds={"x": ((2, 2),)}
    )
    with open_session(backend, counting(tmp_path / "model.onnx"), options) as session:
        answers = [session.run(_ones(2))["y"] for _ in range(4)]
        assert [answer.tolist() for answer in answers] == [[1, 1], [2, 2], [3, 3], [4, 4]]
        session.reset()
        assert session.run(_ones(2))["y"].tolist() == [1, 1]
