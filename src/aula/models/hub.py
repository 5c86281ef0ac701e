"""Checkpoints from a Hugging Face hub: pinned to a commit, whole or not there, and found again without a network.

Layout: `<folder>/<owner>--<name>@<first 12 digits of the commit>/`, where `<folder>` is `checkpoints` in aula's home. A
checkpoint grows in a hidden folder beside it, which takes that name when every file is there and the marker is written.
What other programs fetched into the cache that they share is used where it lies (`hub_cache`).
"""

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aula.core.errors import CheckpointError, DownloadError, ModelNotFoundError, StorageError
from aula.core.files import write_atomically
from aula.engine.recipe import Origin
from aula.models.hub_cache import Cached, cached_origin, find_cached
from aula.models.hub_client import MIRROR, PUBLIC_HUB, Commit, Hub, HubFile, is_intact
from aula.models.hub_files import WEIGHTS, choose_files

Progress = Callable[[str, float], None]
"""What is being done, and the share that is done, 0 to 1."""

DEFAULT_REVISION = "main"
MARKER = "aula-pulled.json"
_PART = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9_](?:[\w.-]{0,94}\w)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A whole checkpoint on this machine, and the commit that it is."""

    folder: Path
    origin: Origin


class _Marker(msgspec.Struct, frozen=True):
    """Written last. `asked`: the revisions by which this commit was asked for."""

    name: str
    revision: str
    asked: tuple[str, ...]
    files: tuple[HubFile, ...]


def find(model: str, folder: Path, revision: str | None = None) -> Pulled | None:
    """The whole checkpoint of `model` on this machine, without asking any hub: what was pulled into `folder`, else what
    the cache of huggingface_hub has. None where neither has it, and for what can be no model's name or revision."""
    try:
        _stem(model)
        _check_revision(model, revision)
    except ModelNotFoundError:
        return None
    cached = None if (pulled := find_pulled(model, folder, revision)) else find_cached(model, revision)
    return Pulled(cached.folder, Origin(model, cached.revision)) if isinstance(cached, Cached) else pulled


def obtain(model: str, folder: Path, revision: str | None = None, progress: Progress | None = None) -> Pulled:
    """As this machine has it (`find`), else pulled. Raises what `pull` raises, with where it was looked for before."""
    if found := find(model, folder, revision):
        return found
    try:
        return pull(model, folder, revision, progress)
    except (CheckpointError, DownloadError, ModelNotFoundError) as error:
        looked = f"{model}{f'@{revision}' if revision else ''} is not in {folder}, {_told(model, revision)}"
        raise type(error)(
            f"{looked}, and {error.what}", available=error.available, next_step=error.next_step
        ) from error


def _told(model: str, revision: str | None) -> str:
    cached = find_cached(model, revision)
    return "" if isinstance(cached, Cached) else cached


def pull(model: str, folder: Path, revision: str | None = None, progress: Progress | None = None) -> Pulled:
    """The checkpoint `model` ("owner/name") as the hub has it at `revision` (a branch, tag or commit; None: its
    default branch), fetched into `folder` unless that commit is there.

    Only what recipes read is fetched, and every digest that the hub tells is checked. An interrupted pull goes on
    where it stopped. The hub is HF_ENDPOINT's; a token comes from the environment (HF_TOKEN) or from `hf auth login`.
    Raises ModelNotFoundError for a name or revision that is malformed or unknown, CheckpointError for a repository
    without safetensors, DownloadError for a hub that cannot be reached, refuses or talks nonsense, StorageError for
    a disk that is full or forbidden, and SettingsError for a malformed HF_ENDPOINT.
    """
    report = progress or (lambda _what, _share: None)
    stem = _stem(model)
    _check_revision(model, revision)
    found = find_pulled(model, folder, revision)
    if found and found.origin.revision == revision:
        return found
    hub = Hub(model, _without_network(model, folder, found))
    report(f"{model}: asking {hub.endpoint}", 0.0)
    commit = hub.find_commit(revision)
    files = choose_files(model, commit.files)
    target = folder / f"{stem}@{commit.sha[:12]}"
    with _only_one(folder, target.name, lambda: report(f"{model}: waiting for another aula that pulls it", 0.0)):
        asked = {revision or DEFAULT_REVISION}
        marker = _read_marker(target)
        if marker and marker.revision == commit.sha:
            asked |= set(marker.asked)
            _write_marker(target, _Marker(model, commit.sha, tuple(sorted(asked)), marker.files))
        else:
            staging = _stage(folder, target)
            files = _fetch_all(hub, commit, files, staging, report)
            _write_marker(staging, _Marker(model, commit.sha, tuple(asked), files))
            staging.rename(target)
    report(f"{model}: all there", 1.0)
    return Pulled(target, Origin(model, commit.sha))


def find_pulled(model: str, folder: Path, revision: str | None = None) -> Pulled | None:
    """The whole checkpoint of `model` in `folder`, without asking any hub, or None.

    `revision` is a commit, at least 7 digits of one, or a name by which it was pulled; None is whatever was pulled
    last. A folder from which a file is missing, or has another size, is not whole.
    """
    try:
        stem = _stem(model)
    except ModelNotFoundError:
        return None
    found: list[tuple[int, str, Pulled]] = []
    for candidate in folder.glob(f"{stem}@*"):
        marker = _read_marker(candidate)
        if marker and marker.name == model and _is_meant(marker, revision):
            pulled = Pulled(candidate, Origin(marker.name, marker.revision))
            with contextlib.suppress(FileNotFoundError):
                found.append(((candidate / MARKER).stat().st_mtime_ns, candidate.name, pulled))
    return max(found, key=lambda row: row[:2])[2] if found else None


