"""Files that are there as a whole or not at all."""

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from aula.core.errors import StorageError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a hidden file beside `path`, which then takes its name; an error or an interrupt leaves
    `path` as it was. Missing folders are made. Who may read it is for the umask to say. Raises StorageError."""
    drafted = path.with_name(f".draft-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile's, which nobody else could read.
            with drafted.open("x+b") as file:
                write(file)
            drafted.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                drafted.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error})",
            next_step="free space or mend permissions, or choose another folder with AULA_HOME",
        ) from error
