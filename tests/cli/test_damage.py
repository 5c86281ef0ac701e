"""What lies in the home may be damaged or unwritable: it heals, or ends with a clear message and the right code."""

import json
from pathlib import Path

import pytest

from tests.cli.running import Run

pytestmark = pytest.mark.usefixtures("models")

COURSE = "---\ntitle: '[/x] [red]tea'\nlanguage: en\n---\n## Tea\n\nTea is a drink made from leaves in hot water.\n"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_engine_is_built_again(run: Run, home: Path) -> None:
    assert run("ask", "--text", "What is inertia?", "--json").code == 0
    models = list((home / "engines" / "files").glob("*.onnx"))
    assert models
    for model in models:
        _flip(model)
    ended = run("ask", "--text", "What is inertia?", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["citations"]


def test_a_damaged_pack_is_added_again(run: Run, home: Path) -> None:
    assert run("ask", "--text", "What is inertia?", "--json").code == 0
    path = home / "courses" / "mechanics-en.course"
    path.write_bytes(path.read_bytes()[:5000])
    ended = run("ask", "--text", "What is inertia?", "--json")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("edit", [('"threads": ', '"threads": "x", "was": '), ('"backend": "', '"backend": "no-')])
def test_a_manifest_of_nonsense_counts_as_absent(run: Run, home: Path, edit: tuple[str, str]) -> None:
    assert run("build", "minilm", "--json").code == 0
    for manifest in (home / "engines" / "bundles").glob("minilm-*.json"):
        manifest.write_text(manifest.read_text().replace(*edit, 1))
    assert run("build", "minilm", "--json").code == 0


def test_a_title_that_looks_like_markup_is_a_title(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tea.md").write_text(COURSE, encoding="utf-8")
    assert run("course", "add", str(tmp_path / "tea.md")).code == 0
    assert "[/x] [red]tea" in run("course", "list").out
    assert "[/x] [red]tea" in run("course", "show", "tea").out
    assert run("course", "remove", "tea").code == 0


def test_a_voice_that_does_not_exist_is_a_bad_setting(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AULA_SPEECH_VOICE_EN", "klingon")
    ended = run("ask", "--text", "What is power?", "--out", str(tmp_path / "answer.wav"))
    assert ended.code == 2
    assert "klingon" in ended.err
    assert not (tmp_path / "answer.wav").exists()


def test_a_home_that_cannot_be_written_ends_with_9(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("AULA_HOME", str(tmp_path / "file" / "home"))
    ended = run("ask", "--text", "What is inertia?")
    assert ended.code == 9, ended
    assert ended.err.count("Next:") == 1


def test_what_needs_no_model_is_judged_before_any_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AULA_HOME", str(tmp_path / "untouched"))
    assert run("ask", "--text", " ?! ").code == 3
    assert run("ask", str(tmp_path / "absent.wav")).code == 3
    assert run("ask", "--text", "What is inertia?", "--out", str(tmp_path / "no" / "a.wav")).code == 9
    assert not (tmp_path / "untouched").exists()


def test_a_pack_that_was_never_asked_is_explained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AULA_HOME", str(tmp_path / "fresh"))
    for command in ("show", "remove"):
        ended = run("course", command, "mechanics-en")
        assert ended.code == 4
        assert "comes with aula" in ended.err