def origin_of(folder: Path) -> Origin | None:
    """Where the folder of a checkpoint came from that was pulled or cached; None for one that came in another way or
    is not whole."""
    marker = _read_marker(folder)
    cached = None if marker else cached_origin(folder)
    return Origin(marker.name, marker.revision) if marker else Origin(*cached) if cached else None


def _fetch_all(
    hub: Hub, commit: Commit, files: Sequence[HubFile], staging: Path, report: Progress
) -> tuple[HubFile, ...]:
    """Every file in `staging`, with its size. Files of unknown size count equally in the progress."""
    with _storage(staging):
        missing = [file for file in files if not is_intact(staging / file.path, file)]
        there = sum(path.stat().st_size for path in staging.rglob("*.partial"))
        needed, free = sum(file.size or 0 for file in missing) - there, shutil.disk_usage(staging).free
    if needed > free:
        raise StorageError(
            f"{hub.model} needs {needed / 1e6:,.0f} MB more, and {staging.parent} has {free / 1e6:,.0f} MB free",
            next_step="free some space, or choose another folder with AULA_HOME",
        )
    sizes = [file.size or 1 for file in files] if all(file.size is not None for file in files) else [1] * len(files)
    done = 0
    for file, size in zip(files, sizes, strict=True):
        begin, end = done / sum(sizes), (done + size) / sum(sizes)
        what = f"{hub.model}: {file.path}"
        if file in missing:
            hub.fetch(commit.sha, file, staging / file.path, _portion(report, what, begin, end, file.size))
        report(what, end)
        done += size
    with _storage(staging):
        return tuple(HubFile(file.path, (staging / file.path).stat().st_size, file.digest) for file in files)


def _portion(report: Progress, what: str, begin: float, end: float, size: int | None) -> Callable[[int], None]:
    """Tells `report` of the bytes that came as a share between `begin` and `end`."""
    return lambda came: report(what, begin + (end - begin) * min(came / size, 1.0) if size else begin)


def _stage(folder: Path, target: Path) -> Path:
    """The hidden folder in which the checkpoint grows; what is left of a damaged one is taken over, to be checked."""
    staging = folder / f".partial-{target.name}"
    with _storage(folder):
        if target.exists():
            shutil.rmtree(staging, ignore_errors=True)
            target.rename(staging)
        staging.mkdir(parents=True, exist_ok=True)
        (staging / MARKER).unlink(missing_ok=True)
    return staging


@contextlib.contextmanager
def _only_one(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the checkpoint against other processes, which would append to the same partial files."""
    from filelock import FileLock, Timeout

    with _storage(folder), contextlib.ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        # On a file system without locks the digests alone have to find what two processes spoil.
        with contextlib.suppress(NotImplementedError):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
            held.callback(lock.release)
        yield


def _write_marker(folder: Path, marker: _Marker) -> None:
    write_atomically(folder / MARKER, lambda file: file.write(msgspec.json.format(msgspec.json.encode(marker))))


def _read_marker(folder: Path) -> _Marker | None:
    """The marker of a whole checkpoint; None where it is absent, malformed or promises what is not there."""
    try:
        marker = msgspec.json.decode((folder / MARKER).read_bytes(), type=_Marker)
        whole = all((folder / file.path).stat().st_size == file.size for file in marker.files)
    except (OSError, ValueError):
        return None
    named = re.fullmatch("[0-9a-f]{40}", marker.revision) and _PART.fullmatch(marker.name.rpartition("/")[2])
    return marker if whole and marker.files and named else None


def _is_meant(marker: _Marker, revision: str | None) -> bool:
    if revision is None or revision in marker.asked:
        return True
    return re.fullmatch("[0-9a-f]{7,40}", revision) is not None and marker.revision.startswith(revision)


def _stem(model: str) -> str:
    """The folder's name before the commit. Raises ModelNotFoundError for what can be no model's name."""
    parts = model.split("/")
    if len(parts) <= 2 and all(map(_PART.fullmatch, parts)):
        return "--".join(parts)
    raise ModelNotFoundError(
        f"{model[:120]!r} is no name of a model on a hub",
        next_step="write owner/name, like openai/whisper-small; a folder of this machine needs no pull: "
        "aula build FOLDER",
    )


def _check_revision(model: str, revision: str | None) -> None:
    if revision is not None and (not re.fullmatch(r"[!-~]{1,200}", revision) or ".." in revision or "\\" in revision):
        raise ModelNotFoundError(
            f"{revision[:120]!r} is no revision of {model}", next_step="give a branch, a tag or a commit, or none"
        )


def _without_network(model: str, folder: Path, found: Pulled | None) -> str:
    if found:
        return f"use commit {found.origin.revision[:12]}, pulled before: aula build {shlex.quote(str(found.folder))}"
    by_hand = shlex.quote(str(folder / _stem(model)))
    return (
        f"connect and run it again, through a mirror if the hub is blocked (HF_ENDPOINT={MIRROR}); or, on a machine "
        f"that has a network, save config.json, {WEIGHTS} and those there are of tokenizer.json, "
        "generation_config.json, preprocessor_config.json, modules.json, sentence_bert_config.json and "
        f"1_Pooling/config.json from {PUBLIC_HUB}/{model}/tree/main, copy them to {by_hand} and run: "
        f"aula build {by_hand}"
    )


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error})",
            next_step="free space or mend permissions, or choose another folder with AULA_HOME",
        ) from error
