"""Where bundles live: a folder, or any fsspec URL with a folder in front of it.

    bundles/<key>.json    the manifests; writing one is what publishes a bundle
    parts/<key>.json      parts that are finished, so that an interrupted build goes on where it was
    files/<sha256>.onnx   engines, named by their bytes

Files are named by content and manifests come last, so readers see a whole bundle or none, and builders in several
processes cannot disturb each other: at worst they write the same bytes twice.
"""

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from aula.core.errors import BundleError, EngineError, ModelNotFoundError, StorageError
from aula.core.files import write_atomically
from aula.engine.bundle import Bundle
from aula.engine.files import check_file, file_digest, storage_errors
from aula.engine.manifest import Manifest, Part, StoredFile, read_manifest, read_part, write_manifest, write_part

STALE_SECONDS = 3600.0
"""Nobody fills a draft for that long."""
ORPHAN_SECONDS = 24 * 3600.0
"""Nobody takes that long between an engine's file and the manifest that names it."""
_REBUILD = "build it again: aula build MODEL --rebuild"


class Store:
    """A folder of bundles on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundles, self.parts, self.files = (folder / name for name in ("bundles", "parts", "files"))

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, key: str) -> Bundle | None:
        """The bundle of that key, or None. One that cannot be trusted, or is not whole, counts as absent."""
        try:
            manifest = read_manifest(_path(self.bundles, key).read_bytes(), key)
        except (OSError, BundleError):
            return None
        whole = manifest.key == key and all(self._has(file) for file in _files(manifest.parts.values()))
        return Bundle(manifest, self.files) if whole else None

    def find_part(self, key: str) -> Part | None:
        """A finished part, or None."""
        try:
            part = read_part(_path(self.parts, key).read_bytes(), key)
        except (OSError, BundleError):
            return None
        return part if all(self._has(file) for file in _files([part])) else None

    def keys(self) -> list[str]:
        with storage_errors(self.folder):
            return sorted(path.stem for path in self.bundles.glob("*.json")) if self.bundles.is_dir() else []

    def all(self) -> list[Bundle]:
        """Every bundle here that can be trusted, by key."""
        return [bundle for key in self.keys() if (bundle := self.find(key)) is not None]

    def open(self, name: str) -> Bundle:
        """The bundle with that key, or the only one of a model with that name.

        Raises BundleError, saying what is wrong with it, where there is one that cannot be trusted; ModelNotFoundError
        where there is none; EngineError where the name fits several.
        """
        keys = self.keys()
        if name in keys:
            return self._open(name)
        found = [bundle for key in keys if (bundle := self.find(key)) is not None and bundle.manifest.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise EngineError(
                f"there are {len(found)} bundles of {name!r}",
                available=[bundle.manifest.key for bundle in found],
                next_step="name one of these",
            )
        spoilt = [key for key in keys if key.rpartition("-")[0] == name]
        if spoilt:
            return self._open(spoilt[0])
        raise ModelNotFoundError(
            f"there is no bundle {name!r} in {self}",
            available=keys,
            next_step=f"name one of these, or build it: aula build {name}",
        )

    def add_file(self, path: Path) -> StoredFile:
        """Move a file of a draft into the store under its digest."""
        with storage_errors(self.folder):
            stored = StoredFile(file_digest(path), path.suffix, path.stat().st_size)
            self.files.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(self.files / stored.name)
        return stored

    def add_part(self, key: str, part: Part) -> None:
        """Remember a finished part. Its files were added before."""
        write_atomically(_path(self.parts, key), lambda file: file.write(write_part(part)))

    def publish(self, manifest: Manifest) -> Bundle:
        """Write the manifest: from then on the bundle is there. Its files were added before."""
        write_atomically(_path(self.bundles, manifest.key), lambda file: file.write(write_manifest(manifest)))
        self._remove_orphans()
        return Bundle(manifest, self.files)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A private folder on the same disk, gone at the end."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".draft-*"):
                if _age(left) > STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            drafted = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.folder))
        try:
            yield drafted
        finally:
            shutil.rmtree(drafted, ignore_errors=True)

    def _open(self, key: str) -> Bundle:
        with storage_errors(self.folder):
            content = _path(self.bundles, key).read_bytes()
        manifest = read_manifest(content, key)
        if manifest.key != key:
            raise BundleError(f"the manifest {key} says that it is {manifest.key}", next_step=_REBUILD)
        return Bundle(manifest, self.files)

    def _has(self, file: StoredFile) -> bool:
        with contextlib.suppress(OSError):
            return (self.files / file.name).stat().st_size == file.bytes
        return False

    def _remove_orphans(self) -> None:
        """Files that no manifest and no part names any more, once they are old."""
        with contextlib.suppress(OSError):
            old = [path for path in self.files.iterdir() if _age(path) > ORPHAN_SECONDS]
            named = {file.name for bundle in self.all() for file in _files(bundle.manifest.parts.values())}
            finished = [self.find_part(path.stem) for path in self.parts.glob("*.json")] if old else []
            named |= {file.name for part in finished if part is not None for file in _files([part])}
            for path in old:
                if path.name not in named:
                    path.unlink(missing_ok=True)


class RemoteStore(Store):
    """A store behind an fsspec URL. What is read or built lies in a folder of this machine too; a bundle's files are
    checked against their digests when they arrive."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(folder)
        self._url = url.rstrip("/")
        with _remote_errors(self._url):
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(self._url)

    def __str__(self) -> str:
        return self._url

    def find(self, key: str) -> Bundle | None:
        if (here := super().find(key)) is not None:
            return here
        try:
            manifest = self._fetch(key)
        except BundleError:
            return None
        return None if manifest is None else super().find(key)

    def keys(self) -> list[str]:
        with _remote_errors(self._url):
            folder = f"{self._root}/bundles"
            listed = self._system.ls(folder, detail=False) if self._system.exists(folder) else []
        return sorted(name.rpartition("/")[2].removesuffix(".json") for name in listed if name.endswith(".json"))

    def publish(self, manifest: Manifest) -> Bundle:
        bundle = super().publish(manifest)
        with _remote_errors(self._url):
            for folder in ("bundles", "files"):
                self._system.makedirs(f"{self._root}/{folder}", exist_ok=True)
            for file in _files(manifest.parts.values()):
                there = f"{self._root}/files/{file.name}"
                if not self._system.exists(there) or self._system.size(there) != file.bytes:
                    self._system.put_file(str(self.files / file.name), there)
            # The manifest comes last: it is what makes the bundle visible.
            self._system.pipe_file(f"{self._root}/bundles/{manifest.key}.json", write_manifest(manifest))
        return bundle

    def _open(self, key: str) -> Bundle:
        self._fetch(key)
        return super()._open(key)

    def _fetch(self, key: str) -> Manifest | None:
        """Bring a bundle here. None where there is none. Raises BundleError where what is there cannot be trusted."""
        with _remote_errors(self._url):
            there = f"{self._root}/{_path(self.bundles, key).relative_to(self.folder)}"
            if not self._system.exists(there):
                return None
            manifest = read_manifest(self._system.cat_file(there), key)
        with self.draft() as draft:
            for file in _files(manifest.parts.values()):
                if self._has(file):
                    continue
                with _remote_errors(self._url):
                    self._system.get_file(f"{self._root}/files/{file.name}", str(draft / file.name))
                check_file(draft, file)
                self.add_file(draft / file.name)
            super().publish(manifest)
        return manifest


