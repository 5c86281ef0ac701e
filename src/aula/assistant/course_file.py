"""One course in one SQLite file: its layout, written once and read whole.

Documents and passages are rows, for people with sqlite3; vectors and indexes are arrays in one row each, for they
are always read whole.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.assistant.course import Course, CourseInfo, DocumentInfo, assemble
from aula.assistant.passages import Passage
from aula.core.errors import StorageError

BUILDER = 1
"""Changes when passages, terms or the layout of the file do; courses of another number are added anew."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (number INTEGER PRIMARY KEY, name TEXT, title TEXT, language TEXT, passages INTEGER,
    concepts TEXT, prerequisites TEXT);
CREATE TABLE passages (number INTEGER PRIMARY KEY, document TEXT, label TEXT, headings TEXT, text TEXT,
    language TEXT);
CREATE TABLE vectors (key TEXT PRIMARY KEY, dtype TEXT, shape TEXT, data BLOB);
"""


def write_course(
    database: sqlite3.Connection,
    info: CourseInfo,
    passages: Sequence[Passage],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Fill an empty database. Raises sqlite3.Error."""
    database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_SCHEMA}")
    database.execute(f"PRAGMA user_version={BUILDER}")
    meta = {
        "title": info.title,
        "language": info.language,
        "description": info.description,
        "version": info.version,
        "embedder": info.embedder,
        "passages": info.passages,
        "prerequisites": info.prerequisites,
        "skipped": info.skipped,
    }
    database.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [(key, json.dumps(value, ensure_ascii=False)) for key, value in meta.items()],
    )
    database.executemany(
        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (n, d.name, d.title, d.language, d.passages, json.dumps(d.concepts), json.dumps(d.prerequisites))
            for n, d in enumerate(info.documents)
        ],
    )
    database.executemany(
        "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)",
        [(n, p.document, p.label, "\n".join(p.headings), p.text, p.language) for n, p in enumerate(passages)],
    )
    database.executemany(
        "INSERT INTO vectors VALUES (?, ?, ?, ?)",
        [
            (key, array.dtype.str, json.dumps(array.shape), np.ascontiguousarray(array).data)
            for key, array in arrays.items()
        ],
    )
    database.commit()


def read_info(database: sqlite3.Connection, name: str, created: float) -> CourseInfo:
    """Raises StorageError for another builder's file, and sqlite3.Error, ValueError, KeyError, TypeError for damage."""
    (builder,) = database.execute("PRAGMA user_version").fetchone()
    if builder != BUILDER:
        raise StorageError(
            f"the course {name} was made by index builder {builder}, and this is {BUILDER}",
            next_step="add it again from its documents",
        )
    meta = {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM meta")}
    documents = tuple(
        DocumentInfo(document, title, language, passages, tuple(json.loads(known)), tuple(json.loads(needed)))
        for document, title, language, passages, known, needed in database.execute(
            "SELECT name, title, language, passages, concepts, prerequisites FROM documents ORDER BY number"
        )
    )
    prerequisites = {concept: tuple(needed) for concept, needed in meta.pop("prerequisites").items()}
    skipped = tuple((file, why) for file, why in meta.pop("skipped"))
    return CourseInfo(
        name=name, created=created, documents=documents, prerequisites=prerequisites, skipped=skipped, **meta
    )


def read_course(database: sqlite3.Connection, info: CourseInfo) -> Course:
    """Raises as `read_info` does."""
    rows = database.execute("SELECT document, label, headings, text, language FROM passages ORDER BY number")
    passages = tuple(
        Passage(document, label, tuple(headings.split("\n")), text, language)
        for document, label, headings, text, language in rows
    )
    arrays = {
        key: np.frombuffer(data, dtype=dtype).reshape(json.loads(shape))
        for key, dtype, shape, data in database.execute("SELECT key, dtype, shape, data FROM vectors")
    }
    return assemble(info, passages, arrays)
