"""A course in memory: its passages, their vectors and both indexes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.assistant.languages import terms
from aula.assistant.lexical import LexicalIndex
from aula.assistant.passages import Passage
from aula.assistant.questions import definition_keys, heading_keys
from aula.core.types import Float32

HEADING_MARK = "#"
"""Stands before a term of a passage's headings in the index, so that it can count for less than one of its text."""


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    name: str
    title: str
    language: str
    passages: int
    concepts: tuple[str, ...] = ()
    prerequisites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CourseInfo:
    """`prerequisites` has every concept of the course as a key, in the order of the documents; `version` names
    content and index together; `embedder` is "" where there are no vectors; `created` is a Unix time.
    A file that cannot be read is listed with `damage` saying why."""

    name: str
    title: str
    language: str = ""
    description: str = ""
    version: str = ""
    embedder: str = ""
    created: float = 0.0
    passages: int = 0
    documents: tuple[DocumentInfo, ...] = ()
    prerequisites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    damage: str = ""

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(self.prerequisites)


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """A loaded course. `vectors` is read-only float32 [passages, d], d = 0 without an embedder; a passage in a
    language that the embedder does not know has a row of zeros. `document_of` is int32 [passages]."""

    info: CourseInfo
    passages: tuple[Passage, ...]
    vectors: Float32
    lexical: LexicalIndex
    definitions: LexicalIndex
    document_of: NDArray[np.int32]

    @property
    def name(self) -> str:
        return self.info.name

    def vocabulary(self) -> tuple[str, ...]:
        """The course's own text for a recogniser to adapt to, one string a passage."""
        return tuple(passage.text for passage in self.passages)


def index_passages(passages: Sequence[Passage]) -> dict[str, NDArray[Any]]:
    """The arrays of both indexes over `passages`: their terms, and the keys of what they define."""
    lexical = LexicalIndex.build(
        [
            [
                *terms(p.text, p.language),
                *(HEADING_MARK + term for term in terms(". ".join(p.headings), p.language)),
            ]
            for p in passages
        ]
    )
    definitions = LexicalIndex.build(
        [sorted(definition_keys(p.text, p.language) | heading_keys(p.headings[-1], p.language)) for p in passages]
    )
    numbers: dict[str, int] = {}
    document_of = [numbers.setdefault(passage.document, len(numbers)) for passage in passages]
    return {
        **{f"lexical.{key}": array for key, array in lexical.arrays().items()},
        **{f"definitions.{key}": array for key, array in definitions.arrays().items()},
        "document_of": np.array(document_of, dtype=np.int32),
    }


def assemble(info: CourseInfo, passages: tuple[Passage, ...], arrays: Mapping[str, NDArray[Any]]) -> Course:
    """A Course from `index_passages`'s arrays and "vectors"; ValueError where they do not fit together."""

    def index(prefix: str) -> LexicalIndex:
        own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        return LexicalIndex.from_arrays(len(passages), own)

    vectors: Float32 = np.asarray(arrays["vectors"], dtype=np.float32)
    if len(vectors) != len(passages) or len(arrays["document_of"]) != len(passages) or not passages:
        raise ValueError(f"{len(passages)} passages but {len(vectors)} vectors")
    vectors.flags.writeable = False
    return Course(info, passages, vectors, index("lexical."), index("definitions."), arrays["document_of"])


def embedded_text(passage: Passage) -> str:
    """What of a passage its vector stands for."""
    return ". ".join(passage.headings) + "\n" + passage.text
