import json
import shlex
from pathlib import Path

import pytest
import yaml

from aula.backends.gpus import Gpu
from aula.cli.build import build
from aula.cli.farm import Asked
from aula.engine.plans import PlanOptions
from aula.engine.targets import MIXED
from tests.bench.toy import toy_file
from tests.cli.running import Run

PROFILE = ("--profile", "small:rows=1,columns=2-4-8")
SOURCE = Path(__file__).parents[2] / "src"
T4 = Gpu(0, "GPU-t4", "Tesla T4", "7.5", "570.86", 16 * 2**30)


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for module in ("build", "farm"):
        monkeypatch.setattr(f"aula.cli.{module}.list_gpus", lambda: ())


def test_what_this_machine_has_is_built_and_the_rest_is_said(run: Run, tmp_path: Path) -> None:
    file = toy_file(tmp_path)
    words = ("build", str(file), *PROFILE, "--targets", "sm89,cpu", "--store", str(tmp_path / "the store"))
    built = run(*words, "--json")
    assert built.code == 0, built.err
    told = json.loads(built.out)
    assert (told["built"], list(told["absent"]), told["failed"]) == (["cpu"], ["sm89"], {})
    assert list(told["bundle"]["parts"]["model"]["engines"]) == ["cpu"]
    shown = run(*words)
    assert shown.code == 0
    assert f"aula inspect {told['bundle']['key']} --store" in shown.out
    assert "Not built: sm89 needs a GPU of compute capability 8.9 (L4); here: none" in shown.err
    again = shlex.split(shown.err.rpartition("kubernetes): ")[2])
    assert again == ["aula", "build", str(file), "--targets", "cpu,sm89", "--plan-ci", "github", *PROFILE, *words[-2:]]


def test_failures_are_told_with_their_code(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = run("build", str(tmp_path / "none.onnx"), "--targets", "cpu", "--json")
    assert missing.code == 5
    assert "none.onnx" in json.loads(missing.out)["failed"]["cpu"]
    monkeypatch.setattr("aula.cli.farm.list_gpus", lambda: (T4,))
    failed = run("build", str(toy_file(tmp_path)), *PROFILE, "--targets", "sm75", "--store", str(tmp_path / "store"))
    assert failed.code == 5
    assert "✗ sm75 failed: " in failed.err
    assert "GPU" in failed.err
    early = run("build", "minilm", "--targets", "cpu,sm75", "--precision", "bf16")
    assert (early.code, "no precision bf16 for the target sm75" in early.err) == (5, True)
    none = run("build", "minilm", "--targets", "sm89")
    assert (none.code, "none of the targets is on this machine" in none.err) == (5, True)


@pytest.mark.parametrize(
    "words", [("--targets", "cpu", "--target", "cpu"), ("--targets", "cpu", "--verdict", "v.json")]
)
def test_options_of_one_target_do_not_go_with_several(run: Run, words: tuple[str, ...]) -> None:
    assert run("build", "minilm", *words).code == 2
    assert run("build", "minilm", "--targets", "sm1").code == 5


def test_everything_that_was_asked_for_is_asked_for_again() -> None:
    """Every option of `aula build` but those that say how it is run."""
    plans = PlanOptions(level=1, compatibility="ampere-plus", version_compatible=True, stripped=True)
    asked = Asked("m", ("int8",), ("a:x=1",), Path("c d"), Path("l"), "s3://x", 0.5, True, plans, (MIXED,))
    given = build.make_context("build", list(asked.command()[2:])).params
    wanted = {"precisions": ("int8",), "profiles": ("a:x=1",), "calibrate": Path("c d"), "labelled": Path("l")}
    wanted |= {"model": "m", "without": (MIXED,), "store": "s3://x", "most_drop": 0.5, "rebuild": True}
    wanted |= {"level": 1, "compatibility": "ampere-plus", "version_compatible": True, "stripped": True}
    assert {name: given[name] for name in wanted} == wanted
    about_the_run = {"target", "targets", "plan", "image", "verdict", "as_json", "as_lines"}
    assert given.keys() - wanted.keys() <= about_the_run
    assert Asked("m").command() == ("aula", "build", "m")


def test_a_pipeline_is_printed_and_nothing_is_built(run: Run, tmp_path: Path) -> None:
    words = ("build", "minilm", "--targets", "sm75,cpu", "--precision", "int8", "--plan-ci")
    hub = yaml.safe_load(run(*words, "github").out)
    assert hub["jobs"]["build"]["strategy"]["matrix"]["target"] == ["cpu", "sm75"]
    assert "--precision int8" in hub["jobs"]["build"]["steps"][1]["run"]
    shared = (*words, "kubernetes", "--store", "s3://school/engines", "--image", "school/aula:1")
    jobs = list(yaml.safe_load_all(run(*shared).out))
    assert [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs] == ["school/aula:1"] * 3
    again = list(yaml.safe_load_all(run(*shared).out))
    assert jobs[0]["metadata"]["name"] != again[0]["metadata"]["name"]  # jobs cannot be changed, only be new
    assert run(*words, "kubernetes").code == 9
    assert run("build", "minilm", "--plan-ci", "gitlab").code == 2


def test_files_that_a_build_reads_start_its_pipeline(run: Run, tmp_path: Path) -> None:
    toy_file(Path())
    words = ("build", "toy.onnx", "--calibrate", "real.npz", "--profile", "@asked.jsonl", "--targets", "cpu")
    hub = yaml.safe_load(run(*words, "--plan-ci", "github").out)
    assert hub["on"]["push"]["paths"][::2] == ["toy.onnx", "real.npz", "asked.jsonl"]
    refused = run(*words, "--plan-ci", "kubernetes", "--store", "s3://x")
    assert (refused.code, "toy.onnx is a file of this machine" in refused.err) == (5, True)
