import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.device_tensor import DeviceTensor
from aula.backends.tensorrt_runtime import Runtime
from benchmarks.gpu import jobs, ours
from benchmarks.gpu.rows import IN_FLIGHT, ROWS
from benchmarks.gpu.table import compare


class FakeRuntime:
    version = "10.13.0"


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "load", classmethod(lambda cls: FakeRuntime()))


def leave(work: Path, job: str, **content: Any) -> None:
    path = jobs.left_by(work, job)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_timing_cache_is_told_as_the_table_wants_it(tmp_path: Path) -> None:
    leave(
        tmp_path,
        "bert-1x32-again",
        first_seconds=[94.0],
        second_seconds=[10.0, 2.0],
        first_whole_seconds=114.0,
        whole_seconds=32.0,
    )
    told = ours.measure("build-cache", tmp_path)
    assert told["versions"] == {"tensorrt": "10.13.0"}
    row = compare(ROWS["build-cache"], {}, told)
    assert row["ours"] == {"variant": "BERT-base 1x32, fp16", "value": 7.8333}
    assert row["ours_more"] == {"first_s": 94.0, "second_s": 12.0, "first_whole_s": 114.0, "second_whole_s": 32.0}
    assert row["met"] is True


@pytest.mark.parametrize("row", [name for name in ROWS if name != "in-flight"])
def test_a_row_without_engine_names_the_command_that_builds_it(row: str, tmp_path: Path) -> None:
    told = ours.measure(row, tmp_path)
    assert "python -m benchmarks.gpu.engines --work" in told["skipped"]
    job = told["skipped"].rpartition("--job ")[2]
    assert job in ROWS[row].jobs


def test_each_engine_of_in_flight_is_left_out_for_itself(tmp_path: Path) -> None:
    row = compare(ROWS["in-flight"], {}, ours.measure("in-flight", tmp_path))
    assert row["ours"] is None
    assert len(row["skipped"]) == len(IN_FLIGHT)
    assert "--job whisper-152x256" in row["skipped"]["ours fp16, 152 rows, 256 positions, 2 at once"]


class Recogniser:
    """Of three rows, with room for four frames; notes what it hears."""

    rows = 3

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.kept = self.closed = False

    def mel(self) -> DeviceTensor:
        return DeviceTensor(1, (3, 2, 4), "float32")

    def keep_mel(self, _mel: DeviceTensor) -> None:
        self.kept = True

    def write(self, mel: Any, *_: Any) -> None:
        self.heard.append(mel)

    def close(self) -> None:
        self.closed = True


def test_engines_beside_themselves_are_counted_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question shorter than the window goes on with its own silence; only what is built is opened."""
    np.savez(tmp_path / "whisper.npz", mel=np.ones((2, 2, 3), np.float32), floor=np.array([-1, -2], np.float32))
    leave(tmp_path, "whisper-152x256")
    opened: list[Recogniser] = []

    def recogniser(_work: Path, sizes: str) -> tuple[Recogniser, dict[str, Any]]:
        assert sizes == "152x256"
        opened.append(Recogniser())
        return opened[-1], {}

    def most(open_server: Any, first: int) -> dict[str, Any]:
        rows, serves = open_server(first)
        for serve in serves:
            serve(first)
        return {"in_flight": first, "p99_ms": 1.0, "servers": len(serves), "batch": rows}

    monkeypatch.setattr(ours, "_recogniser", recogniser)
    monkeypatch.setattr(ours, "most_in_flight", most)
    told = {name: one for name, one in ours.measure("in-flight", tmp_path)["variants"].items() if "skipped" not in one}
    assert [(one["in_flight"], one["servers"], one["batch"]) for one in told.values()] == [(6, 2, 3), (3, 1, 3)]
    assert len(opened) == 3
    for one in opened:
        first, *later = one.heard
        assert first[:, 0].tolist() == [[1, 1, 1, -1], [1, 1, 1, -2], [1, 1, 1, -1]]
        assert later == [None], "what lies on the device is not sent again"
        assert one.kept
        assert one.closed


def test_each_level_of_efficientnet_is_told_with_its_own_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bundle:
        def __init__(self, job: str) -> None:
            self.job = job

        def engine(self, **_: Any) -> Any:
            return argparse.Namespace(precision="fp16" if self.job == "efficientnet" else "int8")

    for job in ("efficientnet", "efficientnet-2"):
        leave(tmp_path, job, target="sm90", tried={"model": []})
    tried = {"model": [{"precision": "int8", "metric": 0.89}, {"precision": "fp16", "metric": 0.9}]}
    leave(tmp_path, "digits", tried=tried, fp32_metric={"model": 0.9})
    tried = {"model": [{"precision": "int8", "metric": 0.895}]}
    leave(tmp_path, "digits-2", tried=tried, fp32_metric={"model": 0.9})
    speeds = {"efficientnet": 100.0, "efficientnet-2": 200.0}
    monkeypatch.setattr(ours, "_bundle", lambda work, job: (Bundle(job), ours._told(work, job)))
    monkeypatch.setattr(
        ours,
        "_timed",
        lambda bundle, *_: ({"per_second": speeds[bundle.job]}, {"logits": np.full(1, speeds[bundle.job])}),
    )
    told = ours.measure("efficientnet-32", tmp_path)
    assert list(told["variants"]) == ["fp16, level 1", "int8, level 2"]
    drops = [one["top1_drop"] for one in told["variants"].values()]
    assert drops == pytest.approx([0.0, 0.5])
    assert np.load(told["outputs"])["logits"] == [200.0]


def test_the_drop_is_fp32_s_top1_less_that_of_the_precision(tmp_path: Path) -> None:
    assert ours.top1_drop(tmp_path, "int8") is None
    tried = {"model": [{"precision": "fp16", "metric": 0.9065}, {"precision": "int8", "metric": 0.904}]}
    leave(tmp_path, "digits", tried=tried)
    assert ours.top1_drop(tmp_path, "int8") is None
    leave(tmp_path, "digits", tried=tried, fp32_metric={"model": 0.9065})
    assert ours.top1_drop(tmp_path, "int8") == pytest.approx(0.25)
    assert ours.top1_drop(tmp_path, "fp16") == pytest.approx(0)
    assert ours.top1_drop(tmp_path, "fp8") is None