def open_store(place: str | Path, cache: Path) -> Store:
    """The store in a folder or at an fsspec URL (s3://, gs://, memory://); `cache` is the folder in front of the
    latter. Raises StorageError for a URL that nothing here can read."""
    text = str(place)
    if text.startswith("file://"):
        return Store(Path(text.removeprefix("file://")))
    if "://" not in text:
        return Store(Path(text).expanduser())
    return RemoteStore(text, cache / hashlib.sha256(text.rstrip("/").encode()).hexdigest()[:16])


@contextlib.contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """Whatever a file system behind fsspec raises is a StorageError that names the store."""
    try:
        yield
    except (EngineError, StorageError):
        raise
    except ImportError as error:
        raise StorageError(
            f"the store {url} needs a package that is not installed ({error})",
            next_step="pip install the fsspec package for it: s3fs for s3://, gcsfs for gs://, adlfs for az://",
        ) from error
    except Exception as error:  # botocore, gcsfs and others have trees of their own
        raise StorageError(
            f"the store {url} cannot be used ({type(error).__name__}: {error})",
            next_step="check the address, the network and your credentials for it",
        ) from error


def _path(folder: Path, key: str) -> Path:
    """Keys come from users too: none may lead elsewhere."""
    if not key or key.startswith(".") or any(mark in key for mark in "/\\\0"):
        raise BundleError(f"{key!r} is no bundle's key", next_step="list the bundles: aula inspect")
    return folder / f"{key}.json"


def _files(parts: Iterable[Part]) -> list[StoredFile]:
    return [file for part in parts for engine in part.engines.values() for file in engine.files]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
