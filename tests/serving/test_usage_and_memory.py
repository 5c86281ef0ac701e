from pathlib import Path

import pytest

from aula.core.clock import FakeClock
from aula.serving.memory import Memory, host_memory
from aula.serving.usage import MOST_TENANTS, REST, SHOWN, Usage


def test_shares_name_the_largest_and_sum_to_one() -> None:
    usage = Usage(FakeClock())
    for number in range(50):
        usage.add(f"class-{number}", 1.0 + number)
    shares = usage.shares()
    assert len(shares) == SHOWN + 1
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["class-49"] > shares["class-48"]
    assert REST in shares


def test_what_was_used_is_forgotten_by_halves() -> None:
    clock = FakeClock()
    usage = Usage(clock)
    usage.add("a", 100.0)
    clock.advance(60.0)
    usage.add("b", 50.0)
    assert usage.shares() == {"a": 0.5, "b": 0.5}
    clock.advance(1e6)
    assert usage.shares() == {}


def test_any_number_of_tenants_takes_bounded_room() -> None:
    usage = Usage(FakeClock())
    for number in range(5 * MOST_TENANTS):
        usage.add(f"class-{number}", 1.0)
    assert len(usage._used) <= MOST_TENANTS


def _write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_the_host_s_memory_or_the_container_s(tmp_path: Path) -> None:
    proc = _write(tmp_path / "proc", meminfo="MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nHugePages: 0\n")
    whole = Memory("host", 600 * 1024, 1000 * 1024)
    assert host_memory(proc, tmp_path / "absent") == whole
    free = _write(tmp_path / "free", memory__max="max\n")
    assert host_memory(proc, free) == whole
    bound = _write(
        tmp_path / "bound", memory__max="5000", memory__current="3000", memory__stat="anon 1\ninactive_file 1000\n"
    )
    assert host_memory(proc, bound) == Memory("host", 2000, 5000)
    assert host_memory(tmp_path / "absent") is None
