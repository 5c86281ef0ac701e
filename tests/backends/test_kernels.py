"""Programs of our own kernels: the file, the session on a fake GPU, and the compilers."""

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends import kernels
from aula.backends.cuda import Cuda
from aula.backends.kernel_program import At, Compiled, Launch, Program, check_program, load_program, save_program
from aula.backends.kernel_session import KernelSession
from aula.backends.kernels import compile_kernels, compiler_here
from aula.backends.session import BACKENDS, SessionOptions, StatePair, open_session
from aula.core.errors import BackendError, DeviceLostError
from aula.core.types import TensorSpec
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver, Memory

SCALE = np.array([2.0, 3.0], np.float32)
BIG = 100 << 10


def _scale(memory: Memory, _numbers: Sequence[str], values: tuple[int, ...], _grid: Any) -> None:
    scale, x, made, shift = values
    memory(made, "f4", 2)[...] = memory(scale, "f4", 2) * memory(x, "f4", 2) + shift


def _total(memory: Memory, _numbers: Sequence[str], values: tuple[int, ...], _grid: Any) -> None:
    assert values[2] == 0, "no place is a null pointer"
    memory(values[1], "f4", 2)[...] += memory(values[0], "f4", 2)


PROGRAM = Program(
    source="SCALE(scale, 2)\nTOTAL(total, 2)\n",
    inputs=(TensorSpec("x", "float32", (2,)), TensorSpec("sum", "float32", (2,))),
    outputs=(TensorSpec("y", "float32", (2,)), TensorSpec("sum.next", "float32", (2,))),
    scratch={"between": 24},
    launches=(
        Launch("scale", (1, 1, 1), 32, (At("scale"), At("x"), At("between", 16), 0)),
        Launch("total", (1, 1, 1), 32, (At("between", 16), At("sum"), None), BIG),
        Launch("scale", (1, 1, 1), 32, (At("scale"), At("between", 16), At("y"), 1)),
    ),
    products={"fp16": 2},
    weights={"scale": SCALE},
)
STATE = (StatePair("sum", "sum.next", in_place=True),)


class Machine:
    def __init__(self, folder: Path, capability: tuple[int, int] = (9, 0)) -> None:
        self.folder = folder
        self.gpu = FakeCuda()
        self.gpu.capability = capability
        self.driver = FakeDriver(self.gpu, {"SCALE": _scale, "TOTAL": _total})

    def save(self, program: Program = PROGRAM, capability: str = "9.0") -> Path:
        path = self.folder / "toy.kernels"
        save_program(Compiled(program, program.source.encode(), capability), path)
        return path

    def open(self, path: Path | None = None, **options: Any) -> KernelSession:
        path = path or self.save()
        options.setdefault("digest", _digest(path))
        options.setdefault("states", STATE)
        return KernelSession(path, SessionOptions(**options), cuda=Cuda(self.gpu), driver=self.driver)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def x(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


# The session.


def test_launches_run_in_order_on_memory_by_name(machine: Machine) -> None:
    session = machine.open()
    session.reset()
    made = [session.run(x(1, 10))["y"].tolist() for _ in range(4)]
    assert made == [[5, 91]] * 4
    assert session.read_state("sum").tolist() == [8, 120]
    assert session.statistics().captured == 1, "the third run and those after it are replayed"
    assert session.precisions() == {"fp16": 2}
    assert [layer["Name"] for layer in session.layers()] == ["scale", "total", "scale"]
    session.close()
    assert machine.gpu.held() == {}
    assert machine.driver.modules == {}


@pytest.mark.parametrize(("capability", "early"), [((8, 9), False), ((9, 0), True), ((10, 0), True)])
def test_kernels_begin_early_where_a_gpu_can(tmp_path: Path, capability: tuple[int, int], early: bool) -> None:
    machine = Machine(tmp_path, capability)
    with machine.open(machine.save(capability=".".join(map(str, capability)))) as session:
        session.run(x(1, 1))
    assert machine.driver.launches == [("scale", False), ("total", early), ("scale", early)]


def test_a_program_may_forbid_it(machine: Machine) -> None:
    with machine.open(machine.save(replace(PROGRAM, early=False))) as session:
        session.run(x(1, 1))
    assert not any(early for _, early in machine.driver.launches)


def test_much_shared_memory_is_asked_for_first(machine: Machine) -> None:
    with machine.open() as session:
        session.run(x(1, 1))
    assert machine.driver.shared == {"total": BIG}


def test_another_gpu_is_refused_by_both_names(tmp_path: Path) -> None:
    machine = Machine(tmp_path, (7, 5))
    with pytest.raises(BackendError, match=r"9\.0, this GPU has 7\.5"):
        machine.open()
    assert machine.gpu.held() == {}


def test_other_sizes_are_refused(machine: Machine) -> None:
    with machine.open() as session, pytest.raises(BackendError, match="x"):
        session.run({"x": np.zeros(3, np.float32)})


@pytest.mark.parametrize("code", [209, 2])
def test_kernels_that_cannot_be_loaded_leave_nothing_behind(machine: Machine, code: int) -> None:
    machine.driver.fail["cuModuleLoadData"] = code
    with pytest.raises(BackendError):
        machine.open()
    assert machine.gpu.held() == {}


def test_a_lost_device_is_told_as_such(machine: Machine) -> None:
    session = machine.open()
    machine.driver.fail["cuLaunchKernelEx"] = 719
    with pytest.raises(DeviceLostError):
        session.run(x(1, 1))
    session.close()


def test_it_is_opened_by_its_backends_name(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BACKENDS["kernels"].suffix == ".kernels"
    path = machine.save()
    seen: list[Path] = []
    monkeypatch.setattr("aula.backends.session._is_here", lambda _name: True)
    monkeypatch.setattr("aula.backends.kernel_session.KernelSession", lambda model, _options: seen.append(model))
    open_session("kernels", path, SessionOptions(digest=_digest(path)))
    assert seen == [path]


# The file.


def test_a_program_comes_back_as_it_was(machine: Machine) -> None:
    path = machine.save()
    found = load_program(path, _digest(path))
    assert found.capability == "9.0"
    assert found.image == PROGRAM.source.encode()
    assert replace(found.program, weights={}) == replace(PROGRAM, weights={})
    np.testing.assert_array_equal(found.program.weights["scale"], SCALE)


def test_only_what_somebody_vouches_for_is_opened(machine: Machine) -> None:
    path = machine.save()
    with pytest.raises(BackendError, match="nobody vouches"):
        load_program(path, "")
    digest = _digest(path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BackendError, match="not what its manifest vouches for"):
        load_program(path, digest)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"not safetensors at all"])
