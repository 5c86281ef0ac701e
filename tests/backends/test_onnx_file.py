"""Damaged and foreign files, and operators that a runtime does not know."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from aula.backends.onnx_file import check_file, dimension_names, unknown_node
from aula.backends.session import available_backends, open_session
from aula.core.errors import BackendError
from tests.backends.graphs import dense, doubling, saved

every_backend = pytest.mark.parametrize("backend", available_backends())

FOREIGN = {
    "text": b"this is no graph",
    "zip": b"PK\x03\x04" + bytes(300),
    "random": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(100),
    "no graph": b"\x08\x0a",
}


@every_backend
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_called_foreign(
    backend: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(BackendError, match=rf"{backend} cannot load model\.onnx: this is no ONNX file"):
        open_session(backend, path)
    assert capfd.readouterr() == ("", "")


@every_backend
def test_an_empty_file_and_a_truncated_one_say_so(backend: str, tmp_path: Path) -> None:
    path = dense(tmp_path / "model.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(BackendError, match=r"cannot load model\.onnx: the file is cut short: \d+ bytes are missing"):
        open_session(backend, path)
    path.write_bytes(b"")
    with pytest.raises(BackendError, match="the file is empty"):
        open_session(backend, path)


@every_backend
@pytest.mark.parametrize(("domain", "named"), [("com.acme", "com.acme::Foo"), ("", "Foo")])
def test_an_unknown_operator_is_named_with_its_node(backend: str, domain: str, named: str, tmp_path: Path) -> None:
    nodes = (
        helper.make_node("Relu", ["x"], ["middle"], name="first"),
        helper.make_node("Foo", ["middle"], ["y"], name="odd_one", domain=domain),
    )
    path = saved(tmp_path / "Relu.onnx", *nodes, shape=(1, "n"), domain=domain)
    with pytest.raises(BackendError, match=rf"has no operator {named}, which node 'odd_one' uses"):
        open_session(backend, path)


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx", helper.make_node("Foo", ["x"], ["y"]), shape=(1,))
    node = unknown_node(path, "No Op registered for Foo with domain_version of 17")
    assert node is not None
    assert (node.name, str(node)) == ("y", "Foo")
    assert unknown_node(path, "Foo has no memory") is None


@every_backend
def test_a_graph_that_does_not_hang_together_gives_the_runtime_s_reason(backend: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx", helper.make_node("Relu", ["lost"], ["y"], name="r"), shape=(1,))
    with pytest.raises(BackendError, match=r"cannot load model\.onnx: \S.*lost") as caught:
        open_session(backend, path)
    assert "Exception from" not in caught.value.what
    assert "[ONNXRuntimeError]" not in caught.value.what


def test_names_of_sizes_are_read_from_the_file(tmp_path: Path) -> None:
    assert dimension_names(doubling(tmp_path / "model.onnx", "batch", 3, "width")) == {"x": ("batch", "", "width")}


@given(data=st.data())
def test_no_damage_makes_anything_but_a_typed_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = dense(tmp_path_factory.getbasetemp() / "fuzzed.onnx")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    with contextlib.suppress(BackendError):
        check_file(path, "any backend")
    dimension_names(path)
    unknown_node(path, "No Op registered for Foo with domain_version of 17")
