"""A store on another machine, behind an fsspec URL.

The remote says what there is: a bundle counts as built only if its manifest is there. What is read or built lies in a
folder of this machine too; files are compared with their digests when they arrive and whenever they are used again.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from aula.core.errors import BundleError, EngineError, ModelNotFoundError, StorageError, VerificationError
from aula.engine.bundle import Bundle
from aula.engine.files import check_file
from aula.engine.leftovers import named_digests
from aula.engine.manifest import Manifest, StoredFile, write_manifest
from aula.engine.store import Removed, Store, checked_manifest, files_of, record_path

_REBUILD = "build it again: aula build MODEL --rebuild"


class RemoteStore(Store):
    """Without the network, building is refused, and `open` gives what was fetched before."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(folder)
        self._url = url
        with remote_errors(url):
            import fsspec

            self._system, root = fsspec.core.url_to_fs(url)
            self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def find(self, key: str) -> Bundle | None:
        """The remote's bundle, brought here. One that is whole here, but absent or not whole there, goes there first:
        what a builder is told was found, others find too."""
        with contextlib.suppress(BundleError, VerificationError):
            manifest = self._manifest(key)
            if all(self._is_there(file) for file in files_of(manifest)):
                return self._fetch(manifest)
        bundle = super().find(key)
        if bundle is not None:
            self._upload(bundle.manifest)
        return bundle

    def open(self, name: str) -> Bundle:
        """As in a folder. Where the remote cannot be reached, what was fetched before counts."""
        try:
            return super().open(name)
        except StorageError:
            here = Store(self.folder)
            if not any(bundle.manifest.name == name or bundle.manifest.key == name for bundle in here.all()):
                raise
            return here.open(name)

    def publish(self, manifest: Manifest) -> Bundle:
        """Publish here, then there. Every file is sent, even where one of its size lies there already: few file
        systems could tell whether its bytes are right."""
        bundle = super().publish(manifest)
        self._upload(manifest)
        return bundle

    def _upload(self, manifest: Manifest) -> None:
        with remote_errors(self._url):
            for folder in ("bundles", "files"):
                self._system.makedirs(f"{self._root}/{folder}", exist_ok=True)
            for file in files_of(manifest):
                self._system.put_file(str(self.files / file.name), f"{self._root}/files/{file.name}")
            # The manifest comes last: it is what makes the bundle visible.
            self._system.pipe_file(f"{self._root}/bundles/{manifest.key}.json", write_manifest(manifest))

    def _fetch(self, manifest: Manifest) -> Bundle:
        """Bring a bundle here. Raises VerificationError for bytes that are not what was proven."""
        with self.draft() as draft:
            for file in files_of(manifest):
                if self.is_intact(file):
                    continue
                with remote_errors(self._url), _absent(f"engine file {file.name} is missing from {self._url}"):
                    self._system.get_file(f"{self._root}/files/{file.name}", str(draft / file.name))
                check_file(draft, file)
                self.add_file(draft / file.name)
        return self._publish(manifest)

    def _written(self) -> dict[str, float]:
        with remote_errors(self._url):
            self._system.invalidate_cache()  # others write there too
            folder = f"{self._root}/bundles"
            listed: list[dict[str, Any]] = self._system.ls(folder, detail=True) if self._system.exists(folder) else []
        names = {str(entry["name"]).rpartition("/")[2]: entry for entry in listed}
        return {
            name.removesuffix(".json"): _moment(entry)
            for name, entry in names.items()
            if name.endswith(".json") and not name.startswith(".")
        }

    def _manifest(self, key: str) -> Manifest:
        there = f"{self._root}/{record_path(self.bundles, key).relative_to(self.folder).as_posix()}"
        with remote_errors(self._url), _absent(f"there is no bundle {key} in {self._url}"):
            content = self._system.cat_file(there)
        return checked_manifest(content, key)

    def _open(self, key: str) -> Bundle:
        return self._fetch(self._manifest(key))

    def _is_there(self, file: StoredFile) -> bool:
        there = f"{self._root}/files/{file.name}"
        with remote_errors(self._url):
            return bool(self._system.exists(there)) and self._system.size(there) == file.bytes

    def _remove(self, key: str) -> Removed:
        """There and here; the bytes are the remote's."""
        freed = 0
        with remote_errors(self._url):
            path = f"{self._root}/bundles/{key}.json"
            unneeded = named_digests([self._system.cat_file(path)]) or set()
            self._system.rm_file(path)
            others = [self._system.cat_file(f"{self._root}/bundles/{other}.json") for other in self._written()]
            named = named_digests(others)
            files = f"{self._root}/files"
            listed = self._system.ls(files, detail=True) if named is not None and self._system.exists(files) else []
            for entry in listed:
                digest = str(entry["name"]).rpartition("/")[2].partition(".")[0]
                if digest in unneeded and digest not in (named or ()):
                    self._system.rm_file(entry["name"])
                    freed += int(entry.get("size") or 0)
        with contextlib.suppress(ModelNotFoundError):
            Store(self.folder).remove(key)
        return Removed(key, freed)


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
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


@contextlib.contextmanager
def _absent(what: str) -> Iterator[None]:
    """What is not there is no fault of the network."""
    try:
        yield
    except FileNotFoundError as error:
        raise VerificationError(what, next_step=_REBUILD) from error


def _moment(entry: dict[str, Any]) -> float:
    """When it was written, in seconds; file systems call it differently, and some do not tell."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified", "created"):
        moment = entry.get(name)
        if isinstance(moment, int | float):
            return float(moment)
        if isinstance(moment, datetime):
            return moment.timestamp()
    return 0.0
