import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.models.checkpoints import Checkpoint
from benchmarks.gpu import __main__ as orchestrator
from benchmarks.gpu import engines, jobs
from benchmarks.gpu import prepare as preparing
from benchmarks.gpu.children import Said, clean_environment, run_child
from benchmarks.gpu.rows import ROWS, chosen

FAKE = """#!{python}
import json, os, sys
if "benchmarks.gpu.torch_native" not in sys.argv:
    sys.exit("asked for something else")
print("a library's chatter")
for row in sys.argv[sys.argv.index("--rows") + 1:]:
    print(json.dumps({{"row": row, "variants": {{}}}}))
    first = {{"row": row, "variants": {{"fp32 eager": {{"p50_ms": 4.0}}}}, "versions": {{"torch": "2.11"}}}}
    first["leaked"] = [name for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ]
    print(json.dumps(first))
    if row == "bert-1x32":
        print("CUDA error: the card is gone", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(3)
"""
Tell = list[str]


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that answers whatever it is asked to run."""
    path = tmp_path / "python-with-torch"
    path.write_text(FAKE.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(preparing, "prepare", lambda work, *, tiny: work.mkdir(exist_ok=True))
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
    line = json.loads(printed.splitlines()[-1])
    report = json.loads(kept.read_text(encoding="utf-8"))
    assert code == 0
    # In the table's order. What was measured before its child broke counts, and another child does the next row.
    assert [row["row"] for row in report["rows"]] == ["bert-1x32", "bert-64x32"] == list(line["rows"])
    assert report["rows"][0]["native"] == {"variant": "fp32 eager", "value": 4.0}
    assert report["rows"][1]["native"] == {"variant": "fp32 eager", "value": 16_000.0}
    assert line["rows"]["bert-64x32"]["native"] == ["fp32 eager", 16_000.0]
    assert "CUDA error: the card is gone" in printed
    assert "exit code 3" in report["rows"][0]["skipped"]["pytorch"]
    assert report["rows"][1]["skipped"] == {"ours": "--skip-ours"}
    assert report["children"]["bert-1x32"]["pytorch"]["leaked"] == []
    assert "torch 2.11" in printed


def test_figures_of_pytorch_are_kept_for_the_same_card(
    fake_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(tmp_path / "work"), "--rows", "bert-64x32", "--skip-ours"]
    assert orchestrator.main([*arguments, "--torch-python", str(fake_torch)]) == 0
    capsys.readouterr()
    assert orchestrator.main([*arguments, "--torch-python", "nowhere", "--keep-torch"]) == 0
    assert "as measured before" in capsys.readouterr().out
    monkeypatch.setattr(orchestrator, "describe_host", lambda: {"gpu": "another"})
    assert orchestrator.main([*arguments, "--keep-torch"]) == 1
    assert "no --torch-python" in capsys.readouterr().out


def test_nothing_measured_is_a_failure(tmp_path: Path, fake_torch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--torch-python", str(tmp_path / "nowhere"), "--work", str(tmp_path / "work"), "--skip-ours"]
    assert orchestrator.main([*arguments, "--rows", "bert-1x32", "bert-64x32"]) == 1
    assert "it cannot be started" in capsys.readouterr().out


def test_a_child_that_never_speaks_is_not_asked_again() -> None:
    asked: list[list[str]] = []

    def start(rows: Sequence[str], _seconds: float) -> Said:
        asked.append(list(rows))
        return Said("pytorch", failure="exit code 1\nno torch")

    found = orchestrator.ask_torch(["a", "b"], start, 60.0, lambda _: None)
    assert asked == [["a", "b"]]
    assert {name: record["skipped"] for name, record in found.items()} == dict.fromkeys("ab", "exit code 1 / no torch")


def test_another_child_goes_on_behind_the_row_that_broke_while_there_is_time() -> None:
    asked: list[tuple[list[str], float]] = []
    moments = iter([0.0, 0.0, 30.0, 59.5])

    def start(rows: Sequence[str], seconds: float) -> Said:
        asked.append((list(rows), seconds))
        return Said("pytorch", [{"row": rows[0], "variants": {"graph": {"p50_ms": 1.0}}}], "it was ended")

    found = orchestrator.ask_torch(["a", "b", "c"], start, 60.0, lambda _: None, lambda: next(moments))
    assert asked == [(["a", "b", "c"], 60.0), (["b", "c"], 30.0)]
    assert found["b"]["variants"] == {"graph": {"p50_ms": 1.0}}
    assert [record["skipped"] for record in found.values()] == ["it was ended"] * 3


def _builder(monkeypatch: pytest.MonkeyPatch, *broken: str) -> list[str]:
    """Children that build are noted, not started."""
    built: list[str] = []

    def run(name: str, command: Sequence[str], environment: Mapping[str, str], seconds: float, *, folder: Path) -> Said:
        assert command[1:3] == ["-m", "benchmarks.gpu.engines"]
        built.append(name)
        return Said(name, failure="it was ended after 900 s" if name in broken else "")

    monkeypatch.setattr(orchestrator, "run_child", run)
    return built


def test_missing_engines_are_built_in_order_and_one_that_breaks_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _builder(monkeypatch, "bert-64x32")
    for there in ("bert-1x32", "whisper-64.encoder", "whisper-64.decoder"):
        jobs.left_by(tmp_path, there).parent.mkdir(exist_ok=True)
        jobs.left_by(tmp_path, there).touch()
    options = argparse.Namespace(build=True, build_seconds=900.0, quantised=None)
    told: Tell = []
    orchestrator.see_to_engines(list(ROWS.values()), tmp_path, options, told.append)
    larger = ["whisper-64x256", "whisper-152x256", "whisper-304x256"]
    assert built == ["bert-64x32", "bert-1x32-again", "efficientnet", "whisper-1", *larger]
    assert any("it was ended after 900 s" in line for line in told)
    assert "digits is not built: it needs --quantised" in told


def test_without_build_the_commands_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = _builder(monkeypatch)
    options = argparse.Namespace(build=False, build_seconds=1.0, quantised=None)
    told: Tell = []
    orchestrator.see_to_engines(chosen(["build-cache"]), tmp_path, options, told.append)
    assert built == []
    assert [line.rpartition("--job ")[2] for line in told[1:]] == ["bert-1x32", "bert-1x32-again"]
    assert jobs.spelled(tmp_path, "digits").endswith("--quantised FOLDER")


def test_engines_come_first_then_pytorch_then_ours(
    fake_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def run(name: str, command: Sequence[str], environment: Mapping[str, str], seconds: float, *, folder: Path) -> Said:
        order.append(f"{name} {command[2].rpartition('.')[2]}")
        return Said(name, [{"row": row, "variants": {}} for row in ROWS])

    monkeypatch.setattr(orchestrator, "run_child", run)
    orchestrator.main(
        ["--torch-python", "x", "--work", str(tmp_path / "work"), "--build", "--rows", "bert-1x32", "build-cache"]
    )
    assert order == [
        "bert-1x32 engines",
        "bert-1x32-again engines",
        "pytorch torch_native",
        "ours ours_process",
        "ours ours_process",
    ]


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        orchestrator.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in jobs.JOBS)
    assert all(engines.maker(job) for job in jobs.JOBS)
    assert engines.maker("nothing") is None
    assert engines.maker("efficientnet-3") is engines.build_efficientnet
    assert jobs.level_of("efficientnet") == 1
    assert jobs.level_of("digits-2") == 2
    assert jobs.whisper_sizes("whisper-64.encoder") == (64, 250)
    assert jobs.whisper_sizes("whisper-152x256") == jobs.whisper_sizes("152x256") == (152, 256)
    assert {job for row in ROWS.values() for job in row.jobs} | {"efficientnet-2", "digits-2"} == set(jobs.JOBS)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Said("ours"), "it said nothing"),
        (Said("ours", failure="exit code 1\nboom"), "exit code 1 / boom"),
        (Said("ours", [{"variants": [1]}]), "its variants are no objects"),
        (Said("ours", [{"variants": {"a": 1}}]), "its variants are no objects"),
    ],
)
def test_what_a_child_did_wrong_is_told(said: Said, why: str) -> None:
    assert orchestrator.ask_ours("build-cache", lambda _: said, lambda _: None)["skipped"] == why


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
