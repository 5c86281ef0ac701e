import json
from pathlib import Path

import pytest

from tests.cli.running import Run

pytestmark = pytest.mark.usefixtures("models")


def test_an_engine_is_built_found_again_inspected_and_verified(run: Run) -> None:
    built = run("build", "minilm", "--json")
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    assert (manifest["name"], manifest["target"], manifest["precision"]) == ("minilm", "cpu", "fp32")
    assert json.loads(run("build", "minilm", "--json").out) == manifest
    shown = run("inspect", manifest["key"])
    assert "← chosen" in shown.out
    assert json.loads(run("inspect", manifest["key"], "--json").out) == manifest
    verdict = json.loads(run("verify", manifest["key"], "--json").out)
    assert verdict["passed"]
    assert verdict["relative_error"] < 1e-4
    assert 0.8 < verdict["metric"] <= 1


def test_an_engine_that_was_changed_fails_its_verification(run: Run, tmp_path: Path) -> None:
    manifest = json.loads(run("build", "minilm", "--json", "--store", str(tmp_path / "store")).out)
    model = Path(manifest["folder"]) / manifest["model"]
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    ended = run("verify", "minilm", "--store", str(tmp_path / "store"))
    assert ended.code == 5
    assert "has changed since it was proven" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [("build", "no-such-model"), ("inspect", "no-such-engine"), ("verify", "no-such-engine")],
)
def test_what_is_not_there_ends_with_5_and_says_what_is(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.code == 5
    assert "Next:" in ended.err


@pytest.mark.parametrize("content", [b"", b"no tab here\n", b"\xff\xfe\x00", b"a\tone\n" * 30])
def test_labelled_data_that_is_none_ends_with_5(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labelled.tsv"
    path.write_bytes(content)
    ended = run("build", "minilm", "--precision", "int8", "--labelled", str(path))
    assert ended.code == 5
    assert "labelled.tsv" in ended.err
