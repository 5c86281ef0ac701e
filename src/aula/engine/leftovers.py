"""What is left in a store by those who did not finish, and what nothing names any more.

A store may be shared with newer versions of aula, whose manifests this one cannot decode. So what a file is named by
is looked for as text: any 64 hexadecimal digits in any manifest or part; and what cannot be read vouches for all.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

STALE_SECONDS = 3600.0
"""A draft that nobody holds and that was not touched for so long is nobody's."""
UNLOCKED_SECONDS = 7 * 24 * 3600.0
"""The same on a disk that has no locks."""
ORPHAN_SECONDS = 24 * 3600.0
"""Nobody takes that long between an engine's file and the manifest that names it."""
PART_SECONDS = 7 * 24 * 3600.0
"""An interrupted build is taken up again within a week, or not at all."""
_DRAFTS = ".draft-*"
_LOCK = ".lock"
_DIGEST = re.compile(rb"(?=([0-9a-f]{64}))")  # looking ahead, so that a digit before it does not shift the match


@contextlib.contextmanager
def held_draft(folder: Path) -> Iterator[Path]:
    """A new private folder, locked for as long as it is filled, gone at the end. Raises OSError."""
    from filelock import FileLock

    drafted = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    lock = FileLock(drafted / _LOCK)
    try:
        with contextlib.suppress(NotImplementedError):
            lock.acquire(timeout=0)
        yield drafted
    finally:
        lock.release()
        shutil.rmtree(drafted, ignore_errors=True)


def sweep_drafts(folder: Path) -> None:
    """Remove what killed builders left. A draft that somebody holds stays, however old."""
    for left in folder.glob(_DRAFTS):
        if age(left) > STALE_SECONDS and not _is_held(left):
            shutil.rmtree(left, ignore_errors=True)


def sweep(bundles: Path, parts: Path, files: Path) -> None:
    """Remove half-written manifests, forgotten parts, and files that nothing names; all of them only once old."""
    with contextlib.suppress(OSError):
        for half in (*bundles.glob(_DRAFTS), *parts.glob(_DRAFTS)):
            if age(half) > STALE_SECONDS:
                half.unlink(missing_ok=True)
        for record in parts.glob("*.json"):
            if age(record) > PART_SECONDS:
                record.unlink(missing_ok=True)
        old = [path for path in files.iterdir() if age(path) > ORPHAN_SECONDS] if files.is_dir() else []
        remove_unnamed(old, (bundles, parts))


def remove_unnamed(candidates: Iterable[Path], folders: Iterable[Path]) -> int:
    """Remove those of the files that no record in these folders names, and say how many bytes that freed. Where any
    record cannot be read, nothing is removed. Raises OSError."""
    waiting = [path for path in candidates if re.fullmatch("[0-9a-f]{64}", path.stem)]
    if not waiting:
        return 0
    records = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    named = named_digests(path.read_bytes() for path in records if not path.match(_DRAFTS))
    if named is None:
        return 0
    freed = 0
    for path in waiting:
        if path.stem not in named and path.is_file():
            size = path.stat().st_size
            path.unlink(missing_ok=True)
            freed += size
    return freed


def named_digests(records: Iterable[bytes]) -> set[str] | None:
    """Every digest that any of the records may name; None where one names none, and so cannot be understood."""
    named: set[str] = set()
    for content in records:
        found = {match.decode() for match in _DIGEST.findall(content.lower())}
        if not found:
            return None
        named |= found
    return named


def age(path: Path) -> float:
    """Seconds since it was last written; 0 for what is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _is_held(draft: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(draft / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except NotImplementedError:
        return age(draft) < UNLOCKED_SECONDS
    except OSError:
        return True  # another user's: not ours to remove
    lock.release()
    return False
