"""`aula pull`, against a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aula.cli import main
from aula.cli.pull import pull
from tests.cli.running import Run
from tests.models.fake_hub import MODEL, SHA, FakeHub, Reply, only_this_machine, serve


@pytest.fixture
def hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setitem(main.cli.commands, "pull", pull)
    monkeypatch.setenv("AULA_HOME", str(tmp_path / "home"))
    with only_this_machine(monkeypatch), serve(FakeHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_a_pull_says_which_commit_lies_where_and_what_comes_next(run: Run, hub: FakeHub, tmp_path: Path) -> None:
    ended = run("pull", MODEL)
    folder = tmp_path / "home" / "checkpoints" / f"school--encoder@{SHA[:12]}"
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [f"{MODEL}, commit {SHA}", f"Folder: {folder}", f"Next: aula build {folder}"]
    assert (folder / "model.safetensors").is_file()


def test_json_is_one_object_and_nothing_else_is_said(run: Run, hub: FakeHub, tmp_path: Path) -> None:
    ended = run("pull", MODEL, "--revision", "v1", "--json")
    folder = tmp_path / "home" / "checkpoints" / f"school--encoder@{SHA[:12]}"
    assert json.loads(ended.out) == {"model": MODEL, "revision": SHA, "folder": str(folder)}
    assert ended.err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["school/unknown"], "shows no model"),
        ([MODEL, "--revision", "v9"], "no revision 'v9'"),
        (["../x"], "is no name"),
    ],
)
def test_what_is_unknown_ends_with_5(run: Run, hub: FakeHub, arguments: list[str], said: str) -> None:
    ended = run("pull", *arguments, "--json")
    assert ended.code == 5
    assert said in json.loads(ended.out)["error"]["message"]
    assert "Next:" in ended.err


def test_a_hub_that_is_out_of_order_ends_with_5(run: Run, hub: FakeHub) -> None:
    hub.reply = lambda path: Reply(503)
    ended = run("pull", MODEL)
    assert ended.code == 5
    assert "HTTP 503" in ended.err


def test_an_interrupted_pull_ends_with_130_and_the_next_goes_on(
    run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cuts["model.safetensors"] = [400_000, 0]
    assert run("pull", MODEL).code == 5
    hub.asked.clear()
    assert run("pull", MODEL).code == 0
    assert hub.asked[-1].headers["range"] == "bytes=400000-"


def test_the_help_tells_of_mirrors_and_tokens(run: Run, hub: FakeHub) -> None:
    shown = run("pull", "--help").out
    assert "HF_ENDPOINT=https://hf-mirror.com aula pull" in shown
    assert "HF_TOKEN" in shown
