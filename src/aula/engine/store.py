"""Where bundles live: a folder, or any fsspec URL with a folder in front of it (see remote.py).

    bundles/<key>.json    the manifests; writing one is what publishes a bundle
    parts/<key>.json      parts that are finished, so that an interrupted build goes on where it was
    files/<sha256>.onnx   engines, named by their bytes

Files are named by content and manifests come last, so readers see a whole bundle or none, and builders in several
processes cannot disturb each other: at worst they write the same bytes twice.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from aula.core.errors import AulaError, BundleError, EngineError, ModelNotFoundError, StorageError, VerificationError
from aula.core.files import write_atomically
from aula.engine.bundle import Bundle
from aula.engine.files import check_file, file_digest, storage_errors
from aula.engine.leftovers import held_draft, named_digests, remove_unnamed, sweep, sweep_drafts
from aula.engine.manifest import Manifest, Part, StoredFile, read_manifest, read_part, write_manifest, write_part

_REBUILD = "build it again: aula build MODEL --rebuild"


@dataclass(frozen=True, slots=True)
class Removed:
    """What went: a bundle's key, and how many bytes of engines nothing else needed."""

    key: str
    freed_bytes: int


class Store:
    """A folder of bundles on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundles, self.parts, self.files = (folder / name for name in ("bundles", "parts", "files"))

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, key: str) -> Bundle | None:
        """What a builder asks: the bundle of that key, every byte of it as it was proven, or None."""
        bundle = self._whole(key)
        if bundle is None or not all(self.is_intact(file) for file in files_of(bundle.manifest)):
            return None
        return bundle

    def find_part(self, key: str) -> Part | None:
        """A finished part, every byte of it as it was proven, or None."""
        with contextlib.suppress(OSError, BundleError):
            path = record_path(self.parts, key)
            part = read_part(path.read_bytes(), key)
            if all(self.is_intact(file) for engine in part.engines.values() for file in engine.files):
                os.utime(path)  # wanted, so not forgotten while its bundle is built
                return part
        return None

    def keys(self) -> list[str]:
        """Of every bundle here, be it spoilt or not. Raises StorageError."""
        return sorted(self._written())

    def all(self) -> list[Bundle]:
        """Every bundle on this machine that can be trusted, by key. Sizes are compared; opening compares digests."""
        return [bundle for key in sorted(Store._written(self)) if (bundle := self._whole(key)) is not None]

    def keys_of(self, name: str) -> list[str]:
        """The bundle with that key; or those of a model with that name, the newest first. Raises
        ModelNotFoundError where there is none."""
        written = self._written()
        if name in written:
            return [name]
        found = [key for key in written if self._name(key) == name]
        if not found:
            raise ModelNotFoundError(
                f"there is no bundle {name!r} in {self}",
                available=sorted(written),
                next_step=f"name one of these, or build it: aula build {name}",
            )
        return sorted(found, key=lambda key: (written[key], key), reverse=True)

    def open(self, name: str) -> Bundle:
        """The bundle with that key, or the newest of a model with that name that can be trusted.

        Raises BundleError, VerificationError or StorageError, saying what is wrong, where there are only some that
        cannot be; ModelNotFoundError where there is none.
        """
        fault: AulaError | None = None
        for key in self.keys_of(name):
            try:
                return self._open(key)
            except (BundleError, VerificationError, StorageError) as error:
                fault = fault or error
        raise fault or ModelNotFoundError(f"there is no bundle {name!r} in {self}", next_step=_REBUILD)

    def add_file(self, path: Path) -> StoredFile:
        """Move a file of a draft into the store under its digest."""
        with storage_errors(self.folder):
            stored = StoredFile(file_digest(path), path.suffix, path.stat().st_size)
            self.files.mkdir(parents=True, exist_ok=True)
            path.replace(self.files / stored.name)
        return stored

    def add_part(self, key: str, part: Part) -> None:
        """Remember a finished part. Its files were added before."""
        write_atomically(record_path(self.parts, key), lambda file: file.write(write_part(part)))

    def publish(self, manifest: Manifest) -> Bundle:
        """Write the manifest: from then on the bundle is there. Its files were added before."""
        bundle = self._publish(manifest)
        sweep(self.bundles, self.parts, self.files)
        return bundle

    def remove(self, key: str) -> Removed:
        """Remove a bundle, spoilt or not: its manifest, what is remembered of its parts, and the files that no other
        names. Raises ModelNotFoundError where there is none, StorageError."""
        if key not in self.keys():
            raise ModelNotFoundError(
                f"there is no bundle {key!r} in {self}", available=self.keys(), next_step="name one of these"
            )
        return self._remove(key)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A private folder on the same disk, gone at the end."""
        with contextlib.ExitStack() as held:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                sweep_drafts(self.folder)
                drafted = held.enter_context(held_draft(self.folder))
            yield drafted

    def is_intact(self, file: StoredFile) -> bool:
        """Whether its bytes are here and those that were proven: about 0.1 s for every 100 MB."""
        try:
            check_file(self.files, file)
        except VerificationError:
            return False
        return True

    def _written(self) -> dict[str, float]:
        """When each bundle's manifest was written, by key."""
        with storage_errors(self.folder, "read"):
            if not self.bundles.is_dir():
                return {}
            paths = [path for path in self.bundles.iterdir() if path.suffix == ".json" and path.name[0] != "."]
            return {path.stem: path.stat().st_mtime for path in paths}

    def _name(self, key: str) -> str:
        """The model's name; what the key begins with where the manifest cannot be trusted."""
        try:
            return self._manifest(key).name
        except (EngineError, StorageError):
            return key.rpartition("-")[0]

    def _manifest(self, key: str) -> Manifest:
        """Raises BundleError where it cannot be trusted."""
        path = record_path(self.bundles, key)
        with storage_errors(self.folder, "read"):
            content = path.read_bytes()
        return checked_manifest(content, key)

    def _open(self, key: str) -> Bundle:
        bundle = Bundle(self._manifest(key), self.files)
        for file in files_of(bundle.manifest):
            if not self._is_here(file):
                check_file(self.files, file)
        return bundle

    def _whole(self, key: str) -> Bundle | None:
        """The bundle of that key if it can be trusted and its files have their sizes."""
        try:
            manifest = Store._manifest(self, key)
        except (EngineError, StorageError):
            return None
        return Bundle(manifest, self.files) if all(self._is_here(file) for file in files_of(manifest)) else None

    def _is_here(self, file: StoredFile) -> bool:
        with contextlib.suppress(OSError):
            return (self.files / file.name).stat().st_size == file.bytes
        return False

    def _publish(self, manifest: Manifest) -> Bundle:
        if not all(self._is_here(file) for file in files_of(manifest)):
            raise StorageError(
                f"files of {manifest.key} were removed from {self.folder} while it was built", next_step="run it again"
            )
        path = record_path(self.bundles, manifest.key)
        write_atomically(path, lambda file: file.write(write_manifest(manifest)))
        return Bundle(manifest, self.files)

    def _remove(self, key: str) -> Removed:
        with storage_errors(self.folder):
            path = record_path(self.bundles, key)
            content = path.read_bytes()
            path.unlink(missing_ok=True)
            with contextlib.suppress(BundleError):
                self._forget(list(read_manifest(content, key).parts.values()))
            named = named_digests([content]) or set()
            candidates = [file for file in self.files.iterdir() if file.stem in named] if self.files.is_dir() else []
            return Removed(key, remove_unnamed(candidates, (self.bundles, self.parts)))

    def _forget(self, parts: list[Part]) -> None:
        for path in self.parts.glob("*.json"):
            with contextlib.suppress(BundleError):
                if read_part(path.read_bytes(), path.stem) in parts:
                    path.unlink(missing_ok=True)


