"""The CUDA code of Whisper's reader, thread by thread on a processor, beside its arithmetic in numpy.

Threads and blocks run in an order that is drawn anew each time, over memory with guards around it: what is wrong in a
kernel's sizes, places or barriers is seen without a GPU. What only a GPU has, early beginnings and tensor cores, is for
`python -m tests.gpu.kernels` to say, whose every line is run here.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aula.backends.cuda import Cuda
from aula.backends.kernel_program import Program
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver, Kernel, Memory
from tests.gpu.kernel_bits import same_bits
from tests.gpu.kernels import Told, compare, programs
from tests.models.decoder_kernels import KERNELS
from tests.models.emulated_kernels import emulated, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "emulated")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Program, Any]]:
    folder = tmp_path_factory.mktemp("programs")
    return {what: (program, given) for what, program, given in programs("small", folder, "9.0")}


def _compared(program: Program, given: Any, folder: Path, source: str = "") -> dict[str, Told]:
    gpu = FakeCuda()
    gpu.capability = (9, 0)
    driver = FakeDriver(gpu, emulated(source or program.source, folder))
    told = compare(program, given, program.source.encode(), Cuda(gpu), driver, turns=1)
    assert gpu.held() == {}
    return {one.kernel: one for one in told}


@pytest.mark.parametrize(
    "what",
    [
        *(pytest.param(one, marks=pytest.mark.thorough) for one in ("step at 95", "read at 32")),
        "rows at 32",
        "read at 95",
    ],
)
def test_every_kernel_computes_what_its_arithmetic_says(
    what: str, known: dict[str, tuple[Program, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = _compared(*known[f"small {what}"], tmp_path)
    assert [one.line() for one in told.values() if one.wrong] == []
    assert max(one.worst for one in told.values()) < 2e-3
    assert "runtime error" not in capfd.readouterr().err, "of shared memory, or an address that is not aligned"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("right", "wrong", "kernel"),
    [
        ("(long long)row * APART * 2 * HEADS", "(long long)row * 2 * HEADS", "qkv"),
        ("CAUSAL && key > first + c", "false", "attend_self"),
        (": lengths[row];", ": lengths[0];", "attend_cross"),
        ("text[row * SLOTS + behind] = token", "text[row * SLOTS + behind + SLOTS] = token", "reply"),
        ("logits[first + c] =", "logits[first + c + OUT] =", "head"),
    ],
)
def test_a_kernel_that_errs_is_named(
    right: str, wrong: str, kernel: str, known: dict[str, tuple[Program, Any]], tmp_path: Path
) -> None:
    program, given = known["small read at 32" if kernel == "attend_self" else "small rows at 32"]
    assert right in program.source
    told = _compared(program, given, tmp_path, program.source.replace(right, wrong))
    assert {name for name, one in told.items() if one.wrong} == {kernel}


@pytest.mark.thorough
def test_neither_neighbours_nor_pieces_change_a_bit(tmp_path: Path) -> None:
    gpu = FakeCuda()
    gpu.capability = (9, 0)
    compiled: list[Mapping[str, Kernel]] = []

    def compiler(source: str, _capability: str) -> bytes:
        folder = tmp_path / str(len(compiled))
        folder.mkdir()
        compiled.append(emulated(source, folder))
        return source.encode()

    def of_any(macro: str) -> Kernel:
        def run(memory: Memory, numbers: list[str], values: tuple[int, ...], grid: tuple[int, int, int]) -> None:
            for kernels in compiled:
                with contextlib.suppress(KeyError):  # these numbers are another program's
                    kernels[macro](memory, numbers, values, grid)
                    return
            raise AssertionError(f"{macro} of {numbers} was not compiled")

        return run

    driver = FakeDriver(gpu, {macro: of_any(macro) for macro in KERNELS})
    assert same_bits("small", tmp_path, Cuda(gpu), driver, compiler) == []
