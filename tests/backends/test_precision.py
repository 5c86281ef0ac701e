"""The arithmetic a session may use."""

from pathlib import Path

import numpy as np
import pytest

from aula.backends.session import PRECISIONS, SessionOptions, available_backends, open_session
from aula.core.errors import BackendError
from tests.backends.graphs import dense

needs_openvino = pytest.mark.skipif("openvino" not in available_backends(), reason="openvino is not installed")


def test_an_unknown_precision_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    for backend in available_backends():
        with pytest.raises(BackendError, match="no precision 'fp4'") as caught:
            open_session(backend, dense(tmp_path / "model.onnx"), SessionOptions(precision="fp4"))
        assert caught.value.available == PRECISIONS


@pytest.mark.skipif("onnxruntime" not in available_backends(), reason="onnxruntime is not installed")
def test_onnx_runtime_has_no_bf16_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime computes no bf16"):
        open_session("onnxruntime", dense(tmp_path / "model.onnx"), SessionOptions(precision="bf16"))


@needs_openvino
def test_openvino_tells_what_it_truly_runs(tmp_path: Path) -> None:
    import openvino

    model, x = dense(tmp_path / "model.onnx"), np.ones((2, 64), dtype=np.float32)
    with open_session("openvino", model) as session:
        assert session.precisions() == {"fp32": 1}
        exact = session.run({"x": x})["y"]
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendError, match="no bf16 arithmetic"):
            open_session("openvino", model, SessionOptions(precision="bf16"))
        return
    with open_session("openvino", model, SessionOptions(precision="bf16")) as session:
        assert session.precisions() == {"bf16": 1}
        rounded = session.run({"x": x})["y"]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@needs_openvino
def test_options_reach_openvino(tmp_path: Path) -> None:
    from aula.backends.openvino import OpenVinoSession

    options = SessionOptions(threads=1, dynamic_quantisation=64)
    with OpenVinoSession(dense(tmp_path / "model.onnx"), options) as session:
        told = session._compiled.get_property
        assert told("INFERENCE_NUM_THREADS") == 1
        assert int(told("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 64
