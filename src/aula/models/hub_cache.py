"""The cache that huggingface_hub, transformers and others of the same family share: read, never written to.

Layout: `models--<owner>--<name>/refs/<branch or tag>` holds a commit, and `snapshots/<commit>/` its files, as links to
blobs that appear only when they are whole. Whoever used a model elsewhere needs neither a network nor a second copy.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from aula.core.errors import CheckpointError
from aula.models.checkpoints import Checkpoint

_SNAPSHOT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Cached:
    """A snapshot that has a config.json and all of its weights in safetensors."""

    folder: Path
    revision: str


def cache_folder() -> Path:
    """Where huggingface_hub keeps it, by the variables that it reads, in its order."""
    told = os.environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if told.get(name):
            return Path(told[name]).expanduser()
    if told.get("HF_HOME"):
        return Path(told["HF_HOME"]).expanduser() / "hub"
    return Path(told.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def find_cached(model: str, revision: str | None = None) -> Cached | str:
    """`model` ("owner/name") as the cache has it, or in words what is there instead. Nothing is asked of a network.

    `revision` is a branch, a tag, a commit or at least 7 digits of one; None is what the default branch was when it was
    last asked for, or, where only commits were asked for, the newest of them.
    """
    repository = cache_folder() / f"models--{model.replace('/', '--')}"
    if not (repository / "snapshots").is_dir():
        return f"{repository} is not there"
    commits = _commits(repository, revision)
    if not commits:
        return f"{repository} has no revision {revision or 'main'}"
    lacks = ""
    for commit in commits:
        folder = repository / "snapshots" / commit
        lacks = _lacks(folder)
        if not lacks:
            return Cached(folder, commit)
    return lacks


def cached_origin(folder: Path) -> tuple[str, str] | None:
    """Name and commit of a folder that is a snapshot of such a cache; None for any other."""
    parts = folder.parent.parent.name.split("--")
    is_snapshot = folder.parent.name == "snapshots" and _SNAPSHOT.fullmatch(folder.name)
    if is_snapshot and parts[0] == "models" and len(parts) > 1 and folder.is_dir():
        return "/".join(parts[1:]), folder.name
    return None


def _commits(repository: Path, revision: str | None) -> list[str]:
    """Whose snapshots are meant, the likeliest first."""
    if revision is not None and (revision.startswith("/") or ".." in revision):
        return []
    there = {path.name for path in (repository / "snapshots").iterdir() if _SNAPSHOT.fullmatch(path.name)}
    try:
        named = (repository / "refs" / (revision or "main")).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        named = ""
    if named:
        return [named] if named in there else []
    if revision is None:
        return sorted(there, key=lambda commit: -(repository / "snapshots" / commit).stat().st_mtime_ns)
    return [commit for commit in there if re.fullmatch("[0-9a-f]{7,40}", revision) and commit.startswith(revision)]


def _lacks(folder: Path) -> str:
    """What of a checkpoint is not in the snapshot; "" where all is. A blob that a cleaner took leaves a dead link."""
    if not (folder / "config.json").is_file():
        return f"{folder} has no config.json"
    try:
        files = Checkpoint(folder).weights_files
    except CheckpointError as error:
        return f"{folder} is not whole: {error.what}"
    missing = [file.name for file in files if not file.is_file()]
    return f"{folder} has no {missing[0]}" if missing else ""