def test_a_damaged_file_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "toy.kernels"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="no program of kernels"):
        load_program(path, _digest(path))
    with pytest.raises(BackendError, match="cannot be read"):
        load_program(tmp_path / "absent.kernels", "0" * 64)


def test_memory_that_there_is_not_is_found_before_anything_is_saved() -> None:
    wrong = Launch("scale", (1, 1, 1), 32, (At("nowhere"),))
    with pytest.raises(BackendError, match="'nowhere'"):
        check_program(replace(PROGRAM, launches=(wrong,)))
    beyond = Launch("scale", (1, 1, 1), 32, (At("scale", 8),))
    with pytest.raises(BackendError, match="begins 8 bytes into scale"):
        check_program(replace(PROGRAM, launches=(beyond,)))


# Compilers.


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert compiler_here() == ""
    with pytest.raises(BackendError, match="no compiler"):
        compile_kernels("", "9.0")


def _stand_in(folder: Path, script: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_nvcc_compiles_where_nvrtc_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "a = sys.argv; open(a[a.index('-o') + 1], 'w').write(' '.join(a[1:4]) + open(a[-1]).read())"
    path = _stand_in(tmp_path, script)
    monkeypatch.setattr(kernels, "_nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _name: path)
    assert compiler_here() == "nvcc"
    assert compile_kernels("text", "7.5") == b"-cubin -arch=sm_75 -std=c++17text"


def test_what_a_compiler_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _stand_in(tmp_path, "sys.exit('k.cu(3): warning: odd\\nk.cu(4): error: no such thing')")
    monkeypatch.setattr(kernels, "_nvrtc", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _name: path)
    with pytest.raises(BackendError, match=r"kernels for sm_90 do not compile: k.cu\(4\): error: no such thing"):
        compile_kernels("text", "9.0")


class FakeNvrtc:
    """NVRTC that takes everything but what says so."""

    def __init__(self) -> None:
        self.open: dict[int, str] = {}

    def nvrtcCreateProgram(self, text: bytes, *_: Any) -> Any:  # noqa: N802
        self.open[1] = text.decode()
        return 0, 1

    def nvrtcCompileProgram(self, program: int, count: int, options: list[bytes]) -> Any:  # noqa: N802
        assert count == len(options)
        self.options = options
        return (6 if "wrong" in self.open[program] else 0,)

    def nvrtcGetProgramLogSize(self, _program: int) -> Any:  # noqa: N802
        return 0, 40

    def nvrtcGetProgramLog(self, _program: int, said: bytes) -> Any:  # noqa: N802
        assert len(said) == 40
        return (0,)

    def nvrtcGetCUBINSize(self, program: int) -> Any:  # noqa: N802
        return (7, None) if "broken" in self.open[program] else (0, 3)

    def nvrtcGetCUBIN(self, _program: int, image: bytes) -> Any:  # noqa: N802
        assert len(image) == 3
        return (0,)

    def nvrtcDestroyProgram(self, program: int) -> Any:  # noqa: N802
        del self.open[program]
        return (0,)


def test_nvrtc_gives_its_program_back_whatever_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = FakeNvrtc()
    monkeypatch.setattr(kernels, "_nvrtc", lambda: nvrtc)
    assert compiler_here() == "nvrtc"
    assert compile_kernels("right", "8.9") == b"   "
    assert b"--gpu-architecture=sm_89" in nvrtc.options
    with pytest.raises(BackendError, match="do not compile"):
        compile_kernels("wrong", "8.9")
    with pytest.raises(BackendError, match="error 7 in nvrtcGetCUBINSize"):
        compile_kernels("broken", "8.9")
    assert nvrtc.open == {}
