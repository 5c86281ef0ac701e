import json
import shlex
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aula.cli.engine_tables import print_bundle, print_verdict
from aula.core.types import Licence
from aula.engine.bundle import Bundle
from aula.engine.manifest import (
    FORMAT,
    Candidate,
    Device,
    GraphSize,
    Inspection,
    Manifest,
    Part,
    Quantisation,
    StoredFile,
    TargetEngine,
)
from aula.engine.targets import MIXED
from aula.engine.verify import Verdict
from tests.bench.toy import toy_file
from tests.cli.running import Run


@pytest.mark.usefixtures("models")
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


@pytest.mark.usefixtures("models")
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


@pytest.mark.usefixtures("models")
def test_a_profile_of_ones_own_and_one_that_is_wrong(run: Run, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    built = run("build", "minilm", "--profile", "short:batch=1,sequence=2-8-8", *store, "--json")
    assert built.code == 0, built.err
    part = json.loads(built.out)["parts"]["model"]
    assert part["engines"]["cpu"]["profiles"] == {"short": {"batch": [1, 1, 1], "sequence": [2, 8, 8]}}
    assert part["engines"]["cpu"]["candidates"][0]["milliseconds"].keys() == {"short"}
    verdict = run("verify", "minilm", *store, "--json")
    assert json.loads(verdict.out)["parts"][0]["milliseconds"].keys() == {"short"}, verdict.err
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


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("content", [b"", b"no tab here\n", b"\xff\xfe\x00", b"a\tone\n" * 30])
def test_labelled_data_that_is_none_ends_with_5(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labelled.tsv"
    path.write_bytes(content)
    ended = run("build", "minilm", "--precision", "int8", "--labelled", str(path))
    assert ended.code == 5
    assert "labelled.tsv" in ended.err


def bundle(name: str, profiles: tuple[str, ...] = ("question", "passages", "everything")) -> Bundle:
    """One that nobody built, with `name` wherever text from elsewhere can stand."""
    times = dict.fromkeys(profiles, 1234.56)
    candidates = (
        Candidate("openvino", "2026.1", "fp32", times, 1.2e-6, 0.9876, {"fp32": 101}),
        Candidate(
            "onnxruntime", "1.22", "int8", {}, 0.02, 0.5, {}, rejected=f"{name}: the metric drops by 48.76 points"
        ),
        Candidate("openvino", "2026.1", MIXED, times, 2e-2, 0.98, {"int8": 73, "bf16": 71, "fp32": 1}),
    )
    size = GraphSize(10, 10, 10, 10, 10)
    made = Quantisation(
        f"{name} mean",
        64,
        f"{name}.txt",
        "0" * 64,
        tuple(f"{name}{n}" for n in range(6)),
        {"mean": 0.9, "extremes": 0.8},
    )
    engine = TargetEngine(
        backend="openvino",
        backend_version=name,
        precision="fp32",
        threads=2,
        machine=name,
        files=(StoredFile("0" * 64, ".onnx", 1),),
        graph=size,
        gate=None,
        quantisation=made,
        candidates=candidates,
        inputs={},
        profiles={profile: {} for profile in profiles},
        states=(),
        dynamic_quantisation=None,
        written=size,
    )
    part = Part({}, {"cpu": engine})
    manifest = Manifest(
        FORMAT, name, "k-0000000000000000", "aula", None, (Licence(name, name),), False, {"model": part}
    )
    return Bundle(manifest, Path())


def printed(shown: Bundle, verdict: Verdict | None = None) -> str:
    file = StringIO()
    console = Console(width=80, file=file, highlight=False)
    if verdict is None:
        print_bundle(console, shown)
    else:
        print_verdict(console, shown, verdict)
    return file.getvalue()


@pytest.mark.parametrize("name", ["[/x]evil", "[red]evil", "evil\\", "[/]"])
def test_names_from_elsewhere_are_printed_as_they_are(name: str) -> None:
    shown = printed(bundle(name))
    assert shown.startswith(f"{name} for cpu")
    assert f"left out: int8 on onnxruntime: {name}: the metric drops" in shown
    assert f"Licences: {name}: {name}" in shown
    verdict = Verdict("model", name, 1.0, None, None, {name: 1.0}, {}, False, name)
    assert f", {name}: failed: {name}" in printed(bundle(name), verdict)
    assert "relative error" not in printed(bundle(name), replace(verdict, relative_error=None))


def test_a_name_cannot_act_on_the_terminal() -> None:
    assert "\x1b" not in printed(bundle("\x1b[2Jevil"))


def test_the_table_fits_80_columns() -> None:
    shown = printed(bundle("model", ("batch8-sequence64", "b", "c", "d", "e")))
    table = [line for line in shown.splitlines() if line.startswith(("fp32", "int8"))]
    assert [line.split() for line in table] == [
        ["fp32", "openvino", "1234.56", "1234.56", "1234.56", "1.2e-06", "0.9876", "101/101", "←", "chosen"],
        ["int8", "onnxruntime", "2.0e-02", "0.5000", "left", "out"],
        ["int8+bf16", "openvino", "1234.56", "1234.56", "1234.56", "2.0e-02", "0.9800", "73+71/145"],
    ]
    assert max(map(len, table)) <= 80
    assert "2 more profiles" in shown


def test_what_the_quantiser_tried_and_put_back_is_shown() -> None:
    shown = printed(bundle("layer"))
    assert "methods tried, by metric: mean 0.9000, extremes 0.8000" in shown
    assert "6 layers put back into fp32: layer0, layer1, layer2, layer3, …" in shown


def test_a_gpu_its_reach_and_what_was_fused_are_shown() -> None:
    plain = bundle("model", ("latency",))
    part = plain.manifest.parts["model"]
    engine = replace(
        part.engines["cpu"],
        device=Device("NVIDIA L4", "8.9", "570.1", "same-capability", True),
        inspection={"latency": Inspection({"fp16": 40, "fp32": 2}, 400, 42, 30)},
    )
    manifest = replace(plain.manifest, parts={"model": replace(part, engines={"sm89": engine})})
    shown = printed(Bundle(manifest, Path()))
    assert "NVIDIA L4, compute capability 8.9, driver 570.1; for every card of compute capability 8.9" in shown
    assert "later TensorRT too" in shown
    assert "latency: 400 operators → 42 layers, 30 of them fused; 40 in fp16, 2 in fp32" in shown


def test_an_own_graph_is_verified_at_the_profiles_it_was_built_for(run: Run, tmp_path: Path) -> None:
    import onnx

    file, store = toy_file(tmp_path), str(tmp_path / "the store")
    built = run("build", str(file), "--profile", "small:rows=1,columns=2-4-8", "--store", store)
    assert built.code == 0, built.err
    following = shlex.split(built.out.rpartition("Next: ")[2])
    shown = run(*following[1:])
    assert "small" in shown.out, shown.err
    key = following[2]
    asked = run("verify", key, "--store", store)
    assert asked.code == 5
    assert f"aula verify {key} --model FILE --store {shlex.quote(store)}" in asked.err
    verdict = run("verify", "toy", "--model", str(file), "--store", store, "--json")
    assert verdict.code == 0, verdict.err
    assert json.loads(verdict.out)["parts"][0]["milliseconds"].keys() == {"small"}
    content = onnx.load(str(file))
    content.graph.initializer[0].raw_data = content.graph.initializer[1].raw_data
    onnx.save(content, str(file))
    other = run("verify", "toy", "--model", str(file), "--store", store)
    assert other.code == 5
    assert key in other.err
    assert "toy.onnx" in other.err
