"""A generated pipeline, run for real: its jobs' lines by bash, each on what stands for a machine of its own."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from aula.deploy.pipelines import pipeline
from aula.deploy.plan import Plan
from aula.engine.store import Store
from tests.bench.toy import FIRST, SECOND, WIDTH, toy_file

SOURCE = Path(__file__).parents[2] / "src"
PROFILE = ("--profile", "small:rows=1,columns=2-4-8")

MACHINE = """
# `aula` on a machine that has no GPU and stands for one that has: it builds for the CPU, and says the engine is for
# the target that was asked for. On a machine that is broken everything is computed wrongly.
import hashlib, sys
from dataclasses import replace
from pathlib import Path

import aula.engine.trial
from aula.__main__ import main
from aula.engine.manifest import sealed
from aula.engine.store import Store
from aula.engine.verdicts import read_verdict, write_verdict

if sys.argv.pop(1) == "broken":
    aula.engine.trial.relative_error = lambda *_: 0.5
words = sys.argv
wanted = words[words.index("--target") + 1] if "--target" in words else "cpu"
if wanted != "cpu":
    words[words.index("--target") + 1] = "cpu"
place, told = (words[words.index(option) + 1] for option in ("--store", "--verdict"))
try:
    main()
finally:
    if wanted != "cpu":
        verdict = replace(read_verdict(told), target=wanted)
        if verdict.passed:
            store = Store(Path(place))
            manifest = store.open(verdict.bundle).manifest
            key = manifest.key[:-16] + hashlib.sha256(wanted.encode()).hexdigest()[:16]
            part = manifest.parts["model"]
            parts = {"model": replace(part, engines={wanted: part.engines["cpu"]})}
            store.publish(sealed(replace(manifest, key=key, parts=parts)))
            store.remove(manifest.key)
            verdict = replace(verdict, bundle=key)
        write_verdict(told, verdict)
"""


@dataclass
class Workshop:
    """A checkout in which jobs run; `machines` says what each target's machine is."""

    checkout: Path
    jobs: dict[str, Any]

    def start(self, job: str, machine: str, **variables: str) -> "subprocess.Popen[str]":
        """One job's lines, in one bash, as a runner runs them; `aula` is what is on that machine's path."""
        home = self.checkout.parent / f"machine-{job}-{machine}-{variables.get('TARGET', '')}"
        programs = home / "bin"
        programs.mkdir(parents=True)
        (home / "aula.py").write_text(MACHINE)
        command = shlex.join([sys.executable, "-P", str(home / "aula.py"), machine])
        (programs / "aula").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / "aula").chmod(0o755)
        environment = {"AULA_HOME": str(home), "PYTHONPATH": str(SOURCE), "PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", "\n".join(self.jobs[job]["script"])],
            cwd=self.checkout,
            env={**os.environ, **environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build_all(self, **machines: str) -> dict[str, tuple[int, str]]:
        """Every job of the matrix beside the others: exit status and output by target."""
        (matrix,) = self.jobs["build"]["parallel"]["matrix"]
        running = {
            target: self.start("build", machines.get(target, "whole"), TARGET=target) for target in matrix["TARGET"]
        }
        return {target: _ended(process) for target, process in running.items()}

    def merge(self) -> tuple[int, str]:
        return _ended(self.start("merge", "whole"))


def _ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, output


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    checkout = tmp_path / "check out"
    checkout.mkdir()
    toy_file(checkout)
    plan = Plan("toy.onnx", ("cpu", "sm75"), PROFILE, files=("toy.onnx",))
    return Workshop(checkout, yaml.safe_load(pipeline("gitlab", plan)))


def test_two_machines_build_and_the_merged_bundle_runs(workshop: Workshop) -> None:
    for target, (code, output) in workshop.build_all().items():
        assert code == 0, f"{target}: {output}"
    code, output = workshop.merge()
    assert code == 0, output
    merged = Store(workshop.checkout / "engines").open("toy")
    assert merged.manifest.targets == ["cpu", "sm75"]
    merged.check()
    with merged.open(profile="small") as session:
        x = np.ones((1, 4, WIDTH), np.float32)
        wanted = np.maximum(x @ FIRST, 0) @ SECOND
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, atol=1e-3 * abs(wanted).max())
    parts = [Store(workshop.checkout / "aula-parts" / f"engines-{target}") for target in ("cpu", "sm75")]
    assert merged.manifest.key not in [key for part in parts for key in part.keys()]  # noqa: SIM118 - a store's
    assert workshop.jobs["merge"]["artifacts"]["paths"] == ["engines"]


def test_a_build_that_fails_its_proof_makes_the_merge_refuse(workshop: Workshop) -> None:
    builds = workshop.build_all(sm75="broken")
    assert builds["cpu"][0] == 0, builds["cpu"][1]
    assert builds["sm75"][0] == 5
    told = json.loads((workshop.checkout / "aula-parts" / "engines-sm75" / "verdict.json").read_text())
    assert (told["passed"], told["target"]) == (False, "sm75")
    assert "over the tolerance" in told["reason"]
    code, output = workshop.merge()
    assert code == 5
    assert "1 of 2 builds failed" in output
    assert "over the tolerance" in output
    assert not (workshop.checkout / "engines").exists()
