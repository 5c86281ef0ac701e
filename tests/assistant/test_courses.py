import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aula.assistant.courses import CourseLibrary, slug
from aula.assistant.languages import terms
from aula.core.errors import (
    CourseError,
    CourseNotFoundError,
    DocumentError,
    StorageError,
)
from aula.core.types import Float32


def embed(texts: Sequence[str]) -> Float32:
    """Hashed bag of words: honest enough for tests, and the same in every process."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in enumerate(texts):
        for term in terms(text, "en"):
            vectors[row, zlib.crc32(term.encode()) % 64] += 1
    unit: Float32 = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return unit


def lesson(folder: Path, name: str, front: str = "", body: str = "## Force\n\nA force is a push or a pull.\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"---\n{front}\n---\n{body}", encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mechanics"
    lesson(folder, "course.md", "title: Mechanics\nlanguage: en\ndescription: A first course.", "How things move.\n")
    lesson(folder, "01.md", "concepts: [length]", "## Length\n\nLength is how long a thing is.\n")
    lesson(folder, "02.md", "concepts: [speed, force]\nprerequisites: [length]")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> CourseLibrary:
    return CourseLibrary(tmp_path / "courses")


def test_a_course_comes_back_as_it_was_added(library: CourseLibrary, source: Path) -> None:
    seen: list[tuple[str, float]] = []
    info = library.add(source, embed=embed, embedder="bag", progress=lambda what, share: seen.append((what, share)))
    assert (info.name, info.title, info.language, info.description) == (
        "mechanics",
        "Mechanics",
        "en",
        "A first course.",
    )
    assert info.concepts == ("length", "speed", "force")
    assert info.prerequisites["force"] == ("length",)
    course = library.load("mechanics")
    assert [passage.label for passage in course.passages] == ["Length", "Force", "Mechanics"]
    assert course.vectors.shape == (3, 64)
    assert not course.vectors.flags.writeable
    assert course.lexical.having("push").tolist() == [1]
    assert course.definitions.having("=forc").tolist() == [1]
    assert course.info == info == library.show("mechanics") == library.list()[0]
    assert seen[0] == ("reading", 0.0)
    assert seen[-1] == ("done", 1.0)
    assert [share for _, share in seen] == sorted(share for _, share in seen)


def test_the_version_names_the_content(library: CourseLibrary, source: Path) -> None:
    first = library.add(source).version
    assert library.add(source, "copy").version == first
    lesson(source, "03.md", "", "Something new.\n")
    assert library.add(source).version != first


def test_only_languages_the_embedder_knows_are_embedded(library: CourseLibrary, source: Path) -> None:
    lesson(source, "03.md", "language: zh", "力是物体间的作用。\n")
    library.add(source, embed=embed, embedder="bag")
    norms = np.linalg.norm(library.load("mechanics").vectors, axis=1)
    languages = [passage.language for passage in library.load("mechanics").passages]
    assert [norm > 0 for norm in norms.tolist()] == [language == "en" for language in languages]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_add_leaves_the_old_course(
    library: CourseLibrary, source: Path, interrupt: type[BaseException]
) -> None:
    before = library.add(source)

    def stop(texts: Sequence[str]) -> Float32:
        raise interrupt

    with pytest.raises(interrupt):
        library.add(source, embed=stop, embedder="bag")
    assert library.show("mechanics") == before
    assert [path.name for path in library.folder.iterdir()] == ["mechanics.course"]


def test_a_failed_write_leaves_the_old_course(
    library: CourseLibrary, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = library.add(source)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("aula.assistant.courses.write_course", full)
    with pytest.raises(StorageError, match="disk is full"):
        library.add(source)
    assert library.show("mechanics") == before
    assert [path.name for path in library.folder.iterdir()] == ["mechanics.course"]


def test_a_reader_keeps_its_course_while_another_replaces_it(library: CourseLibrary, source: Path) -> None:
    library.add(source)
    with library._open("mechanics") as database:
        lesson(source, "03.md", "", "Something new.\n")
        CourseLibrary(library.folder).add(source)
        assert database.execute("SELECT count(*) FROM passages").fetchone() == (3,)
    assert library.show("mechanics").passages == 4


def test_an_absent_course_names_what_there_is(library: CourseLibrary, source: Path) -> None:
    with pytest.raises(CourseNotFoundError, match="nor any other"):
        library.load("mechanics")
    library.add(source)
    for name in ("optics", "../mechanics", "", "a/b", "mechanics.course"):
        with pytest.raises(CourseNotFoundError) as caught:
            library.load(name)
        assert caught.value.available == ("mechanics",)
    with pytest.raises(CourseNotFoundError):
        library.remove("optics")


@pytest.mark.parametrize("name", ["../x", "A", "a b", "", ".", "a/b", "a--b"])
def test_a_name_must_be_a_slug(library: CourseLibrary, source: Path, name: str) -> None:
    with pytest.raises(CourseError, match="cannot name"):
        library.add(source, name)
    assert not library.folder.exists()


def test_a_name_is_made_from_the_path() -> None:
    assert (slug("My First_Course!"), slug("力学 一")) == ("my-first-course", "力学-一")


def test_removed_is_gone(library: CourseLibrary, source: Path) -> None:
    library.add(source)
    library.remove("mechanics")
    assert library.list() == ()


@pytest.mark.parametrize("damage", [b"", b"not a database at all", None])
def test_a_damaged_course_is_told_and_does_not_hide_the_others(
    library: CourseLibrary, source: Path, damage: bytes | None
) -> None:
    library.add(source)
    library.add(source, "broken")
    path = library.folder / "broken.course"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(StorageError, match="broken"):
        library.load("broken")
    path.write_bytes(b"not a database at all")
    assert [(info.name, bool(info.damage)) for info in library.list()] == [("broken", True), ("mechanics", False)]
    library.add(source, "broken")
    assert len(library.load("broken").passages) == 3


def test_a_folder_that_cannot_be_made_is_a_storage_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be stored"):
        CourseLibrary(tmp_path / "file" / "courses").add(source)


def test_an_unknown_prerequisite_is_named(library: CourseLibrary, source: Path) -> None:
    lesson(source, "03.md", "concepts: [work]\nprerequisites: [force, magic]")
    with pytest.raises(CourseError, match=r"03\.md needs .*magic"):
        library.add(source)


def test_a_circle_of_prerequisites_is_named(library: CourseLibrary, source: Path) -> None:
    lesson(source, "01.md", "concepts: [length]\nprerequisites: [force]")
    with pytest.raises(CourseError, match=r"circle: .*length.*force|circle: .*force.*length"):
        library.add(source)


def test_a_bad_document_stores_nothing_unless_skipped(library: CourseLibrary, source: Path) -> None:
    (source / "bad.md").write_bytes(b"")
    with pytest.raises(DocumentError):
        library.add(source)
    assert library.list() == ()
    assert [name for name, _ in library.add(source, skip_bad=True).skipped] == ["bad.md"]


def test_a_folder_with_dots_keeps_its_whole_name(library: CourseLibrary, tmp_path: Path) -> None:
    lesson(tmp_path / "dir.v1.2", "a.md", "language: en")
    assert library.add(tmp_path / "dir.v1.2").name == "dir-v1-2"
    assert library.add(tmp_path / "dir.v1.2" / "a.md").name == "a"


def test_a_library_that_cannot_be_read_is_not_shown_as_empty(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    blocked = CourseLibrary(tmp_path / "file")
    for action in (blocked.list, lambda: blocked.show("mechanics"), lambda: blocked.add(source)):
        with pytest.raises(StorageError):
            action()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    closed = CourseLibrary(tmp_path / "closed")
    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        closed.list()
    with pytest.raises(StorageError, match="Permission denied"):
        closed.load("mechanics")


def test_a_name_too_long_for_a_file_is_a_typed_error(library: CourseLibrary) -> None:
    with pytest.raises((StorageError, CourseNotFoundError)):
        library.show("x" * 300)
