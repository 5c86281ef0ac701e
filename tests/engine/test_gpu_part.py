"""A part for a GPU as a whole: int8 of a real network, what is put back, and which failures end what."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aula.core.errors import BackendError, CheckpointError, DeviceLostError, EngineError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.graph import bind_weights
from aula.engine.manifest import TargetEngine
from aula.engine.plans import Plan, PlanOptions, UnbuildableError
from aula.engine.preflight import Card
from aula.engine.recipe import Model, Profile, Recipe, Size, Task
from aula.engine.store import Store
from tests.engine.fake_gpu import CARD, FakeBuilder, FakeDeviceSession, fake_workshop
from tests.engine.toy import toy_recipe

PROFILES = (Profile("one", {"rows": Size(1, 1, 1)}), Profile("many", {"rows": Size(2, 8, 8)}))
WIDTH = 8
FAST_INT8 = {"fp16": 1.0, "int8": 0.5}


def _build(folder: Path, recipe: Recipe, builder: FakeBuilder | None = None, *precisions: str, **more: Any) -> Bundle:
    options = BuildOptions(precisions or ("fp32",), target="sm90", plans=more.pop("plans", PlanOptions()))
    workshop = replace(fake_workshop(builder), **more)
    return build(Model.of(recipe), Store(folder / "store"), options, make_workshop=lambda _target: workshop)


def _engine(bundle: Bundle) -> TargetEngine:
    return bundle.engine(target="sm90")


def _rejected(engine: TargetEngine) -> dict[str, str | None]:
    return {candidate.precision: candidate.rejected for candidate in engine.candidates}


# A network of three products called "fc", "fc_1" and "fc_2", whose int8 graph has pairs before each.


def _weights() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    return {name: generator.normal(0, 0.4, (WIDTH, WIDTH)).astype(np.float32) for name in "abc"}


def _plain() -> onnx.ModelProto:
    import spox
    import spox.opset.ai.onnx.v20 as op

    x = spox.argument(spox.Tensor(np.float32, ("rows", WIDTH)))
    matrices = {name: spox.argument(spox.Tensor(np.float32, (WIDTH, WIDTH))) for name in "abc"}
    y = x
    for matrix in matrices.values():
        y = op.matmul(y, matrix)
    model: onnx.ModelProto = bind_weights(spox.build({"x": x, **matrices}, {"y": y}), _weights())
    for place, node in enumerate(one for one in model.graph.node if one.op_type == "MatMul"):
        node.name = f"fc_{place}" if place else "fc"
    return model


def _quantised() -> onnx.ModelProto:
    model = _plain()
    constants: dict[str, np.ndarray[Any, Any]] = {
        "scale": np.asarray(0.05, np.float32),
        "zero": np.asarray(0, np.int8),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "MatMul":
            source = node.input[0]
            for kind, given, made in (
                ("QuantizeLinear", source, f"{node.name}/q"),
                ("DequantizeLinear", f"{node.name}/q", f"{node.name}/dq"),
            ):
                nodes.append(onnx.helper.make_node(kind, [given, "scale", "zero"], [made], name=made))
            node.input[0] = f"{node.name}/dq"
        nodes.append(node)
    kept = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)
    return model


def _network(folder: Path, metrics: list[float] | None = None, **changes: Any) -> Recipe:
    """Its task says the next of `metrics` each time: fp32 first, then each precision in turn."""
    left = metrics if metrics is not None else [0.9] * 4
    weights = [matrix.astype(np.float64) for matrix in _weights().values()]
    fields: dict[str, Any] = {
        "write_graph": _plain,
        "example": lambda sizes, generator: {"x": generator.normal(size=(sizes["rows"], WIDTH)).astype(np.float32)},
        "reference": lambda inputs: {"y": inputs["x"] @ weights[0] @ weights[1] @ weights[2]},
        "profiles": PROFILES,
        "written": {"int8": _quantised},
        "task": lambda: Task("accuracy", 100, "0" * 64, lambda _session: left.pop(0)),
    }
    return toy_recipe(folder, **{**fields, **changes})


@dataclass
class Choosy(FakeBuilder):
    """Refuses an int8 graph of the profile named with these words, while the layers named still are quantised."""

    refusals: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)

    def build(self, model: Path, precision: str, *arguments: Any, **more: Any) -> Plan:
        layers, said = self.refusals.get(model.stem, ((), ""))
        graph = onnx.load(str(model)).graph
        pairs = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        if any(node.name in layers and pairs.intersection(node.input) for node in graph.node):
            refusal = UnbuildableError(f"no kernel: {said}", next_step="…")
            refusal.said = said
            raise refusal
        return super().build(model, precision, *arguments, **more)


def _pairs(bundle: Bundle, profile: str) -> set[str]:
    """Layers of the plan that compute on quantised inputs."""
    plan = bundle.model_file("model", "sm90", profile).read_bytes()
    graph = onnx.load_from_string(plan.partition(b"\n")[2]).graph
    pairs = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name for node in graph.node if node.name.startswith("fc") and pairs.intersection(node.input)}


@pytest.mark.parametrize("builder", [FakeBuilder(), FakeBuilder(typed=True)], ids=["flags", "types"])
def test_int8_that_keeps_the_metric_and_is_faster_is_shipped(tmp_path: Path, builder: FakeBuilder) -> None:
    builder = replace(builder, milliseconds=FAST_INT8)
    bundle = _build(tmp_path, _network(tmp_path), builder, "int8")
    engine = _engine(bundle)
    assert (engine.precision, engine.chosen.metric) == ("int8", 0.9)
    assert engine.quantisation is not None
    assert engine.quantisation.restored == ()
    assert _pairs(bundle, "one") == _pairs(bundle, "many") == {"fc", "fc_1", "fc_2"}


@pytest.mark.parametrize(
    ("metrics", "kept", "reason"),
    [
        ([0.9, 0.9, 0.895], "int8", None),
        ([0.9, 0.9, 0.88], "fp16", "2.0"),
        ([0.9, 0.85, 0.9], "int8", None),
    ],
)
def test_int8_is_held_to_the_task(tmp_path: Path, metrics: list[float], kept: str, reason: str | None) -> None:
    engine = _engine(_build(tmp_path, _network(tmp_path, metrics), FakeBuilder(milliseconds=FAST_INT8), "int8"))
    assert engine.precision == kept
    told = _rejected(engine)
    assert (told["int8"] is None) == (reason is None)
    assert reason is None or reason in str(told["int8"])
    assert engine.gate is not None
    assert (engine.gate.reference, engine.gate.most_drop) == (0.9, 0.01)


def test_the_layer_that_is_named_is_put_back_and_no_other_that_begins_so(tmp_path: Path) -> None:
    words = "Could not find any implementation for node fc_1 + bias."
    builder = Choosy(milliseconds=FAST_INT8, refusals={"int8-one": (("fc_1",), words)})
    bundle = _build(tmp_path, _network(tmp_path), builder, "int8")
    quantisation = _engine(bundle).quantisation
    assert quantisation is not None
    assert quantisation.restored == ("fc_1",)
    assert _pairs(bundle, "one") == _pairs(bundle, "many") == {"fc", "fc_2"}


def test_a_name_to_which_tensorrt_gave_an_ending_is_found_all_the_same(tmp_path: Path) -> None:
    words = "Could not find any implementation for node fc_2_clone_1."
    builder = Choosy(milliseconds=FAST_INT8, refusals={"int8-one": (("fc_2",), words)})
    quantisation = _engine(_build(tmp_path, _network(tmp_path), builder, "int8")).quantisation
    assert quantisation is not None
    assert "fc_2" in quantisation.restored


def test_what_a_later_profile_cannot_bear_is_put_back_in_the_earlier_too(tmp_path: Path) -> None:
    words = "Could not find any implementation for node {ForeignNode[fc...fc_1]}."
    builder = Choosy(milliseconds=FAST_INT8, refusals={"int8-many": (("fc", "fc_1"), words)})
    bundle = _build(tmp_path, _network(tmp_path), builder, "int8")
    assert _pairs(bundle, "one") == _pairs(bundle, "many") == {"fc_2"}
    int8 = [name for name, precision in builder.built if precision == "int8"]
    assert int8 == ["int8-one", "int8-many", "int8-one", "int8-many"], "all again, with the same layers"


def test_what_was_timed_before_a_refusal_is_not_timed_again(tmp_path: Path) -> None:
    given: list[bytes] = []

    class Timing(FakeBuilder):
        def build(self, model: Path, precision: str, *arguments: Any, cache: bytes = b"", **more: Any) -> Plan:
            given.append(cache)
            try:
                return super().build(model, precision, *arguments, cache=cache, **more)
            except UnbuildableError as refusal:
                refusal.cache = cache + b"r"
                raise

    _build(tmp_path, _network(tmp_path), Timing(milliseconds=FAST_INT8, without_kernel=("fc_1",)), "int8")
    # fp16 twice, int8 until it was refused, and again without that layer, for both profiles.
    assert given == [b"", b"t", b"tt", b"ttr", b"ttrt"]


def test_a_refusal_that_names_no_layer_leaves_int8_out(tmp_path: Path) -> None:
    builder = Choosy(milliseconds=FAST_INT8, refusals={"int8-many": (("fc",), "no implementation for (Unnamed 7)")})
    engine = _engine(_build(tmp_path, _network(tmp_path), builder, "int8"))
    assert engine.precision == "fp16"
    assert _rejected(engine)["int8"] == "no kernel: no implementation for (Unnamed 7)"


def test_where_every_layer_is_put_back_int8_is_none(tmp_path: Path) -> None:
    """Nothing then runs in int8, and the inspector says so."""
    builder = Choosy(milliseconds=FAST_INT8, without_kernel=("fc", "fc_1", "fc_2"))
    bundle_of = _build(tmp_path, _network(tmp_path), builder, "int8", open=_as_fp16)
    engine = _engine(bundle_of)
    assert engine.precision == "fp16"
    assert _rejected(engine)["int8"] == "no layer truly runs in int8"


def _as_fp16(path: Path, options: Any) -> FakeDeviceSession:
    session = FakeDeviceSession(path, options)
    session.told["precision"] = "fp16"
    return session


def test_a_graph_in_which_tensorrt_never_finds_all_kernels_ends(tmp_path: Path) -> None:
    class Endless(FakeBuilder):
        """Has a kernel for no more layers however many are put back: what it names is never the same."""

        def build(self, model: Path, precision: str, *arguments: Any, **more: Any) -> Plan:
            if precision == "int8":
                refusal = UnbuildableError("no kernel for it", next_step="…")
                refusal.said = "for node fc. for node fc_1. for node fc_2."
                raise refusal
            return super().build(model, precision, *arguments, **more)

    engine = _engine(_build(tmp_path, _network(tmp_path), Endless(), "int8"))
    assert engine.precision == "fp16"
    assert _rejected(engine)["int8"] == "no kernel for it"


def test_one_profile_over_the_tolerance_is_enough(tmp_path: Path) -> None:
    def wrong_for_many(path: Path, options: Any) -> FakeDeviceSession:
        session = FakeDeviceSession(path, options)
        if path.stem == "fp16-many":
            honest = session._run
            session._run = lambda tensors: {"y": honest(tensors)["y"] * np.float32(1.1)}  # type: ignore[method-assign]
        return session

    engine = _engine(_build(tmp_path, toy_recipe(tmp_path, profiles=PROFILES), open=wrong_for_many))
    assert engine.precision == "fp32"
    assert "is over the tolerance 2e-02" in str(_rejected(engine)["fp16"])


@pytest.mark.parametrize("lost", [DeviceLostError, BackendError])
def test_a_machine_that_fails_ends_the_build_with_its_own_words(tmp_path: Path, lost: type[BackendError]) -> None:
    def failing(path: Path, options: Any) -> FakeDeviceSession:
        raise lost("the GPU does not answer any more", next_step="start again")

    with pytest.raises(lost, match="does not answer"):
        _build(tmp_path, toy_recipe(tmp_path), open=failing)
    assert Store(tmp_path / "store").keys() == []


def test_where_tensorrt_takes_nothing_nothing_is_wrong_with_the_numbers(tmp_path: Path) -> None:
    class Nothing(FakeBuilder):
        def build(self, model: Path, precision: str, *_arguments: Any, **_more: Any) -> Plan:
            raise UnbuildableError(f"no kernel for anything in {precision}", next_step="…")

    with pytest.raises(BackendError, match=r"fp16: no kernel .* fp16; fp32: no kernel .* fp32") as refusal:
        _build(tmp_path, toy_recipe(tmp_path), Nothing())
    assert not isinstance(refusal.value, VerificationError)
    assert "--target cpu" in refusal.value.next_step


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_proves_nothing(tmp_path: Path, wrong: float) -> None:
    with pytest.raises(VerificationError, match="not finite"):
        _build(tmp_path, toy_recipe(tmp_path, wrong=wrong))


def test_options_that_this_tensorrt_lacks_are_refused_whole(tmp_path: Path) -> None:
    class Old(FakeBuilder):
        def build(self, *_arguments: Any, **_more: Any) -> Plan:
            raise EngineError("TensorRT 8.6.1 builds no plans without weights", next_step="leave the option out")

    with pytest.raises(EngineError, match="without weights"):
        _build(tmp_path, toy_recipe(tmp_path), Old(), plans=PlanOptions(stripped=True))


def test_bf16_is_tried_where_it_is_asked_for_and_may_fail_alone(tmp_path: Path) -> None:
    def without_bf16(path: Path, options: Any) -> FakeDeviceSession:
        if path.stem.startswith("bf16"):
            raise VerificationError("the plan computes something else", next_step="…")
        return FakeDeviceSession(path, options)

    recipe, builder = _network(tmp_path), FakeBuilder()
    engine = _engine(_build(tmp_path, recipe, builder, "bf16", open=without_bf16))
    assert [precision for _, precision in builder.built] == ["fp16", "fp16", "bf16", "bf16"]
    assert _rejected(engine) == {"fp16": None, "bf16": "the plan computes something else"}


@pytest.mark.parametrize(
    "changes",
    [
        {"half_tolerance": 1e-9},
        {"spelling": "stacked"},
        {"profiles": PROFILES[:1]},
        {"rows": "rows", "revision": 2},
    ],
)
def test_what_decides_the_verdict_decides_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = _build(tmp_path, toy_recipe(tmp_path, profiles=PROFILES))
    second = _build(tmp_path, toy_recipe(tmp_path, **{"profiles": PROFILES, **changes}))
    assert second.manifest.key != first.manifest.key


@pytest.mark.parametrize("changes", [{"version_compatible": True}, {"stripped": True}, {"level": 0}])
def test_options_of_the_plan_decide_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = _build(tmp_path, toy_recipe(tmp_path))
    assert _build(tmp_path, toy_recipe(tmp_path), plans=PlanOptions(**changes)).manifest.key != first.manifest.key


def test_the_number_of_the_card_does_not_decide_the_key_and_is_where_it_is_proven(tmp_path: Path) -> None:
    devices: list[int] = []

    def noting(path: Path, options: Any) -> FakeDeviceSession:
        devices.append(options.device)
        return FakeDeviceSession(path, options)

    second = Card(CARD.name, CARD.capability, CARD.driver, 1)
    bundle = _build(tmp_path, toy_recipe(tmp_path), card=second, open=noting)
    assert set(devices) == {1}
    assert _build(tmp_path, toy_recipe(tmp_path)).manifest.key == bundle.manifest.key


def test_every_session_of_a_build_is_closed(tmp_path: Path) -> None:
    opened: list[FakeDeviceSession] = []

    def noting(path: Path, options: Any) -> FakeDeviceSession:
        opened.append(FakeDeviceSession(path, options))
        return opened[-1]

    _build(tmp_path, _network(tmp_path), FakeBuilder(milliseconds=FAST_INT8), "int8", open=noting)
    assert len(opened) >= 4
    assert all(session._closed for session in opened)


def test_an_interrupted_build_of_two_parts_goes_on_with_the_second(tmp_path: Path) -> None:
    first, second = (toy_recipe(tmp_path, name=name) for name in ("first", "second"))
    store, builder = Store(tmp_path / "store"), FakeBuilder()

    class Interrupted(FakeBuilder):
        def build(self, *arguments: Any, **more: Any) -> Plan:
            if builder.built:
                raise KeyboardInterrupt
            return builder.build(*arguments, **more)

    def built(with_builder: FakeBuilder) -> Bundle:
        model = Model("pair", {"first": first, "second": second})
        workshop = fake_workshop(with_builder)
        return build(model, store, BuildOptions(target="sm90"), make_workshop=lambda _target: workshop)

    with pytest.raises(KeyboardInterrupt):
        built(Interrupted())
    assert store.keys() == []
    bundle = built(builder)
    assert len(builder.built) == 2, "the first part was found again"
    assert list(bundle.manifest.parts) == ["first", "second"]


def test_sources_are_read_before_anything_is_built(tmp_path: Path) -> None:
    recipe, builder = toy_recipe(tmp_path), FakeBuilder()
    recipe.sources[0].unlink()
    with pytest.raises(CheckpointError):
        _build(tmp_path, recipe, builder)
    assert builder.built == []


def test_the_machine_is_held_while_it_is_measured(tmp_path: Path) -> None:
    held: list[bool] = [False]

    @contextmanager
    def exclusive() -> Iterator[None]:
        held[0] = True
        yield
        held[0] = False

    class Watching(FakeBuilder):
        def build(self, *arguments: Any, **more: Any) -> Plan:
            assert held[0]
            return super().build(*arguments, **more)

    build(
        Model.of(toy_recipe(tmp_path)),
        Store(tmp_path / "store"),
        BuildOptions(target="sm90"),
        exclusive=exclusive,
        make_workshop=lambda _target: fake_workshop(Watching()),
    )
    assert not held[0]


def test_fixed_sizes_are_in_the_graph_and_free_ones_in_the_profile(tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    class Noting(FakeBuilder):
        def build(self, model: Path, precision: str, profiles: Any, *arguments: Any, **more: Any) -> Plan:
            axes = onnx.load(str(model)).graph.input[0].type.tensor_type.shape.dim
            given[model.stem] = ([axis.dim_value or axis.dim_param for axis in axes], list(profiles))
            return super().build(model, precision, profiles, *arguments, **more)

    _build(tmp_path, toy_recipe(tmp_path, profiles=PROFILES), Noting())
    assert given["fp16-one"] == ([1, 3], [])
    assert given["fp16-many"] == (["rows", 3], [{"x": [(2, 8, 8), (3, 3, 3)]}])
