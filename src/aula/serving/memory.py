"""Memory of the host and of its GPUs: what there is, and what is in use."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aula.backends.gpus import list_gpus


@dataclass(frozen=True, slots=True)
class Memory:
    """`device` is host, gpu0, gpu1 …; bytes."""

    device: str
    used: int
    total: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


Reader = Callable[[], Sequence[Memory]]


def read_memory() -> list[Memory]:
    """The host's and every GPU's; a GPU whose driver does not say what is in use is left out. Raises nothing."""
    gpus = [Memory(f"gpu{gpu.index}", gpu.used_bytes, gpu.memory_bytes) for gpu in list_gpus() if gpu.used_bytes]
    host = host_memory()
    return [host, *gpus] if host is not None else gpus


def resident_bytes(proc: Path = Path("/proc")) -> int:
    """Of this process; 0 where no system tells."""
    try:
        return int((proc / "self" / "statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """The machine's, or the container's where that may use less; None where no system tells."""
    try:
        rows = (line.split() for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
        kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1}
        total, free = 1024 * kib["MemTotal"], 1024 * kib["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        rows = (line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
    except (OSError, ValueError):  # "max" is no number: there is no limit
        return Memory("host", total - free, total)
    return Memory("host", used - cached, limit) if limit < total else Memory("host", total - free, total)