def open_store(place: str | Path, cache: Path) -> Store:
    """The store in a folder or at an fsspec URL (s3://, gs://, file://); `cache` is the folder in front of those on
    other machines. Raises StorageError for a place that nothing here can read."""
    text = str(place)
    if text.lower().startswith("file:"):
        return Store(_file_url(text))
    if "://" in text:
        from aula.engine.remote import RemoteStore

        return RemoteStore(text, cache / hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:16])
    try:
        return Store(Path(text).expanduser())
    except RuntimeError as error:  # ~somebody who is not known here
        raise StorageError(f"there is no folder {text} ({error})", next_step="write the folder's whole path") from error


def record_path(folder: Path, key: str) -> Path:
    """Keys come from users too: none may lead elsewhere. Raises BundleError."""
    if not key or key.startswith(".") or any(mark in key for mark in "/\\\0"):
        raise BundleError(f"{key!r} is no bundle's key", next_step="list the bundles: aula inspect")
    return folder / f"{key}.json"


def checked_manifest(content: bytes, key: str) -> Manifest:
    """Raises BundleError for one that cannot be trusted, or is another's."""
    manifest = read_manifest(content, key)
    if manifest.key != key:
        raise BundleError(f"the manifest {key} says that it is {manifest.key}", next_step=_REBUILD)
    return manifest


def files_of(manifest: Manifest) -> list[StoredFile]:
    """Every file that it names, once."""
    engines = (engine for part in manifest.parts.values() for engine in part.engines.values())
    return list(dict.fromkeys(file for engine in engines for file in engine.files))


def _file_url(url: str) -> Path:
    try:
        parsed = urlsplit(url)
    except ValueError:
        parsed = urlsplit("file://?")
    path = url2pathname(parsed.path)
    plain = not (parsed.query or parsed.fragment) and "\0" not in path
    if parsed.netloc not in ("", "localhost") or not plain or not Path(path).is_absolute():
        raise StorageError(
            f"{url} names no folder of this machine",
            next_step="write file:///whole/path, with %23 for # and %3F for ?; or the path alone",
        )
    return Path(path)
