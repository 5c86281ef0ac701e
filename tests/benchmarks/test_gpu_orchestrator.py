import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.models.checkpoints import Checkpoint
from benchmarks.gpu import __main__ as orchestrator
from benchmarks.gpu import prepare as preparing
from benchmarks.gpu.children import Said, clean_environment, run_child
from benchmarks.gpu.table import ROWS

FAKE = """#!{python}
import json, os, sys
row = sys.argv[sys.argv.index("--row") + 1]
print("a library's chatter")
first = {{"row": row, "variants": {{"fp32 eager": {{"p50_ms": 4.0}}}}, "versions": {{"torch": "2.11"}}}}
first["leaked"] = [name for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ]
print(json.dumps(first))
if row == "bert-64x32":
    print("CUDA error: the card is gone", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that answers whatever it is asked to run."""
    path = tmp_path / "python-with-torch"
    path.write_text(FAKE.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(preparing, "prepare", lambda work, *, tiny: work.mkdir())
    monkeypatch.setattr(orchestrator, "QUERY", ("no-such-program",))
    return path


def test_one_run_ends_with_the_json_line(
    fake_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kept = tmp_path / "report.json"
    arguments = ["--torch-python", str(fake_torch), "--work", str(tmp_path / "work"), "--json", str(kept)]
    code = orchestrator.main([*arguments, "--rows", "bert-64x32", "bert-1x32", "--skip-ours"])
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert code == 0
    assert json.loads(kept.read_text(encoding="utf-8")) == report
    # In the table's order, and each with what was measured before its child broke.
    assert [row["row"] for row in report["rows"]] == ["bert-1x32", "bert-64x32"]
    assert report["rows"][0]["native"] == {"variant": "fp32 eager", "value": 4.0}
    assert report["rows"][1]["native"] == {"variant": "fp32 eager", "value": 16_000.0}
    assert "CUDA error: the card is gone" in printed
    assert "exit code 3" in report["rows"][1]["skipped"]["pytorch"]
    assert report["rows"][0]["skipped"] == {"ours": "--skip-ours"}
    assert report["children"]["bert-1x32"]["pytorch"]["leaked"] == []
    assert "torch 2.11" in printed


def test_nothing_measured_is_a_failure(tmp_path: Path, fake_torch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--torch-python", str(tmp_path / "nowhere"), "--work", str(tmp_path / "work"), "--skip-ours"]
    assert orchestrator.main([*arguments, "--rows", "bert-1x32"]) == 1
    assert "it cannot be started" in capsys.readouterr().out


def test_a_row_without_rivals_asks_only_ours() -> None:
    asked: list[str] = []

    def ours(row: str) -> Said:
        asked.append(row)
        return Said("ours", [{"variants": {"plan": {"speedup": 5.0}}}])

    def torch(row: str) -> Said:
        raise AssertionError(row)

    found = orchestrator.run_row(ROWS["build-cache"], {"pytorch": torch, "ours": ours}, lambda _: None)
    assert asked == ["build-cache"]
    assert found["ours"]["variants"]["plan"]["speedup"] == 5.0


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Said("ours"), "it said nothing"),
        (Said("ours", failure="exit code 1\nboom"), "exit code 1 / boom"),
        (Said("ours", [{"variants": [1]}]), "its variants are no object"),
    ],
)
def test_what_a_child_did_wrong_is_told(said: Said, why: str) -> None:
    found = orchestrator.run_row(ROWS["build-cache"], {"ours": lambda _: said}, lambda _: None)
    assert found["ours"]["skipped"] == why


def test_parity_reads_the_files_that_both_left(tmp_path: Path) -> None:
    hidden: dict[str, Any] = {"hidden": np.ones((1, 2))}
    np.savez(tmp_path / "a.npz", **hidden)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    both = {"pytorch": {"outputs": str(tmp_path / "a.npz")}, "ours": {"outputs": str(tmp_path / "a.npz")}}
    assert orchestrator.parity_of("bert-1x32", both) == {"relative_error": 0.0}
    assert orchestrator.parity_of("bert-1x32", both | {"ours": {"outputs": str(tmp_path / "broken.npz")}}) == {}
    assert orchestrator.parity_of("bert-1x32", both | {"ours": {}}) == {}


def test_the_host_without_a_gpu_is_told_as_such() -> None:
    assert orchestrator.describe_host(("no-such-program",))["gpu"] == "no nvidia-smi here"
    answer = "print('NVIDIA H200, 570.1, 143771 MiB, 1980 MHz')"
    assert orchestrator.describe_host((sys.executable, "-c", answer))["driver"] == "570.1"
    assert "does not tell" in orchestrator.describe_host((sys.executable, "-c", ""))["gpu"]


def test_another_interpreter_gets_nothing_of_ours(tmp_path: Path) -> None:
    own, other, driver = str(Path(sys.executable).parent), tmp_path / "other", tmp_path / "driver"
    for folder, name in ((other, "python3"), (driver, "libcuda.so.1")):
        folder.mkdir()
        (folder / name).touch(0o755)
    given = {
        "PATH": os.pathsep.join([own, str(other)]),
        "PYTHONPATH": "/ours",
        "LD_LIBRARY_PATH": os.pathsep.join(["/ours/lib", str(driver)]),
        "HOME": "/home",
    }
    python, environment = clean_environment("python3", tmp_path, given)
    assert python == str(other / "python3")
    assert "PYTHONPATH" not in environment
    assert environment["LD_LIBRARY_PATH"] == str(driver)
    assert environment["HOME"] == "/home"


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = "import threading; threading.Event().wait()"
    said = run_child("slow", [sys.executable, "-c", script], os.environ, 0.1, folder=tmp_path)
    assert said.failure.startswith("it was ended after")


def test_inputs_and_checkpoints_are_written_once(tmp_path: Path) -> None:
    preparing.prepare(tmp_path, tiny=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    preparing.prepare(tmp_path, tiny=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for name in preparing.CHECKPOINTS:
        assert Checkpoint(tmp_path / name).weights_files
    with np.load(tmp_path / "whisper.npz") as file:
        assert file["mel"].shape == (4, 80, 500)
        assert file["mel"].dtype == np.float32
        # The silence that follows is the least that the mel holds.
        assert (file["mel"].min(axis=(1, 2)) >= file["floor"]).all()
