import json
from pathlib import Path
from typing import Any

import pytest

from aula.backends.tensorrt_runtime import Runtime
from benchmarks.gpu import jobs, ours
from benchmarks.gpu.rows import ROWS
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
    leave(tmp_path, "bert-1x32-again", first_seconds=[94.0], second_seconds=[10.0, 2.0])
    told = ours.measure("build-cache", tmp_path)
    assert told["versions"] == {"tensorrt": "10.13.0"}
    row = compare(ROWS["build-cache"], {}, told)
    assert row["ours"] == {"variant": "BERT-base 1x32, fp16", "value": 7.8333}
    assert row["ours_more"] == {"first_s": 94.0, "second_s": 12.0}
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
    assert {name.rpartition(", ")[2] for name in row["skipped"]} == {"64 rows", "320 rows"}


def test_the_drop_is_fp32_s_top1_less_that_of_the_precision(tmp_path: Path) -> None:
    assert ours.top1_drop(tmp_path, "int8") is None
    tried = {"model": [{"precision": "fp16", "metric": 0.9065}, {"precision": "int8", "metric": 0.904}]}
    leave(tmp_path, "digits", tried=tried)
    assert ours.top1_drop(tmp_path, "int8") is None
    leave(tmp_path, "digits", tried=tried, fp32_metric={"model": 0.9065})
    assert ours.top1_drop(tmp_path, "int8") == pytest.approx(0.25)
    assert ours.top1_drop(tmp_path, "fp16") == pytest.approx(0)
    assert ours.top1_drop(tmp_path, "fp8") is None
