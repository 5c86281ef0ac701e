"""Files and folders read as documents."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aula.assistant.formats import BESIDE, READERS, Part, clean, clean_label, read_parts
from aula.assistant.languages import SERVED, detect_language
from aula.core.errors import CourseEmptyError, DocumentError, UnsupportedLanguageError

COURSE_FILE = "course.md"
"""The document whose title and description are the whole course's."""


@dataclass(frozen=True, slots=True)
class Document:
    """One file as read. `name` is its path inside what was added, with "/"; `language` a BCP-47 primary tag."""

    name: str
    title: str
    language: str
    parts: tuple[Part, ...]
    concepts: tuple[str, ...] = ()
    prerequisites: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """`skipped`: what could not be read and was to be left out, as (name, why)."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def read_documents(path: Path, *, language: str | None = None, skip_bad: bool = False) -> Reading:
    """Read a file, or a folder with all below it in sorted order; hidden files are passed over.

    `language` overrules what a document's front matter or its script says. Raises DocumentError naming every
    file that cannot be read (with `skip_bad` they are left out and reported instead), CourseEmptyError where
    nothing is left, and UnsupportedLanguageError for a text that is neither English nor Chinese.
    """
    if not is_folder(path):
        return Reading((_read_document(path, path.name, language),))
    documents: list[Document] = []
    bad: list[tuple[str, DocumentError | UnsupportedLanguageError]] = []

    def unreadable(error: OSError) -> None:
        below = Path(error.filename)
        if below == path:
            raise _unreachable(path, error) from error
        bad.append((shown(below.relative_to(path).as_posix()), _unreachable(below, error)))

    for file in _files_below(path, unreadable):
        name = file.relative_to(path).as_posix()
        try:
            documents.append(_read_document(file, name, language))
        except (DocumentError, UnsupportedLanguageError) as error:
            bad.append((shown(name), error))
    if bad and not skip_bad:
        raise _all_bad(path, bad)
    if not documents:
        raise CourseEmptyError(
            f"{path} holds no document that can be read",
            available=sorted(READERS),
            next_step="put lessons of these kinds into the folder",
        )
    return Reading(tuple(documents), tuple((name, error.what) for name, error in bad))


def is_folder(path: Path) -> bool:
    """Raises DocumentError where there is nothing at `path`, or nothing that can be looked at."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DocumentError(
            f"{shown(str(path))} does not exist", next_step="correct the path to the file or folder"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreachable(path, error) from error


def shown(name: str) -> str:
    """A file's name as it can be printed and stored: every character that cannot be is escaped."""
    return name if clean_label(name) == name else ascii(name)[1:-1]


def _unreachable(path: Path, error: OSError | ValueError) -> DocumentError:
    return DocumentError(
        f"{shown(str(path))} cannot be read ({getattr(error, 'strerror', None) or error})",
        next_step="mend its permissions or the path",
    )


def _all_bad(path: Path, bad: list[tuple[str, Any]]) -> DocumentError:
    if len(bad) == 1:
        name, error = bad[0]
        what = error.what if name in error.what else f"{name}: {error.what}"
        return DocumentError(what, available=error.available, next_step=f"{error.next_step}; or skip bad files")
    listed = "; ".join(error.what if name in error.what else f"{name}: {error.what}" for name, error in bad)
    return DocumentError(
        f"{len(bad)} files in {path} cannot be read: {listed}", next_step="mend them, or skip bad files"
    )


def _files_below(folder: Path, unreadable: Callable[[OSError], None]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith((".", "~$")) and Path(name).suffix.lower() not in BESIDE:
                yield Path(root) / name


def _read_document(path: Path, name: str, language: str | None) -> Document:
    if clean(name) != name:
        raise DocumentError(
            f"the file name {shown(name)} holds bytes or characters that cannot be shown",
            next_step="rename the file with letters, digits and hyphens",
        )
    parts = read_parts(path)
    front: dict[str, Any] = {}
    if path.suffix.lower() in (".md", ".markdown"):
        front, body = split_front_matter(path.name, parts[0].text)
        parts = [Part(body)]
        if not re.search(r"\w", body):
            raise DocumentError(f"{path.name} is empty below its front matter", next_step="write the lesson below it")
    heading = next(
        (match[1] for part in parts if part.markdown and (match := re.search(r"^# +(.+)$", part.text, re.M))), None
    )
    title = front.get("title") or heading or re.sub(r"^\d+[-_ ]*|[-_]+", " ", path.stem).strip() or path.stem
    return Document(
        name=name,
        title=clean_label(str(title)),
        language=language or front.get("language") or _language(path, parts),
        parts=tuple(parts),
        concepts=tuple(map(clean_label, front.get("concepts") or ())),
        prerequisites=tuple(map(clean_label, front.get("prerequisites") or ())),
        description=clean(str(front.get("description") or "")).strip(),
    )


def _language(path: Path, parts: list[Part]) -> str:
    found = detect_language(" ".join(part.text[:4000] for part in parts[:20]))
    if found == "und":
        return "en"  # figures and formulas only
    if found not in SERVED:
        raise UnsupportedLanguageError(
            f"{path.name} is written in a script that is not served ({found})",
            available=SERVED,
            next_step="add a translation in one of these, or name the language if this was misjudged",
        )
    return found


_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def split_front_matter(name: str, text: str) -> tuple[dict[str, Any], str]:
    """The YAML between two lines of ---, checked, and what follows; ({}, text) where there is none."""
    match = _FRONT.match(text)
    if match is None:
        if re.match(r"---[ \t]*\n\w+[ \t]*:", text):
            raise _bad_front(name, 1, "opens front matter that no line of --- closes")
        return {}, text
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 2
        raise _bad_front(name, line, getattr(error, "problem", None) or "is not YAML") from error
    except Exception as error:  # what int(), date() and the like raise, and RecursionError, come through PyYAML as is
        raise _bad_front(name, 2, f"holds a value that cannot be read ({error})") from error
    if front is None:
        return {}, text[match.end() :]
    if not isinstance(front, dict):
        raise _bad_front(name, 2, "is not a list of `name: value` lines")
    for key in ("title", "description", "language"):
        if key in front and not isinstance(front[key], (str, int, float)):
            raise _bad_front(name, _line_of(key, text), f"{key} must be text")
    for key in ("concepts", "prerequisites"):
        values = front.get(key)
        if values is not None and not (
            isinstance(values, list) and all(isinstance(value, str) and clean_label(value) for value in values)
        ):
            raise _bad_front(name, _line_of(key, text), f"{key} must be a list of names, like [force, mass]")
    language = front.get("language")
    if language is not None:
        front["language"] = str(language).lower().partition("-")[0]
        if front["language"] not in SERVED:
            raise _bad_front(
                name, _line_of("language", text), f"language {language!r} is not one of {', '.join(SERVED)}"
            )
    return front, text[match.end() :]


def _line_of(key: str, text: str) -> int:
    return next((n for n, line in enumerate(text.split("\n"), 1) if line.lstrip().startswith(key)), 2)


def _bad_front(name: str, line: int, problem: str) -> DocumentError:
    return DocumentError(
        f"the front matter of {name} is wrong at line {line}: {problem}",
        next_step='write lines like `title: Motion` and `concepts: [speed, "velocity"]` between two lines of ---',
    )
