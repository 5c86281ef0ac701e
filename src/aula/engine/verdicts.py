"""What a build of one target came to, as a file: the word that machines give each other about a gate."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aula.core.errors import AulaError, BundleError, StorageError
from aula.core.files import write_atomically
from aula.engine.bundle import Bundle
from aula.engine.manifest import Key
from aula.engine.remote import remote_errors


@dataclass(frozen=True, slots=True)
class TargetVerdict:
    """`bundle` is the key of what was built; `reason` says why nothing was."""

    model: str
    target: str
    passed: bool
    reason: str = ""
    bundle: Key | None = None


@contextlib.contextmanager
def verdict_written(place: str | None, model: str, target: str) -> Iterator[Callable[[Bundle], None]]:
    """Give what was built to the callable; the verdict is written at the end, be it good or bad. Whatever ends the
    build goes on its way."""
    built: list[Bundle] = []
    reason = "no engine was built"
    try:
        yield built.append
    except AulaError as error:
        reason = error.what
        raise
    except KeyboardInterrupt:
        reason = "the build was interrupted"
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if place is not None:
            key = built[0].manifest.key if built else None
            write_verdict(place, TargetVerdict(model, target, bool(built), "" if built else reason, key))


def write_verdict(place: str, verdict: TargetVerdict) -> None:
    """Into a file, or at an fsspec URL. Raises StorageError."""
    content = msgspec.json.encode(verdict)
    if "://" not in place:
        write_atomically(Path(place), lambda file: file.write(content))
        return
    with remote_errors(place):
        import fsspec

        system, path = fsspec.core.url_to_fs(place)
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content)


def read_verdict(place: str) -> TargetVerdict:
    """Raises StorageError where there is none, BundleError for one that says something else."""
    try:
        content = _read(place)
    except FileNotFoundError as error:
        raise StorageError(
            f"the verdict {place} is not there: its build has not ended, or died before it could say anything",
            next_step="wait for that build, or look at its log and start it again",
        ) from error
    except OSError as error:
        raise StorageError(
            f"the verdict {place} cannot be read ({error.strerror or error})", next_step="mend its permissions"
        ) from error
    try:
        return msgspec.json.decode(content, type=TargetVerdict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{place} is no verdict of a build: {error}",
            next_step="name the file that aula build --verdict FILE wrote",
        ) from error


def _read(place: str) -> bytes:
    if "://" not in place:
        return Path(place).read_bytes()
    with remote_errors(place):
        import fsspec

        system, path = fsspec.core.url_to_fs(place)
        content: bytes | None = system.cat_file(path) if system.exists(path) else None
    if content is None:
        raise FileNotFoundError(place)
    return content


def require_passed(verdicts: Sequence[TargetVerdict]) -> None:
    """Raises BundleError that names every target that failed."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        reasons = "; ".join(f"{one.model} for {one.target}: {one.reason or 'no reason given'}" for one in failed)
        passed = ", ".join(one.target for one in verdicts if one.passed) or "none"
        raise BundleError(
            f"{len(failed)} of {len(verdicts)} builds failed ({reasons}); passed: {passed}",
            next_step=f"mend it and build again: aula build MODEL --target {failed[0].target}",
        )
