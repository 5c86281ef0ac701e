"""Triton's own load generator against both doors, where its binary is (benchmarks/kserve says where to find it)."""

import os
import subprocess
from pathlib import Path

import pytest

from aula.core.types import TensorSpec
from aula.runtime import EngineInfo
from tests.servers.kserve.serving import plain, serving, toy_rung

BINARY = os.environ.get("AULA_PERF_ANALYZER", "")
LIBRARIES = os.environ.get("AULA_PERF_ANALYZER_LIBRARIES", "")


@pytest.mark.skipif(not BINARY, reason="perf_analyzer is absent: name its binary in AULA_PERF_ANALYZER")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_sixteen_at_once(protocol: str, tmp_path: Path) -> None:
    told = tmp_path / "told.csv"
    specs = [TensorSpec(name, "float32", ("batch", "width")) for name in ("x", "y")]
    info = EngineInfo("rows", "1", "toy", (specs[0],), (specs[1],), 8)
    with serving(rungs=[toy_rung(info, plain)]) as doors:
        done = subprocess.run(
            [
                BINARY, "-m", "rows", "-u", getattr(doors, protocol), "-i", protocol, "--shape", "x:8",
                "--concurrency-range", "16", "--request-count", "400", "-f", str(told),
            ],
            capture_output=True, text=True, check=False, env={**os.environ, "LD_LIBRARY_PATH": LIBRARIES},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        counts = doors.call(doors.house.runtime.statistics)
    names, values, *_ = (line.split(",") for line in told.read_text(encoding="utf-8").splitlines())
    row = dict(zip(names, values, strict=False))
    assert float(row["Inferences/Second"]) > 0
    assert int(row["Server Compute Infer"]) >= 0
    assert counts.answered >= 400
    assert counts.failed == counts.refused == counts.in_flight == 0
