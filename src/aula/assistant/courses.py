"""Courses: what the assistant knows, each in one SQLite file.

One file a course, because then adding is "write a new file, put it in the old one's place": an interrupt, a full
disk or another process can never leave half a course, readers need no lock, and a course can be copied or removed
as a file.
"""

import hashlib
import os
import re
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from aula.assistant.concepts import prerequisite_graph
from aula.assistant.course import Course, CourseInfo, DocumentInfo, embedded_text, index_passages
from aula.assistant.course_file import BUILDER, read_course, read_info, write_course
from aula.assistant.documents import COURSE_FILE, Document, is_folder, read_documents
from aula.assistant.formats import clean_label
from aula.assistant.passages import Passage, cut_passages
from aula.core.errors import CourseEmptyError, CourseError, CourseNotFoundError, StorageError
from aula.core.types import Float32

__all__ = ["Course", "CourseInfo", "CourseLibrary", "DocumentInfo", "Embed", "Progress", "slug"]

SUFFIX = ".course"
EMBED_BATCH = 32

Embed = Callable[[Sequence[str]], Float32]
"""Texts to float32 [n, d], unit rows."""
Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


class CourseLibrary:
    """The courses in a folder. Safe with other processes adding, removing and loading at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        path: Path,
        name: str | None = None,
        *,
        title: str | None = None,
        language: str | None = None,
        embed: Embed | None = None,
        embedder: str = "",
        embeds: frozenset[str] = frozenset({"en"}),
        progress: Progress | None = None,
        skip_bad: bool = False,
    ) -> CourseInfo:
        """Read, cut, embed and index `path`; a course of that name is replaced as a whole at the very end.

        `embed` is asked only for passages in the languages of `embeds`. Raises CourseError (a bad name, unknown
        or circular prerequisites), DocumentError, CourseEmptyError, UnsupportedLanguageError and StorageError;
        after any of them, and after an interrupt, the old course is as it was.
        """
        report = progress or _no_progress
        if name is None:
            # Only a file has a suffix: the folder dir.v1.2 is not the dir.v1 of a kind ".2".
            name = slug(path.resolve().name if is_folder(path) else path.resolve().stem)
        else:
            name = slug(name, exact=True)
        report("reading", 0.0)
        reading = read_documents(path, language=language, skip_bad=skip_bad)
        prerequisites = prerequisite_graph(reading.documents)
        passages = tuple(passage for document in reading.documents for passage in cut_passages(document))
        if not passages:
            raise CourseEmptyError(f"{path} holds no passage", next_step="write some sentences into it")
        report("indexing", 0.05)
        vectors = _embed(passages, embed, embeds, report)
        arrays = index_passages(passages) | {"vectors": vectors}
        info = _describe(name, title, language, reading.documents, passages, prerequisites)
        info = replace(info, embedder=embedder if vectors.shape[1] else "", skipped=reading.skipped)
        info = replace(info, version=_version(info, reading.documents))
        report("storing", 0.98)
        self._write(info, passages, arrays)
        report("done", 1.0)
        return self.show(name)

    def list(self) -> tuple[CourseInfo, ...]:
        """Every course by name; a damaged one too, with the reason in `damage`."""
        found = []
        for name in self._names():
            try:
                found.append(self.show(name))
            except CourseNotFoundError:
                continue  # removed a moment ago
            except StorageError as error:
                found.append(CourseInfo(name, name, damage=error.what))
        return tuple(found)

    def show(self, name: str) -> CourseInfo:
        """Raises CourseNotFoundError and StorageError."""
        with self._open(name) as database:
            return self._info(name, database)

    def load(self, name: str) -> Course:
        """Everything a Retriever needs, in memory. Raises CourseNotFoundError and StorageError."""
        with self._open(name) as database:
            return read_course(database, self._info(name, database))

    def remove(self, name: str) -> None:
        """Raises CourseNotFoundError and StorageError."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise self._not_found(name) from None
        except OSError as error:
            raise _storage(f"the course {name} cannot be removed", error) from error

    def _path(self, name: str) -> Path:
        if not _SLUG.fullmatch(name):
            raise self._not_found(name)
        return self.folder / (name + SUFFIX)

    def _names(self) -> Sequence[str]:
        try:
            # Not glob, which takes a folder that cannot be read for an empty one.
            paths = [path for path in self.folder.iterdir() if path.suffix == SUFFIX]
            return sorted(path.stem for path in paths if _SLUG.fullmatch(path.stem))
        except FileNotFoundError:
            return []  # nothing was added yet
        except OSError as error:
            raise _storage(f"the courses in {self.folder} cannot be listed", error) from error

    def _not_found(self, name: str) -> CourseNotFoundError:
        names = self._names()
        return CourseNotFoundError(
            f"there is no course {name!r}" + ("" if names else ", nor any other yet"),
            available=names,
            next_step="choose one of these, or add it from a folder of documents",
        )

    @contextmanager
    def _open(self, name: str) -> Iterator[sqlite3.Connection]:
        path = self._path(name)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise self._not_found(name)
        except FileNotFoundError:
            raise self._not_found(name) from None
        except OSError as error:
            raise _storage(f"the course {name} cannot be read", error) from error
        try:
            # No file changes after it took its name, so SQLite needs neither locks nor a journal beside it.
            uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
            with closing(sqlite3.connect(uri, uri=True)) as database:
                yield database
        except FileNotFoundError:
            raise self._not_found(name) from None
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"the course {name} is damaged or cannot be read ({error})",
                next_step="add it again from its documents, or remove it",
            ) from error

    def _info(self, name: str, database: sqlite3.Connection) -> CourseInfo:
        return read_info(database, name, self._path(name).stat().st_mtime)

    def _write(self, info: CourseInfo, passages: Sequence[Passage], arrays: Mapping[str, NDArray[Any]]) -> None:
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=f".{info.name}-", suffix=".part", dir=self.folder)
            os.close(handle)
            temporary = Path(part)
            with closing(sqlite3.connect(temporary)) as database:
                write_course(database, info, passages, arrays)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(self._path(info.name))
            temporary = None
        except (sqlite3.Error, OSError) as error:
            raise _storage(f"the course {info.name} cannot be stored in {self.folder}", error) from error
        finally:
            if temporary is not None:
                with suppress(OSError):
                    temporary.unlink()


