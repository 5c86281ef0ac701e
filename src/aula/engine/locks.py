"""One builder at a time on a device: builds beside each other disturb each other's timing, and what is fastest would
be chosen by chance. The system takes a lock from a process that dies, however it dies."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from aula.engine.files import storage_errors


@contextlib.contextmanager
def device_held(folder: Path, device: str, told: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `device` ("cpu", or a GPU's UUID) in `folder`. Who has to wait is told for whom, once. On a
    disk without locks nothing is held. Raises StorageError."""
    from filelock import FileLock, Timeout

    path = _path(folder, device)
    holder = path.with_suffix(".pid")
    lock = FileLock(path)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told(f"waiting for process {_read(holder) or 'of another user'}, which builds on {device}")
            lock.acquire()
        except NotImplementedError:
            pass
        # Beside the lock and not in it: older releases of filelock empty the file of whoever holds it.
        holder.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def is_held(folder: Path, device: str) -> bool:
    """Whether somebody builds on it at this moment."""
    from filelock import FileLock, Timeout

    path = _path(folder, device)
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _path(folder: Path, device: str) -> Path:
    return folder / (re.sub(r"[^\w.-]", "_", device) + ".lock")


def _read(holder: Path) -> str:
    try:
        return holder.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
