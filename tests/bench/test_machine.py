import pytest

from aula.bench.machine import Load, Roof, floor_ms, machine, percentile, versions
from aula.core.clock import Clock


class Ticking:
    """Every look at it takes a hundredth of a second."""

    def __init__(self) -> None:
        self._looks = 0

    def now(self) -> float:
        self._looks += 1
        return self._looks / 100

    async def sleep_until(self, moment: float) -> None:
        raise NotImplementedError


def test_the_floor_is_the_slower_of_reading_and_computing() -> None:
    assert floor_ms(Load(85_000_000, 0), bandwidth=17e9, rate=1e12) == pytest.approx(5)
    assert floor_ms(Load(85_000_000, 22_000_000_000), bandwidth=17e9, rate=1e12) == pytest.approx(22)


def test_limits_are_measured_once_for_each_size_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Clock = Ticking()
    roof = Roof(2, clock)
    monkeypatch.setattr("aula.bench.machine.WIDTH", 16)
    # 1 MiB in one hundredth of a second
    assert roof.bandwidth(1_000_000) == pytest.approx(100 * 2**20)
    assert roof.bandwidth(1) == roof.bandwidth(1_048_576)
    assert roof.bandwidth(3_000_000) == pytest.approx(100 * 2**22)
    rate = roof.rate("int8")
    assert rate == pytest.approx(100 * 2 * 8 * 16**3)
    assert roof.rate("int8+bf16") == rate
    assert roof.floor_ms(Load(2**20, 0), "int8") == pytest.approx(10)
    assert set(roof.as_json()) == {"read_gb_s_1_mib", "read_gb_s_4_mib", "int8_gop_s"}


def test_the_machine_and_its_versions() -> None:
    told = machine()
    assert {"processor", "cores", "system", "python", "numpy"} <= set(told)
    assert versions(["no-such-package"]) == {"no-such-package": "absent"}


def test_percentiles_are_by_nearest_rank() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
