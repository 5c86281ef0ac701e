"""What a hosted session could leave behind."""

import os
import select
from pathlib import Path

AT_LAST = 120.0
"""Seconds: a generous bound for what must come."""


def children() -> set[int]:
    """Processes that this one started and that are still there, the dead ones that nobody asked after included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def descriptors() -> list[str]:
    """What this process has open, by what it leads to; numbers of pipes and sockets left out."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()).partition(":")[0])
        except OSError:
            continue
    return sorted(found)


def segments() -> set[str]:
    """Named shared memory that this process has mapped; what others on the machine keep there is theirs."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return {line.rpartition("/")[2] for line in maps.splitlines() if "/dev/shm/" in line}


def ended(pid: int) -> bool:
    """Wait until the process is gone, as long as AT_LAST; for any process, one's own child or not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(1000 * AT_LAST))
    finally:
        os.close(descriptor)