_SLUG = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def _no_progress(_what: str, _share: float) -> None:
    pass


def slug(name: str, *, exact: bool = False) -> str:
    """`name` as a course is called: words of letters and digits, joined by hyphens, in lower case.

    With `exact` a name that would have to change is refused. Raises CourseError.
    """
    made = "-".join(re.findall(r"[^\W_]+", name.lower()))[:64].rstrip("-")
    if not made or (exact and made != name):
        raise CourseError(
            f"{name!r} cannot name a course",
            available=[made] if made else (),
            next_step="use lower-case letters, digits and single hyphens, such as mechanics-en",
        )
    return made


def _embed(passages: Sequence[Passage], embed: Embed | None, embeds: frozenset[str], report: Progress) -> Float32:
    known = [number for number, passage in enumerate(passages) if passage.language in embeds]
    if embed is None or not known:
        return np.zeros((len(passages), 0), dtype=np.float32)
    vectors: Float32 | None = None
    for start in range(0, len(known), EMBED_BATCH):
        rows = known[start : start + EMBED_BATCH]
        made = np.asarray(embed([embedded_text(passages[row]) for row in rows]), dtype=np.float32)
        if vectors is None:
            vectors = np.zeros((len(passages), made.shape[1]), dtype=np.float32)
        vectors[rows] = made
        report("embedding", 0.1 + 0.85 * (start + len(rows)) / len(known))
    assert vectors is not None
    return vectors


def _describe(
    name: str,
    title: str | None,
    language: str | None,
    documents: Sequence[Document],
    passages: Sequence[Passage],
    prerequisites: Mapping[str, tuple[str, ...]],
) -> CourseInfo:
    main = next((document for document in documents if document.name == COURSE_FILE), None)
    main = main or (documents[0] if len(documents) == 1 else None)
    spoken = [passage.language for passage in passages]
    counts = {document.name: 0 for document in documents}
    for passage in passages:
        counts[passage.document] += 1
    return CourseInfo(
        name=name,
        title=clean_label(title or "") or (main.title if main else name.replace("-", " ")),
        language=language or (main.language if main else max(sorted(set(spoken)), key=spoken.count)),
        description=main.description if main else "",
        passages=len(passages),
        documents=tuple(
            DocumentInfo(
                document.name,
                document.title,
                document.language,
                counts[document.name],
                document.concepts,
                document.prerequisites,
            )
            for document in documents
        ),
        prerequisites=prerequisites,
    )


def _version(info: CourseInfo, documents: Sequence[Document]) -> str:
    """Names the content and everything that shaped its index; equal inputs give equal versions."""
    digest = hashlib.sha256(f"{BUILDER}\0{info.title}\0{info.language}\0{info.embedder}".encode())
    for document in documents:
        digest.update(repr(document).encode())
    return digest.hexdigest()[:16]


def _storage(what: str, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(
        f"{what} ({reason})",
        next_step="free some space, mend the folder's permissions, or choose another home in the settings",
    )
