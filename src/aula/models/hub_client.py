"""What aula asks a Hugging Face hub: the files of a commit, and one file's bytes from where they broke off.

`hf_hub_download` of huggingface_hub 2 throws away what an interrupted process had fetched, so the bytes are streamed
here, over that library's own client, headers and errors. Files come over plain HTTP with ranges, which mirrors serve
as well as the hub itself.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from aula import __version__
from aula.core.errors import AulaError, DownloadError, ModelNotFoundError, SettingsError, StorageError

PUBLIC_HUB = "https://huggingface.co"
MIRROR = "https://hf-mirror.com"
"""A mirror of the hub that can be reached from mainland China."""

_MOST_BREAKS = 16
"""How often one file goes on by itself after its connection broke off."""
_LOGIN = "log in (hf auth login) or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit. `size` in bytes; `digest` is the SHA-256 of its bytes or, with 40 digits, Git's SHA-1 of it;
    None where the hub does not tell."""

    path: str
    size: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """`sha` is the whole commit digest, 40 hexadecimal digits."""

    sha: str
    files: tuple[HubFile, ...]


class Hub:
    """One model on the hub that HF_ENDPOINT names. `without_network` is the next step where it cannot be reached."""

    def __init__(self, model: str, without_network: str) -> None:
        self.model = model
        self.endpoint = _endpoint()
        self._without_network = without_network
        self._library = _import_library()

    def find_commit(self, revision: str | None) -> Commit:
        """The commit that a branch, a tag or part of a digest stands for now; None is the default branch.

        Raises ModelNotFoundError for an unknown model or revision, and DownloadError.
        """
        with self._failures(revision):
            library = self._library
            api = library.HfApi(endpoint=self.endpoint, library_name="aula", library_version=__version__)
            seconds = library.constants.HF_HUB_DOWNLOAD_TIMEOUT
            try:
                info = api.model_info(self.model, revision=revision, files_metadata=True, timeout=seconds)
                commit = Commit(str(info.sha), tuple(_hub_file(sibling) for sibling in info.siblings))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, library.errors.HfHubHTTPError):
                    raise
                raise self._not_a_hub(_brief(error)) from error
            if not re.fullmatch("[0-9a-f]{40}", commit.sha):
                raise self._not_a_hub(f"a commit {commit.sha[:60]!r}")
            return commit

    def fetch(self, sha: str, file: HubFile, target: Path, report: Callable[[int], None]) -> None:
        """Bring the file to `target`, going on where an earlier attempt left `target` + ".partial". `report` is told
        the bytes that are there. Raises DownloadError and StorageError; what came stays for the next attempt."""
        partial = target.with_name(target.name + ".partial")
        with self._failures(sha):
            target.parent.mkdir(parents=True, exist_ok=True)
            resumed = partial.exists()
            promised = self._complete(sha, file, partial, report)
            if not is_intact(partial, promised):
                partial.unlink()
                if resumed:
                    # What the earlier attempt left may have been damaged since.
                    promised = self._complete(sha, file, partial, report)
                if not resumed or not is_intact(partial, promised):
                    partial.unlink(missing_ok=True)
                    raise DownloadError(
                        f"{file.path} of {self.model} came with other bytes than {self.endpoint} promises",
                        next_step="run it again; if it stays so, try without the mirror or proxy in between",
                    )
            partial.replace(target)

    def _complete(self, sha: str, file: HubFile, partial: Path, report: Callable[[int], None]) -> HubFile:
        """Stream until all is there, anew after each break that came with progress. Returns what the hub promises."""
        for left in range(_MOST_BREAKS, -1, -1):
            before = _length(partial)
            try:
                return self._append(sha, file, partial, report)
            except self._library.errors.HfHubHTTPError:
                # An answer, and no break: `_failures` says which.
                raise
            except _transport_error(self._library) as error:
                there = _length(partial)
                if there > before and left:
                    continue
                share = f"{there:,} of {file.size:,}" if file.size else f"{there:,}"
                raise DownloadError(
                    f"the connection to {self.endpoint} broke off in {file.path} after {share} bytes ({_brief(error)})",
                    next_step="run it again: it goes on where it stopped",
                ) from error
        raise AssertionError("the last round returns or raises")

    def _append(self, sha: str, file: HubFile, partial: Path, report: Callable[[int], None]) -> HubFile:
        start = _length(partial)
        if file.size is not None and start >= file.size:
            partial.touch()
            report(file.size)
            return file
        library = self._library
        url = library.hf_hub_url(self.model, file.path, revision=sha, endpoint=self.endpoint)
        headers = library.utils.build_hf_headers(library_name="aula", library_version=__version__)
        # Ranges count the bytes that travel, so they must be the file's own.
        headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        seconds = library.constants.HF_HUB_DOWNLOAD_TIMEOUT
        with library.utils.get_session().stream("GET", url, headers=headers, timeout=seconds) as response:
            if start and response.status_code == 416:
                partial.unlink()
                return self._append(sha, file, partial, report)
            try:
                library.utils.hf_raise_for_status(response)
            except UnicodeDecodeError as error:
                # The library reads the body of an error as JSON.
                raise self._not_a_hub(f"HTTP {response.status_code} and bytes that are no text") from error
            begins = _range_start(response.headers.get("content-range", "")) if response.status_code == 206 else 0
            if begins not in (0, start):
                raise self._not_a_hub(f"bytes from {begins} of {file.path}, where those from {start} were asked for")
            there = begins
            with partial.open("ab" if begins else "wb") as out:
                for piece in response.iter_bytes():
                    there += len(piece)
                    if file.size is not None and there > file.size:
                        raise self._not_a_hub(f"more bytes of {file.path} than it has")
                    out.write(piece)
                    report(there)
            return _promised(file, sha, response.history[0] if response.history else response)

    @contextlib.contextmanager
    def _failures(self, revision: str | None) -> Iterator[None]:
        """The library's errors and the disk's as ours."""
        errors = self._library.errors
        try:
            with _quiet(self._library):
                yield
        except AulaError:
            raise
        except errors.GatedRepoError as error:
            raise DownloadError(
                f"{self.model} is gated: its authors want their terms accepted first",
                next_step=f"accept them at {PUBLIC_HUB}/{self.model}, {_LOGIN}, and run it again",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelNotFoundError(
                f"{self.model} has no revision {revision!r}",
                next_step=f"leave --revision out, or give a branch, tag or commit of {self.endpoint}/{self.model}",
            ) from error
        except errors.HfHubHTTPError as error:
            raise self._refusal(error) from error
        except (_transport_error(self._library), errors.OfflineModeIsEnabled) as error:
            raise DownloadError(
                f"{self.endpoint} could not be reached ({_brief(error)})",
                next_step=self._without_network,
            ) from error
        except ImportError as error:
            # Without the package socksio, the client cannot use the proxy of ALL_PROXY=socks5://…
            raise DownloadError(
                f"the proxy in the environment cannot be used ({error})",
                next_step="pip install socksio, or unset ALL_PROXY, and run it again",
            ) from error
        except OSError as error:
            raise StorageError(
                f"{error.filename or 'the checkpoint'} cannot be written ({error.strerror or error})",
                next_step="free space or mend permissions, or choose another folder with AULA_HOME; "
                "what has come so far is kept",
            ) from error

    def _refusal(self, error: Any) -> AulaError:
        status = error.response.status_code
        said = f"{self.endpoint} answered with HTTP {status} for {self.model}"
        if isinstance(error, self._library.errors.EntryNotFoundError):
            return self._not_a_hub(f"it lists a file that it does not have: {error.response.url.path}")
        if isinstance(error, self._library.errors.RepositoryNotFoundError) or status == 404:
            return ModelNotFoundError(
                f"{self.endpoint} shows no model {self.model!r}: nobody has given that name, or it is private",
                next_step=f"look the name up at {PUBLIC_HUB}/models; for a private model, {_LOGIN}",
            )
        if status in (401, 403):
            return DownloadError(
                f"{said}: it does not let this token in", next_step=f"{_LOGIN} with a token that may read the model"
            )
        if status == 429:
            wait = error.response.headers.get("retry-after", "")
            pause = f"wait {wait} seconds" if re.fullmatch("[0-9]{1,6}", wait) else "wait some minutes"
            return DownloadError(
                f"{said}: too many requests", next_step=f"{pause} and run it again; more are allowed if you {_LOGIN}"
            )
        return DownloadError(said, next_step="run it again later: what has come so far is kept")

    def _not_a_hub(self, why: str) -> DownloadError:
        return DownloadError(
            f"{self.endpoint} does not answer as a hub does ({why[:200]})",
            next_step="open a web page (a network's login page may stand in between), check HF_ENDPOINT, run it again",
        )


def is_intact(path: Path, file: HubFile) -> bool:
    """Whether the bytes at `path` are what the hub promised of `file`, as far as it did. Raises OSError."""
    if not path.is_file() or (file.size is not None and _length(path) != file.size):
        return False
    if file.digest is None:
        return True
    with path.open("rb") as content:
        if len(file.digest) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.digest
        # Git puts a header before the bytes that it hashes.
        git = hashlib.sha1(b"blob %d\0" % _length(path), usedforsecurity=False)
        while piece := content.read(1 << 20):
            git.update(piece)
        return git.hexdigest() == file.digest


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or PUBLIC_HUB
    # urlsplit checks the port only when asked for it.
    with contextlib.suppress(ValueError):
        if re.fullmatch(r"https?://[\w.\[\]:-]+(/[\w./~-]*)?", endpoint, re.ASCII) and urlsplit(endpoint).port != 0:
            return endpoint
    raise SettingsError(
        f"HF_ENDPOINT is {endpoint!r}, which is no address of a hub",
        next_step=f"unset it, or set it like HF_ENDPOINT={MIRROR}",
    )


def _import_library() -> Any:
    """huggingface_hub, with its telemetry off. That it was imported earlier by somebody else makes no difference."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    # The package loads what lies in it late, and not everything by its name.
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils
    import huggingface_hub.utils.logging

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No advice on standard error between our progress bars."""
    logging = library.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _transport_error(library: Any) -> type[Exception]:
    """What the HTTP client raises. Its package has another name in huggingface_hub 1 (httpx) than in 2 (httpx2)."""
    return cast("type[Exception]", library.errors.HfHubHTTPError.__bases__[0])


def _hub_file(sibling: Any) -> HubFile:
    size, digest = sibling.size, sibling.blob_id
    if sibling.lfs:
        size, digest = sibling.lfs.size, sibling.lfs.sha256
    if type(size) is not int or size < 0:
        size = None
    return HubFile(str(sibling.rfilename), size, _digest(digest))


def _digest(value: object) -> str | None:
    """SHA-256 or Git's SHA-1; None for anything else."""
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value) else None


def _promised(file: HubFile, sha: str, response: Any) -> HubFile:
    """`file` with the digest of the hub's own answer, for mirrors whose list of files has none. Others' ETags, known
    by the missing commit, may be anything."""
    if file.digest or response.headers.get("x-repo-commit") != sha:
        return file
    etag = response.headers.get("x-linked-etag") or response.headers.get("etag", "")
    return HubFile(file.path, file.size, _digest(etag.removeprefix("W/").strip('"')))


def _brief(error: Exception) -> str:
    """One line; some of the client's errors have no text at all."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:200]


def _range_start(content_range: str) -> int:
    found = re.match(r"bytes ([0-9]{1,18})-", content_range)
    return int(found[1]) if found else -1


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
