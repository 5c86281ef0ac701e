"""One builder for four releases: what each is told, and what becomes of its complaints."""

import json
from pathlib import Path
from typing import Any

import pytest

from aula.backends.tensorrt_runtime import Runtime
from aula.core.errors import BackendError, DeviceMemoryError, EngineError
from aula.engine.plans import PlanBuilder, PlanOptions, UnbuildableError, release
from tests.backends.fake_tensorrt import RELEASES, fake_tensorrt
from tests.engine.small_graphs import FLOAT, model_of, node, value

every_release = pytest.mark.parametrize("number", RELEASES)
TYPED = ("10.12", "11.0")
PROFILES = ({"x": ((1, 1, 1), (3, 3, 3))}, {"x": ((1, 8, 16), (3, 3, 3))})


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    import onnx

    path = tmp_path / "graph.onnx"
    made = model_of([node("Neg", "x", "y")], [value("x", FLOAT, "n", 3)], [value("y", FLOAT, "n", 3)], opset=17)
    onnx.save(made, str(path))
    return path


def _told(
    trt: Any, graph: Path, precision: str = "fp32", options: PlanOptions | None = None, profiles: Any = PROFILES
) -> dict[str, Any]:
    """What TensorRT was told."""
    PlanBuilder(Runtime(trt)).build(graph, precision, profiles, options or PlanOptions())
    told: dict[str, Any] = trt.behaviour.built[-1]
    return told


@pytest.mark.parametrize(
    ("number", "network"),
    [("8.6", ["EXPLICIT_BATCH"]), ("10.3", []), ("10.12", ["STRONGLY_TYPED"]), ("11.0", ["STRONGLY_TYPED"])],
)
def test_networks_are_typed_by_name_where_the_release_has_it(number: str, network: list[str], graph: Path) -> None:
    """The number of STRONGLY_TYPED in 10 is that of another flag in 11."""
    assert _told(fake_tensorrt(number), graph)["network"] == network


@every_release
@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", []), ("fp16", ["FP16", "TF32"]), ("bf16", ["BF16", "TF32"]), ("int8", ["FP16", "INT8", "TF32"])],
)
def test_precision_is_a_flag_only_where_types_do_not_hold(
    number: str, precision: str, flags: list[str], graph: Path
) -> None:
    if number == "8.6" and precision == "bf16":
        with pytest.raises(EngineError, match=r"builds no bf16 plans; 10\.0 and later do"):
            _told(fake_tensorrt(number), graph, precision)
        return
    wanted = flags if number not in TYPED or precision == "fp32" else ["TF32"]
    assert _told(fake_tensorrt(number), graph, precision)["flags"] == wanted, "TF32 is no fp32"


@every_release
@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        (1, []),
        (2, ["EDGE_MASK_CONVOLUTIONS"]),
        (3, ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]),
    ],
)
def test_sources_of_tactics_are_chosen_in_8_6_alone(number: str, level: int, wanted: list[str], graph: Path) -> None:
    told = _told(fake_tensorrt(number), graph, options=PlanOptions(level=level))["sources"]
    assert told == (wanted if number == "8.6" else None)


@every_release
def test_level_profiles_and_detail_reach_the_builder(number: str, graph: Path) -> None:
    told = _told(fake_tensorrt(number), graph, options=PlanOptions(level=5))
    assert (told["level"], told["verbosity"], told["path"]) == (5, "DETAILED", str(graph))
    assert told["profiles"] == [
        {"x": [(1, 3), (1, 3), (1, 3)]},
        {"x": [(1, 3), (8, 3), (16, 3)]},
    ]
    assert told["compatibility"] == "NONE"


@every_release
def test_compatibility_is_what_the_release_has(number: str, graph: Path) -> None:
    trt = fake_tensorrt(number)
    assert _told(trt, graph, options=PlanOptions(compatibility="ampere-plus"))["compatibility"] == "AMPERE_PLUS"
    same, newer = PlanOptions(compatibility="same-capability"), PlanOptions(version_compatible=True)
    assert "VERSION_COMPATIBLE" in _told(trt, graph, options=newer)["flags"]
    if number in TYPED:
        assert _told(trt, graph, options=same)["compatibility"] == "SAME_COMPUTE_CAPABILITY"
    else:
        with pytest.raises(EngineError, match=r"builds no same-capability plans; 10\.9 and later do.*Next: leave"):
            _told(trt, graph, options=same)


@every_release
def test_plans_without_weights_are_refitted_with_the_same(number: str, graph: Path) -> None:
    trt, stripped = fake_tensorrt(number), PlanOptions(stripped=True)
    if number == "8.6":
        with pytest.raises(EngineError, match=r"8\.6\.1 builds no plans without weights; 10\.0 and later do"):
            _told(trt, graph, options=stripped)
    else:
        assert {"STRIP_PLAN", "REFIT_IDENTICAL"} <= set(_told(trt, graph, options=stripped)["flags"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"level": 6}, r"no builder optimisation level 6\. Available: 0, 1"), ({"compatibility": "all"}, "'all'.*exact")],
)
def test_options_that_no_release_has_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        PlanOptions(**options)


