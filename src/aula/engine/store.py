"""Where engines live: one folder each, named by what went in, with a manifest that vouches for every byte."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aula.backends.session import BACKENDS
from aula.core.errors import StorageError, VerificationError

MANIFEST = "manifest.json"
STALE_SECONDS = 3600.0
_REBUILD = "build it again: aula build MODEL --rebuild"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision on one backend: latency in milliseconds at each profile's usual sizes, the largest error relative
    to the reference, the task's metric, how many layers truly run in which precision; or why it was left out."""

    backend: str
    version: str
    precision: str
    milliseconds: Mapping[str, float]
    relative_error: float | None
    metric: float | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """What a lower precision was held to: the fp32 engine's metric on labelled examples, and the drop allowed."""

    metric: str
    reference: float
    examples: int
    digest: str
    most_drop: float


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the int8 graph was made: from which real data, by which method, with which layers left in fp32."""

    method: str
    examples: int
    source: str
    digest: str
    restored: tuple[str, ...]
    tried: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an engine. `model_digest` is the SHA-256 of the file named `model`; `profiles` gives least,
    usual and greatest of every free dimension."""

    name: str
    key: str
    backend: str
    backend_version: str
    precision: str
    target: str
    threads: int
    model: str
    model_digest: str
    sources: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, tuple[int, int, int]]]
    gate: Gate | None
    quantisation: Quantisation | None
    candidates: tuple[Candidate, ...]
    builder: str

    @property
    def chosen(self) -> Candidate:
        return next(
            candidate
            for candidate in self.candidates
            if (candidate.backend, candidate.precision) == (self.backend, self.precision)
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """A built engine on disk."""

    folder: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        return self.folder / self.manifest.model

    def verify(self) -> None:
        """Raise VerificationError unless the model file is byte for byte the one that was proven."""
        try:
            digest = file_digest(self.model)
        except OSError as error:
            raise VerificationError(f"engine file {self.model} cannot be read ({error})", next_step=_REBUILD) from error
        if digest != self.manifest.model_digest:
            raise VerificationError(
                f"engine file {self.model} has changed since it was proven: its SHA-256 begins with {digest[:12]}, "
                f"the manifest vouches for {self.manifest.model_digest[:12]}",
                next_step=_REBUILD,
            )


class EngineStore:
    """A folder of engines. Writers in several processes do not disturb each other: each fills a folder of its
    own and renames it into place, so a reader sees a whole engine or none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Engine | None:
        """The engine of that key, or None. A manifest that cannot be trusted counts as absent."""
        folder = self.folder / key
        try:
            raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            manifest = _manifest_from(raw)
            inside = Path(manifest.model).name == manifest.model
            there = (folder / manifest.model).is_file()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return Engine(folder, manifest) if manifest.key == key and inside and there else None

    def engines(self) -> list[Engine]:
        """Every engine here that can be trusted, by key."""
        with _storage_errors(self.folder):
            entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
        keys = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        return [engine for key in keys if (engine := self.find(key)) is not None]

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A private folder to fill; it is gone at the end unless `publish` moved it."""
        with _storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            drafted = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.folder))
        try:
            yield drafted
        finally:
            shutil.rmtree(drafted, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed builders left behind: nobody fills a draft for that long."""
        for left in (*self.folder.glob(".draft-*"), *self.folder.glob(".old-*")):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)

    def publish(self, drafted: Path, manifest: Manifest) -> Engine:
        """Write the manifest and move the folder into place, replacing an engine of the same key."""
        final = self.folder / manifest.key
        with _storage_errors(self.folder):
            (drafted / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2, default=dict), encoding="utf-8")
            drafted.chmod(0o755)
            try:
                drafted.rename(final)
            except OSError:
                if not final.exists():
                    raise
                # Somebody was faster, or what is there is damaged: put ours in its place.
                old = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder))
                with contextlib.suppress(FileNotFoundError):
                    final.rename(old / "engine")
                drafted.rename(final)
                shutil.rmtree(old, ignore_errors=True)
        return Engine(final, manifest)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill the file at `path` and wait until it is on disk. Raises StorageError."""
    with _storage_errors(path.parent):
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the engine store {folder} cannot be written ({error.strerror or error})",
            next_step="free space or mend permissions, or choose another folder with AULA_HOME",
        ) from error


def _manifest_from(raw: dict[str, Any]) -> Manifest:
    """Raises ValueError, TypeError or KeyError for anything that this builder did not write."""
    gate, quantisation = raw["gate"], raw["quantisation"]
    profiles = {
        name: {dimension: _three(sizes) for dimension, sizes in profile.items()}
        for name, profile in raw["profiles"].items()
    }
    manifest = Manifest(
        **{
            **raw,
            "profiles": profiles,
            "gate": Gate(**gate) if gate is not None else None,
            "quantisation": Quantisation(**{**quantisation, "restored": tuple(quantisation["restored"])})
            if quantisation is not None
            else None,
            "candidates": tuple(Candidate(**candidate) for candidate in raw["candidates"]),
        }
    )
    texts = (manifest.name, manifest.key, manifest.model, manifest.model_digest, manifest.backend, manifest.precision)
    if not all(isinstance(text, str) for text in texts) or type(manifest.threads) is not int:
        raise TypeError("a field has the wrong type")
    if manifest.backend not in BACKENDS:
        raise ValueError(f"there is no backend {manifest.backend}")
    if not any((c.backend, c.precision) == (manifest.backend, manifest.precision) for c in manifest.candidates):
        raise ValueError("the chosen engine is not among the candidates")
    return manifest


def _three(sizes: Any) -> tuple[int, int, int]:
    least, usual, greatest = (int(size) for size in sizes)
    return least, usual, greatest
