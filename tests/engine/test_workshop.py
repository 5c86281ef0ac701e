"""The machine that plans are made on: which of its GPUs, what is said where there is none, and earlier timings."""

from pathlib import Path
from typing import Any

import pytest

from aula.backends import cuda, tensorrt_runtime
from aula.backends.cuda import Cuda
from aula.backends.tensorrt_runtime import Runtime
from aula.core.errors import BackendError, StorageError
from aula.engine import workshop
from aula.engine.preflight import Card, machine_card
from aula.engine.targets import TARGETS
from aula.engine.workshop import Timings, Workshop
from tests.backends.fake_tensorrt import fake_tensorrt

T4, L4, H200 = (Card("Tesla T4", "7.5", "13.0"), Card("NVIDIA L4", "8.9", "13.0"), Card("NVIDIA H200", "9.0", "13.0"))


class Cards:
    """In the place of `Cuda`: a process with these GPUs, and which of them it last turned to."""

    def __init__(self, *cards: Card) -> None:
        self.cards = cards
        self.turned_to: list[int] = []

    def open(self, device: int = 0) -> Any:
        if device >= len(self.cards):
            raise BackendError("this machine has no GPU that CUDA can use", next_step="aula doctor")
        self.turned_to.append(device)
        card, count = self.cards[device], len(self.cards)

        class Opened:
            def name(self) -> str:
                return card.name

            def capability(self) -> str:
                return card.capability

            def driver(self) -> str:
                return card.driver

            def count(self) -> int:
                return count

        return Opened()


def _machine(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> Cards:
    made = Cards(*cards)
    monkeypatch.setattr(cuda, "Cuda", made)
    monkeypatch.setattr(tensorrt_runtime.Runtime, "load", classmethod(lambda _cls: Runtime(fake_tensorrt("10.12"))))
    return made


def test_the_first_gpu_of_the_kind_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _machine(monkeypatch, T4, L4, L4)
    found = Workshop.here(TARGETS["sm89"])
    assert found.card == Card("NVIDIA L4", "8.9", "13.0", 1)
    assert machine.turned_to[-1] == 1, "the builder builds on the one that the process speaks to"
    assert found.version.startswith("10.12")
    assert found.builder.typed


def test_a_machine_without_a_gpu_says_where_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    with pytest.raises(BackendError, match=r"an engine for sm89 \(L4\) is built on such a GPU: .*no GPU") as refusal:
        Workshop.here(TARGETS["sm89"])
    assert "aula build MODEL --target sm89" in refusal.value.next_step
    assert "--plan-ci github" in refusal.value.next_step


def test_other_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, T4, H200)
    with pytest.raises(BackendError, match=r"needs a GPU of compute capability 8\.9 \(L4\)") as refusal:
        Workshop.here(TARGETS["sm89"])
    assert refusal.value.available == ("Tesla T4 (7.5)", "NVIDIA H200 (9.0)")
    assert "--plan-ci" in refusal.value.next_step


def test_a_card_is_described_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, T4, H200)
    assert machine_card(1) == Card("NVIDIA H200", "9.0", "13.0", 1)
    with pytest.raises(BackendError, match="no GPU"):
        machine_card(2)


def test_without_cuda_python_it_is_said_what_to_install() -> None:
    if _has_cuda():
        pytest.skip("cuda-python is installed here")
    with pytest.raises(BackendError, match="cuda-python, which is not installed") as refusal:
        Cuda.open()
    assert "aula[gpu]" in refusal.value.next_step


def _has_cuda() -> bool:
    from importlib.util import find_spec

    return find_spec("cuda") is not None


def test_timings_are_those_of_one_kind_of_machine(tmp_path: Path) -> None:
    machines = ("NVIDIA L4 8.9 13.0 10.12", "NVIDIA L4 8.9 13.1 10.12", "NVIDIA L4 8.9 13.0 10.13", "NVIDIA/L4 8.9")
    paths = {Timings(tmp_path, machine).path for machine in machines}
    assert len(paths) == len(machines)
    assert {path.parent for path in paths} == {tmp_path}
    assert Timings(tmp_path, "NVIDIA L4").path != Timings(tmp_path, "NVIDIA-L4").path, "though they read the same"


def test_timings_are_written_and_read_again(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings", "NVIDIA L4")
    assert timings.read() == b""
    timings.write(b"")
    assert not timings.path.exists(), "nothing known is nothing written"
    timings.write(b"times")
    assert Timings(tmp_path / "timings", "NVIDIA L4").read() == b"times"


def test_timings_that_cannot_be_written_cost_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timings").write_bytes(b"a file where a folder should be")
    timings = Timings(tmp_path / "timings", "NVIDIA L4")
    timings.write(b"times")
    assert timings.read() == b""

    def full(*_arguments: Any) -> None:
        raise StorageError("no space left", next_step="make room")

    monkeypatch.setattr(workshop, "write_atomically", full)
    timings.write(b"times")
