"""What goes in is not copied, and what comes out stays as it is."""

import importlib
import mmap
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.pages import give_back, trim_heap
from aula.backends.session import Session, SessionOptions, available_backends, open_session
from aula.core.errors import BackendError
from aula.serving.memory import resident_bytes
from tests.backends.graphs import doubling, passing

WIDTH = 1000

sessions = pytest.mark.parametrize(
    ("backend", "batch"), [(backend, batch) for backend in available_backends() for batch in (2, "batch")]
)


def _opened(backend: str, batch: int | str, folder: Path) -> Session:
    return open_session(backend, doubling(folder / "model.onnx", batch, WIDTH))


def _unaligned(values: NDArray[Any]) -> NDArray[Any]:
    raw = np.empty(values.nbytes + 1, dtype=np.uint8)
    array = raw[1:].view(values.dtype).reshape(values.shape)
    array[:] = values
    assert not array.flags.aligned
    return array


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    array = values.copy()
    array.flags.writeable = False
    return array


@sessions
def test_an_output_outlives_the_next_run_and_the_session(backend: str, batch: int | str, tmp_path: Path) -> None:
    session = _opened(backend, batch, tmp_path)
    kept = [session.run({"x": np.full((2, WIDTH), n, np.float32)})["y"] for n in range(4)]
    session.close()
    assert [(array.min(), array.max()) for array in kept] == [(2 * n, 2 * n) for n in range(4)]
    kept[0][:] = -1  # and it is the caller's own, to write on
    assert kept[1].max() == 2


@pytest.mark.parametrize("backend", available_backends())
def test_outputs_that_nothing_computes_share_no_memory(backend: str, tmp_path: Path) -> None:
    x = np.arange(3, dtype=np.float32)
    with open_session(backend, passing(tmp_path / "model.onnx")) as session:
        produced = session.run({"x": x})
        arrays = [x, *produced.values()]
        for array in arrays:
            array[:] = 9
        assert not any(np.shares_memory(one, other) for one in arrays for other in arrays if one is not other)
        assert session.run({"x": x})["constant"].tolist() == [1, 1, 1]


@sessions
@pytest.mark.parametrize("arrange", [_unaligned, _read_only, np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2]])
def test_every_arrangement_in_memory_is_read_rightly(
    backend: str, batch: int | str, arrange: Any, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).standard_normal((2, WIDTH), dtype=np.float32)
    given = arrange(values)
    with _opened(backend, batch, tmp_path) as session:
        assert (session.run({"x": given})["y"] == values + values).all()
    assert (given == values).all()


@pytest.mark.skipif("openvino" not in available_backends(), reason="openvino is not installed")
@pytest.mark.parametrize("arrange", [np.copy, _unaligned])
def test_openvino_computes_on_the_caller_s_own_arrays(arrange: Any, tmp_path: Path) -> None:
    from aula.backends.openvino import OpenVinoSession

    given = arrange(np.ones((2, WIDTH), dtype=np.float32))
    with OpenVinoSession(doubling(tmp_path / "model.onnx", 2, WIDTH), SessionOptions()) as session:
        produced = session.run({"x": given})["y"]
        request = session._request
        assert request.get_input_tensor(0).data.ctypes.data == given.ctypes.data
        assert request.get_output_tensor(0).data.ctypes.data == produced.ctypes.data


@pytest.mark.parametrize("backend", available_backends())
def test_an_array_that_stays_and_changes_is_read_anew(backend: str, tmp_path: Path) -> None:
    path = doubling(tmp_path / "model.onnx", "rows", 3)
    array = np.zeros((2, 3), np.float32)
    with open_session(backend, path, SessionOptions(threads=1)) as session:
        (name,) = (spec.name for spec in session.inputs)
        for value in range(4):
            array[:] = value
            (made,) = session.run({name: array}).values()
            np.testing.assert_array_equal(made, 2 * array)
        frozen = array.copy()
        frozen.flags.writeable = False
        other = np.ones((5, 3), np.float32)[::2]
        for given in (frozen, other, frozen, array):
            (made,) = session.run({name: given}).values()
            np.testing.assert_array_equal(made, 2 * given)
        array.shape = (3, 2)
        with pytest.raises(BackendError):
            session.run({name: array})


@sessions
def test_what_is_borrowed_is_right_until_the_next_run(backend: str, batch: int | str, tmp_path: Path) -> None:
    with _opened(backend, batch, tmp_path) as session:
        for n in range(4):
            y = session.borrow({"x": np.full((2, WIDTH), n, np.float32)})["y"]
            assert (y.min(), y.max()) == (2 * n, 2 * n)
        kept = session.run({"x": np.full((2, WIDTH), 7, np.float32)})["y"]
        session.borrow({"x": np.full((2, WIDTH), 8, np.float32)})
        assert kept.max() == 14, "what was run before is the caller's own"


def test_a_large_output_that_is_borrowed_is_not_copied(tmp_path: Path) -> None:
    with _opened("openvino", "batch", tmp_path) as session:
        first, second = (session.borrow({"x": np.full((2, WIDTH), n, np.float32)})["y"] for n in range(2))
        assert np.shares_memory(first, second)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what of a file is in memory")
@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_mapped_weights_are_given_back_and_come_again(tmp_path: Path, access: int) -> None:
    side = tmp_path / "model.onnx.data"
    content = np.random.default_rng(1).bytes(1 << 20)
    side.write_bytes(content)
    with side.open("rb") as file, mmap.mmap(file.fileno(), 0, access=access) as mapped:
        assert mapped[:] == content
        assert _resident(side) == 1024
        give_back(tmp_path / "model.onnx", tmp_path / "no-runtime")
        # A mapping that may be written on is somebody else's business.
        assert _resident(side) == (0 if access == mmap.ACCESS_READ else 1024)
        assert mapped[:] == content


def _resident(path: Path) -> int:
    """KiB of a mapped file that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
    return int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what of a file is in memory")
@pytest.mark.parametrize("backend", [name for name in available_backends() if name in ("openvino", "onnxruntime")])
def test_code_that_only_loading_needed_is_given_back(backend: str, tmp_path: Path) -> None:
    runtime = str(Path(importlib.import_module(backend).__file__ or "").parent)

    def code() -> int:
        """KiB of the runtime's that are in this process's memory."""
        held, counts = 0, False
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
            span, *words = line.split()
            if "-" in span:
                counts = words[0].startswith("r-x") and runtime in line
            held += int(words[0]) if counts and span == "Rss:" else 0
        return held

    with _opened(backend, "batch", tmp_path) as session:
        x = {"x": np.full((2, WIDTH), 3, np.float32)}
        session.run(x)
        loaded = code()
        session.settle()
        session.run(x)
        assert 0 < code() < loaded / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the C library of GNU is asked to give back")
def test_what_was_freed_below_what_stays_goes_back_to_the_system() -> None:
    blocks = [bytes(100_000) for _ in range(300)]
    stays = blocks[-1]
    blocks.clear()
    freed = resident_bytes()
    trim_heap()
    assert freed - resident_bytes() > 20_000_000
    assert len(stays) == 100_000


@pytest.mark.parametrize("backend", available_backends())
def test_a_session_that_settled_computes_what_it_did(backend: str, tmp_path: Path) -> None:
    with _opened(backend, "batch", tmp_path) as session:
        x = {"x": np.full((2, WIDTH), 3, np.float32)}
        wanted = session.run(x)["y"]
        session.settle()
        session.settle()
        np.testing.assert_array_equal(session.run(x)["y"], wanted)
