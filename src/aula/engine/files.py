"""Files of engines: named by their bytes, checked before anything reads them."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aula.core.errors import StorageError, VerificationError
from aula.engine.manifest import StoredFile

_REBUILD = "build it again: aula build MODEL --rebuild"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(folder: Path, file: StoredFile) -> Path:
    """The path of a stored file, whose bytes were compared with its digest just now. Raises VerificationError."""
    path = folder / file.name
    try:
        digest = file_digest(path)
    except OSError as error:
        raise VerificationError(
            f"engine file {path} cannot be read ({error.strerror or error})", next_step=_REBUILD
        ) from error
    if digest != file.digest:
        raise VerificationError(
            f"engine file {path} has changed since it was proven: its SHA-256 begins with {digest[:12]}, "
            f"the manifest vouches for {file.digest[:12]}",
            next_step=_REBUILD,
        )
    return path


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill the file at `path` and wait until it is on disk. Raises StorageError."""
    with storage_errors(path.parent):
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def storage_errors(folder: Path, done: str = "written") -> Iterator[None]:
    """An OSError within is a StorageError that says what cannot be done with the store: it cannot be `done`."""
    try:
        yield
    except OSError as error:
        space = "free space or " if done == "written" else ""
        raise StorageError(
            f"the engine store {folder} cannot be {done} ({error.strerror or error})",
            next_step=f"{space}mend permissions, or choose another folder with AULA_HOME",
        ) from error