@pytest.mark.parametrize(
    ("cache", "begins"),
    [
        (b"", b"cache:sm89"),
        (b"cache:sm89+old", b"cache:sm89+old"),
        (b"cache:sm75", b"cache:sm89"),
        (b"garbage", b"cache:sm89"),
    ],
)
@every_release
def test_a_timing_cache_that_does_not_fit_is_a_miss(number: str, cache: bytes, begins: bytes, graph: Path) -> None:
    trt = fake_tensorrt(number)
    made = PlanBuilder(Runtime(trt)).build(graph, "fp32", PROFILES, PlanOptions(), cache=cache)
    assert made.cache == begins + b"+timings", "and comes back with what was measured"
    assert json.loads(made.content)["timings"] == begins.decode()


def test_a_graph_that_the_parser_does_not_read_is_refused_with_its_words(graph: Path) -> None:
    trt = fake_tensorrt("10.12")
    trt.behaviour.parser_errors = ("In node 3: no importer for Foo", "second", "third", "fourth")
    with pytest.raises(BackendError, match=r"cannot read the graph: In node 3.*; second; third\. Next: export"):
        _told(trt, graph)


@pytest.mark.parametrize("profiles", [({},), ({"x": ((4, 2, 1), (3, 3, 3))},)])
def test_a_profile_that_is_not_taken_is_not_left_out_silently(profiles: Any, graph: Path) -> None:
    with pytest.raises(BackendError, match=r"does not take the profile.*Next: order its sizes"):
        _told(fake_tensorrt("10.12"), graph, profiles=profiles)


NONE_86 = (
    "[optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error "
    "(Could not find any implementation for node {ForeignNode[/encoder/layer.0/Mul.../encoder/layer.1/MatMul]}.)"
)
FORMATS_86 = (
    "2: [optimizer.cpp::filterQDQFormats::4422] Error Code 2: Internal Error "
    "(Assertion !n->candidateRequirements.empty() failed. No supported formats for blocks.0.excite/Mul)"
)
NONE_10 = (
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node "
    "/conv/Conv + /act/Relu. In computeCosts at optimizer.cpp:4115)"
)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (NONE_86, "{ForeignNode[/encoder/layer.0/Mul.../encoder/layer.1/MatMul]}"),
        (NONE_10, "/conv/Conv + /act/Relu"),
        (FORMATS_86, "blocks.0.excite/Mul"),
        ("no implementation", "some node"),
    ],
)
def test_nodes_without_a_kernel_are_named(said: str, name: str, graph: Path) -> None:
    trt = fake_tensorrt("8.6")
    trt.behaviour.build_refused = (said, "a consequence")
    with pytest.raises(UnbuildableError) as caught:
        _told(trt, graph)
    assert caught.value.what == f"TensorRT 8.6.1 has no kernel for {name}"
    assert caught.value.said == f"{said} a consequence"
    assert caught.value.cache == b"cache:sm89", "what was timed is not lost with the plan"


@pytest.mark.parametrize(
    "said",
    [
        ("[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.)",),
        ("Error Code 1: Cuda Runtime (out of memory)", NONE_86),
        (NONE_86.replace(".)", " due to insufficient workspace. See verbose log for requested sizes.)"),),
    ],
)
def test_a_full_card_is_told_apart_from_what_has_no_kernel(said: tuple[str, ...], graph: Path) -> None:
    trt = fake_tensorrt("8.6")
    trt.behaviour.build_refused = said
    with pytest.raises(DeviceMemoryError, match=r"memory was too short.*stop what else runs"):
        _told(trt, graph)


def test_anything_else_is_told_in_its_words(graph: Path) -> None:
    trt = fake_tensorrt("11.0")
    trt.behaviour.build_refused = ("Error Code 9: Internal Error",)
    with pytest.raises(BackendError, match=r"cannot build graph\.onnx: Error Code 9.*--target cpu") as caught:
        _told(trt, graph)
    assert type(caught.value) is BackendError


def test_an_earlier_failure_explains_nothing_of_the_next(graph: Path) -> None:
    trt = fake_tensorrt("11.0")
    builder = PlanBuilder(Runtime(trt))
    for said, kind in ((NONE_10, UnbuildableError), ("out of memory", DeviceMemoryError), ("other", BackendError)):
        trt.behaviour.build_refused = (said,)
        with pytest.raises(BackendError) as caught:
            builder.build(graph, "fp32", PROFILES, PlanOptions())
        assert type(caught.value) is kind


def test_a_builder_that_does_not_start_is_refused(graph: Path) -> None:
    trt = fake_tensorrt("11.0")
    runtime = Runtime(trt)
    trt.behaviour.no_gpu = True
    with pytest.raises(BackendError, match="cannot start to build: CUDA initialization failure"):
        PlanBuilder(runtime).build(graph, "fp32", PROFILES, PlanOptions())


@pytest.mark.parametrize(
    ("text", "numbers"), [("8.6.1", (8, 6)), ("10.12.0.36", (10, 12)), ("11", (11, 0)), ("10.13.3.9.post1", (10, 13))]
)
def test_a_release_is_its_first_two_numbers(text: str, numbers: tuple[int, int]) -> None:
    assert release(text) == numbers
