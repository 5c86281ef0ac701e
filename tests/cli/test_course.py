import json
import os
from pathlib import Path

import pytest

from tests.cli.running import Run

COURSE = "---\ntitle: Bicycles\nlanguage: en\n---\n## Spokes\n\nA spoke is a thin rod that joins the rim to the hub.\n"


@pytest.mark.usefixtures("models")
def test_a_course_is_added_listed_shown_and_removed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bicycles.md").write_text(COURSE, encoding="utf-8")
    added = run("course", "add", str(tmp_path / "bicycles.md"), "--json")
    assert added.code == 0, added.err
    assert json.loads(added.out)["name"] == "bicycles"
    listed = run("course", "list")
    assert "bicycles" in listed.out
    shown = json.loads(run("course", "show", "bicycles", "--json").out)
    assert (shown["title"], shown["passages"], shown["embedder"]) == ("Bicycles", 1, "minilm")
    assert "Bicycles" in run("course", "show", "bicycles").out
    assert run("course", "remove", "bicycles").code == 0
    gone = run("course", "show", "bicycles")
    assert gone.code == 4
    assert "Next:" in gone.err


def test_the_packs_that_come_with_aula_are_listed(run: Run) -> None:
    ended = run("course", "list", "--json")
    listed = json.loads(ended.out)
    assert {"mechanics-en", "mechanics-zh"} <= {*listed["packs"], *(info["name"] for info in listed["courses"])}


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.md", b""), ("binary.md", bytes(range(256)) * 20), ("sheet.xyz", b"data"), ("broken.pdf", b"%PDF-1.4 no")],
)
def test_documents_that_cannot_be_read_end_with_4(run: Run, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    ended = run("course", "add", str(path), "--json")
    assert ended.code == 4, ended
    error = json.loads(ended.out)["error"]
    assert error["next_step"]
    assert name in ended.err


def test_a_missing_path_and_an_empty_folder(run: Run, tmp_path: Path) -> None:
    assert run("course", "add", str(tmp_path / "absent")).code in (3, 4)
    (tmp_path / "void").mkdir()
    assert run("course", "add", str(tmp_path / "void")).code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_document_without_permission(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "secret.md"
    path.write_text(COURSE)
    path.chmod(0)
    assert run("course", "add", str(path)).code in (4, 9)


@pytest.mark.parametrize("name", ["../escape", "UPPER", "a/b", "", ".hidden"])
def test_names_that_are_no_names_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "course.md").write_text(COURSE)
    assert run("course", "add", str(tmp_path / "course.md"), "--name", name).code == 4
    assert run("course", "remove", name).code == 4
