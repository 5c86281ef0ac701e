"""Generated files against the schemas that GitHub, GitLab and Kubernetes publish: check-jsonschema carries the first
two as they are in SchemaStore and GitLab's repository, kubernetes-validate the API's, with unknown fields refused."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aula.core.errors import AulaError, EngineError, StorageError
from aula.deploy.pipelines import KINDS, pipeline
from aula.deploy.plan import Plan, build_script, merge_script
from aula.engine.targets import TARGETS

SCHEMAS = {
    "github": ("--builtin-schema", "vendor.github-workflows"),
    "gitlab": ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"),
}
NASTY = 'it\'s a "model": ${{ secrets.KEY }} $(HOME) `x` # 模型\n- on'
ALL = Plan("minilm", tuple(TARGETS), run="0123abcd")
ONE = Plan("minilm", ("sm75",), ("--precision", "int8", "--rebuild"), "s3://school/engines", run="0123abcd")
CLAIM = Plan("owner/name@abc", ("cpu", "sm90"), store="pvc://engines/all", image="school/aula:1", run="00000000")
ODD = Plan(NASTY, ("cpu",), ("--profile", NASTY), f"s3://x/{NASTY}", run="1e5")


def _check(kind: str, text: str, folder: Path) -> None:
    """Raises AssertionError where the schema does not take the text."""
    if kind == "kubernetes":
        for document in yaml.safe_load_all(text):
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        return
    path = folder / f"{kind}.yml"
    path.write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "check_jsonschema", *SCHEMAS[kind], str(path)]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        *(("github", plan) for plan in (ALL, ONE, ODD)),
        *(("gitlab", plan) for plan in (ALL, ONE, ODD)),
        *(("kubernetes", plan) for plan in (ONE, CLAIM, ODD)),
    ],
)
def test_what_is_written_is_what_the_published_schemas_take(kind: str, plan: Plan, tmp_path: Path) -> None:
    _check(kind, pipeline(kind, plan), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_refuse_what_is_wrong(kind: str, tmp_path: Path) -> None:
    text = pipeline(kind, ONE)
    for right, wrong in (("script", "skript"), ("runs-on", "run-on"), ("args:", "argumnets:")):
        if right in text:
            with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
                _check(kind, text.replace(right, wrong), tmp_path)
            return
    raise AssertionError("nothing was made wrong")


def _github(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(pipeline("github", plan))
    return found


def _gitlab(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(pipeline("gitlab", plan))
    return found


def _jobs(plan: Plan) -> dict[str, dict[str, Any]]:
    jobs = list(yaml.safe_load_all(pipeline("kubernetes", plan)))
    return {str(job["metadata"]["name"]).rpartition("-")[2]: job for job in jobs}


def _words(script: str) -> list[str]:
    """What a shell makes of it."""
    return shlex.split(script.replace(" \\\n  ", " "))


def _container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def test_each_target_is_built_on_a_runner_of_its_own_kind() -> None:
    plan = Plan("minilm", ("cpu", "sm75", "sm89"))
    hub = _github(plan)["jobs"]
    assert hub["build"]["strategy"] == {"fail-fast": False, "matrix": {"target": ["cpu", "sm75", "sm89"]}}
    assert hub["build"]["runs-on"] == ["self-hosted", "aula-${{ matrix.target }}"]
    assert (hub["merge"]["needs"], hub["merge"]["runs-on"][1]) == ("build", "aula-cpu")
    lab = _gitlab(plan)
    assert lab["build"]["parallel"]["matrix"] == [{"TARGET": ["cpu", "sm75", "sm89"]}]
    assert (lab["build"]["tags"], lab["merge"]["tags"]) == (["aula-$TARGET"], ["aula-cpu"])
    assert "default" not in lab
    assert _gitlab(Plan("minilm", ("sm75",), image="school/aula:1"))["default"] == {"image": "school/aula:1"}
    assert _gitlab(Plan("minilm", ("sm75",)))["merge"]["tags"] == ["aula-sm75"]


def test_nodes_are_chosen_by_the_gpus_product() -> None:
    jobs = _jobs(Plan("minilm", tuple(TARGETS), store="gs://x", run="r"))
    assert list(jobs) == [*TARGETS, "merge"]
    pods = {name: job["spec"]["template"]["spec"] for name, job in jobs.items()}
    assert pods["sm75"]["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-T4"}
    terms = pods["sm90"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (product,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert product["values"] == ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H200"]
    for name, job in jobs.items():
        limits = _container(job).get("resources", {}).get("limits")
        assert limits == ({"nvidia.com/gpu": 1} if name.startswith("sm") else None)
    for name in ("cpu", "merge"):
        assert not {"nodeSelector", "affinity", "tolerations"} & pods[name].keys()


def test_the_merge_on_kubernetes_waits_for_verdicts_and_for_nothing_else() -> None:
    jobs = _jobs(Plan("minilm", ("cpu", "sm75"), store="pvc://claim/", run="r1"))
    assert _container(jobs["sm75"])["args"][-4:] == [
        *("--store", "/aula/engines", "--verdict", "/aula/engines/verdicts/r1/sm75.json")
    ]
    merging = _container(jobs["merge"])["args"]
    for target in ("cpu", "sm75"):
        assert f"/aula/engines/verdicts/r1/{target}.json" in merging
    rules = jobs["merge"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[-1] == {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [StorageError.exit_code]}}
    assert jobs["merge"]["spec"]["backoffLimit"] > 0
    assert jobs["sm75"]["spec"]["backoffLimit"] == 0


def test_everything_given_is_carried_along_and_quoted() -> None:
    options = (
        "--precision",
        "int8",
        "--calibrate",
        "my files/it's.txt",
        "--profile",
        "a:batch=1",
        "--most-drop",
        "2.0",
    )
    plan = Plan("the model", ("cpu", "sm75"), options, "the store")
    words = _words(build_script(plan))
    assert words[:4] == ["aula", "build", "the model", "--target"]
    assert words[5 : 5 + len(options)] == list(options)
    assert words[-4:] == [
        *("--store", "aula-parts/engines-$TARGET", "--verdict", "aula-parts/engines-$TARGET/verdict.json")
    ]
    assert _words(merge_script(plan)) == [
        *("aula", "bundle", "merge", "aula-parts/engines-cpu", "aula-parts/engines-sm75"),
        *("--verdict", "aula-parts/engines-cpu/verdict.json", "--verdict", "aula-parts/engines-sm75/verdict.json"),
        *("--require", "cpu,sm75", "--store", "the store"),
    ]
    shared = Plan("m", ("cpu",), store="s3://x y")
    assert "--store 's3://x y'" in build_script(shared)
    assert _words(merge_script(shared))[3] == "--verdict"
    assert _words(build_script(ODD))[2] == NASTY
    assert _gitlab(ODD)["build"]["script"] == [build_script(ODD)]
    run = _github(ODD)["jobs"]["build"]["steps"][1]["run"]
    assert run.replace("${{ '${{' }}", "${{") == build_script(ODD)
    assert "$$(HOME)" in _container(_jobs(ODD)["cpu"])["args"][1]


def test_a_change_of_the_model_in_the_repository_starts_the_pipeline() -> None:
    files = ("./models/voice", "labelled.tsv", "/else/where", "../up")
    plan = Plan("./models/voice", ("cpu",), files=files)
    paths = ["models/voice", "models/voice/**", "labelled.tsv", "labelled.tsv/**"]
    assert _github(plan)["on"]["push"] == {"paths": paths}
    changed = _gitlab(plan)["workflow"]["rules"][-1]
    assert changed["changes"] == ["models/voice", "models/voice/**/*", "labelled.tsv", "labelled.tsv/**/*"]
    assert "push" not in _github(Plan("minilm", ("cpu",)))["on"]


@pytest.mark.parametrize(
    ("kind", "plan", "fault"),
    [
        ("jenkins", ALL, "no pipeline for 'jenkins'"),
        ("github", CLAIM, "claim of Kubernetes"),
        ("kubernetes", ALL, "nodes do not share"),
        ("kubernetes", Plan("m", ("cpu",), store="engines"), "nodes do not share engines"),
        ("kubernetes", Plan("m", ("cpu",), store="pvc:///x"), "names no claim"),
        ("kubernetes", Plan("m", ("cpu",), store="pvc://c/../../etc"), "names no claim"),
        ("kubernetes", Plan("./m", ("cpu",), store="s3://x", files=("./m",)), "which no pod has"),
    ],
)
def test_what_such_a_pipeline_cannot_do_is_said(kind: str, plan: Plan, fault: str) -> None:
    with pytest.raises((EngineError, StorageError), match=fault) as failure:
        pipeline(kind, plan)
    assert isinstance(failure.value, AulaError)
    assert failure.value.next_step
