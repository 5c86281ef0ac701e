import json
from pathlib import Path

import pytest

from tests.bench.toy import toy_file
from tests.cli.running import Run

PROFILE = ("--profile", "small:rows=1,columns=2-4-8")


def test_bundles_are_merged_and_verdicts_obeyed(run: Run, tmp_path: Path) -> None:
    file, part, verdict = toy_file(tmp_path), str(tmp_path / "part"), str(tmp_path / "verdict.json")
    built = run("build", str(file), *PROFILE, "--store", part, "--verdict", verdict, "--json")
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    told = json.loads(Path(verdict).read_text())
    assert told == {"model": str(file), "target": "cpu", "passed": True, "reason": "", "bundle": manifest["key"]}
    store = ("--store", str(tmp_path / "all"))
    merged = run("bundle", "merge", part, "--verdict", verdict, "--require", "cpu", *store, "--json")
    assert json.loads(merged.out)["parts"] == manifest["parts"], merged.err
    shown = run("bundle", "merge", part, *store)
    assert f"Next: aula inspect {manifest['key']} --store" in shown.out
    missing = run("bundle", "merge", part, "--require", "cpu,sm75", *store)
    assert (missing.code, "sm75 is asked for" in missing.err) == (5, True)
    assert run("bundle", "merge", part, "--require", "sm13", *store).code == 5
    assert run("bundle", "merge", *store).code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("no-such.onnx",), 5, "no-such.onnx"),
        (("minilm", "--store", "nothing://x"), 9, "nothing://x"),
        (("minilm", "--precision", "fp16"), 5, "no precision fp16"),
    ],
)
def test_a_verdict_says_why_a_build_failed_and_merge_refuses(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    place = tmp_path / "sub" / "verdict.json"
    assert run("build", *arguments, "--verdict", str(place)).code == code
    told = json.loads(place.read_text())
    assert not told["passed"]
    assert reason in told["reason"]
    refused = run("bundle", "merge", "--verdict", str(place), "--store", str(tmp_path))
    assert refused.code == 5
    assert reason in refused.err
    place.unlink()
    assert run("bundle", "merge", "--verdict", str(place), "--store", str(tmp_path)).code == 9
