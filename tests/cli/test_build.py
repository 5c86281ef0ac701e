import json
from pathlib import Path

import pytest

from tests.cli.running import Run

pytestmark = pytest.mark.usefixtures("models")


def test_an_engine_is_built_found_again_inspected_and_verified(run: Run) -> None:
    built = run("build", "minilm", "--json")
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    engine = manifest["parts"]["model"]["engines"]["cpu"]
    assert (manifest["name"], engine["precision"]) == ("minilm", "fp32")
    assert engine["graph"]["operations"] > 1e8
    assert json.loads(run("build", "minilm", "--json").out) == manifest
    shown = run("inspect", manifest["key"])
    assert "← chosen" in shown.out
    assert json.loads(run("inspect", manifest["key"], "--json").out) == manifest
    verdict = json.loads(run("verify", manifest["key"], "--json").out)
    assert verdict["passed"]
    assert verdict["parts"][0]["relative_error"] < 1e-4
    assert manifest["key"] in run("inspect").out
    assert manifest["key"] in json.loads(run("inspect", "--json").out)["bundles"]


def test_an_engine_that_was_changed_fails_its_verification(run: Run, tmp_path: Path) -> None:
    manifest = json.loads(run("build", "minilm", "--json", "--store", str(tmp_path / "store")).out)
    file = manifest["parts"]["model"]["engines"]["cpu"]["files"][0]
    model = Path(manifest["files"]) / (file["digest"] + file["suffix"])
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    for command in ("verify", "inspect"):
        ended = run(command, "minilm", "--store", str(tmp_path / "store"))
        assert ended.code == 5
        assert "has changed since it was proven" in ended.err


def test_a_profile_of_ones_own_and_one_that_is_wrong(run: Run, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    built = run("build", "minilm", "--profile", "short:batch=1,sequence=2-8-8", *store, "--json")
    assert built.code == 0, built.err
    part = json.loads(built.out)["parts"]["model"]
    assert part["profiles"] == {"short": {"batch": [1, 1, 1], "sequence": [2, 8, 8]}}
    assert part["engines"]["cpu"]["candidates"][0]["milliseconds"].keys() == {"short"}
    wrong = run("build", "minilm", "--profile", "short:batch=1,sequence=9-8-7", *store)
    assert wrong.code == 5
    assert "sequence=9-8-7" in wrong.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "no-such-model"),
        ("build", "no-such-file.onnx"),
        ("inspect", "no-such-engine"),
        ("verify", "no-such-engine"),
    ],
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
