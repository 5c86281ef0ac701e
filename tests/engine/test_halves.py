"""Lower precision in the graph: types agree everywhere, borders stay, and results are near those of FP32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aula.backends.session import SessionOptions, open_session
from aula.core.errors import EngineError
from aula.engine.graph import report
from aula.engine.halves import lower_precision, shares
from aula.engine.passes import value_types
from aula.engine.recipe import Recipe
from tests.engine.small_graphs import BOOL, DOUBLE, FLOAT, INT64, model_of, node, operators, run, scalar, value

FP16, BF16 = 10, 16
LOW = {"fp16": FP16, "bf16": BF16}
TOLERANCE = {"fp16": 1e-2, "bf16": 8e-2}
"""Largest difference over largest value. Eight and eleven bits leave 4e-3 and 5e-4 a rounding; a few layers add up,
and a logarithmic probability near zero magnifies them."""


def _lowered(model: Any, precision: str = "fp16", **options: Any) -> Any:
    """The lowered graph, after it was checked strictly."""
    import onnx

    before = model.SerializeToString()
    lowered = lower_precision(model, precision, **options)
    assert model.SerializeToString() == before, "the graph that was given is not changed"
    onnx.checker.check_model(lowered, full_check=True)
    onnx.shape_inference.infer_shapes(lowered, check_type=True, strict_mode=True)
    for mine, theirs in zip(
        [*lowered.graph.input, *lowered.graph.output], [*model.graph.input, *model.graph.output], strict=True
    ):
        kind = theirs.type.tensor_type.elem_type
        assert mine.name == theirs.name
        lowered_too = kind == FLOAT and mine.name in options.get("borders", ())
        assert mine.type.tensor_type.elem_type == (LOW[precision] if lowered_too else kind)
    _no_idle_casts(lowered)
    return lowered


def _no_idle_casts(model: Any) -> None:
    """No constant is cast at run time, no cast undoes another, and none changes nothing."""
    kinds = value_types(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    to = {made.output[0]: made.attribute[0].i for made in model.graph.node if made.op_type == "Cast"}
    for made in model.graph.node:
        if made.op_type == "Cast":
            assert made.input[0] not in constants
            assert kinds[made.input[0]] != to[made.output[0]]
            assert not (made.input[0] in to and {to[made.input[0]], to[made.output[0]]} <= {FLOAT, FP16, BF16})


def _type_of(model: Any, output: str) -> int:
    return value_types(model.graph)[output]


def _error(got: Any, wanted: Any) -> float:
    return float(np.abs(got.astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """Tiny models with every part of the true architectures."""
    from safetensors.numpy import save_file

    from aula.models import bert_seeded, whisper
    from aula.models.bert import bert_recipe
    from aula.models.checkpoints import Checkpoint
    from aula.models.efficientnet import efficientnet_recipe
    from aula.models.efficientnet_layout import EfficientNetConfig
    from tests.models.bert_small_model import SMALL as SMALL_BERT
    from tests.models.make_efficientnet_reference import REFERENCE, seeded_weights
    from tests.models.whisper_small_model import SEED, SMALL

    folder = tmp_path_factory.mktemp("tiny")
    pictures = Checkpoint(folder / "efficientnet")
    pictures.folder.mkdir()
    stored = np.load(REFERENCE, allow_pickle=False)
    (pictures.folder / "config.json").write_text(str(stored["transformers-small.config"]))
    save_file(
        seeded_weights(EfficientNetConfig.from_checkpoint(pictures).network().weight_shapes()), pictures.weights_file
    )
    speech = whisper.random_checkpoint(SMALL, folder / "whisper", SEED)
    return {
        "bert": bert_recipe(bert_seeded.random_checkpoint(SMALL_BERT, folder / "bert", 1), "bert"),
        "efficientnet": efficientnet_recipe(pictures, "efficientnet"),
        "encoder": whisper.encoder_recipe(speech, "whisper"),
        "decoder": whisper.decoder_recipe(speech, "whisper"),
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["bert", "efficientnet", "encoder", "decoder"])
def test_recipes_compute_nearly_the_same(recipes: dict[str, Recipe], tmp_path: Path, name: str, precision: str) -> None:
    """FP16 on ONNX Runtime; BF16 on onnx's reference, since ONNX Runtime has no BF16 on a CPU."""
    from onnx.reference import ReferenceEvaluator

    recipe = recipes[name]
    model = recipe.write_graph()
    lowered = _lowered(model, precision)
    assert shares(lowered) == {precision: sum(shares(model).values())}, "every product is lowered"
    assert report(lowered).weight_bytes < 0.6 * report(model).weight_bytes
    inputs = recipe.example(recipe.profiles[0].usual, np.random.default_rng(0))
    wanted = run(model, inputs)
    if precision == "fp16":
        got = run(lowered, inputs)
    else:
        values: Any = ReferenceEvaluator(lowered).run(None, inputs)
        got = dict(zip([output.name for output in lowered.graph.output], values, strict=True))
    errors = {key: _error(got[key], wanted[key]) for key in wanted if key != "next"}
    assert max(errors.values()) < TOLERANCE[precision], errors


@pytest.fixture(scope="module")
def bert(recipes: dict[str, Recipe]) -> tuple[Any, Any]:
    model = recipes["bert"].write_graph()
    return model, lower_precision(model, "fp16")


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 3), sequence=st.integers(2, 20))
def test_fp16_is_near_at_any_size(
    recipes: dict[str, Recipe], bert: tuple[Any, Any], seed: int, batch: int, sequence: int
) -> None:
    inputs = recipes["bert"].example({"batch": batch, "sequence": sequence}, np.random.default_rng(seed))
    wanted, got = (run(model, inputs) for model in bert)
    for name in wanted:
        assert np.isfinite(got[name]).all()
        assert _error(got[name], wanted[name]) < TOLERANCE["fp16"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_openvino_takes_the_typed_graph(recipes: dict[str, Recipe], tmp_path: Path, precision: str) -> None:
    import onnx

    recipe = recipes["bert"]
    path = tmp_path / "model.onnx"
    onnx.save(lower_precision(recipe.write_graph(), precision), str(path))
    inputs = recipe.example(recipe.profiles[0].usual, np.random.default_rng(0))
    with open_session("openvino", path, SessionOptions(threads=1)) as session:
        got = session.run(inputs)
    for name, wanted in run(recipe.write_graph(), inputs).items():
        assert _error(got[name], wanted) < TOLERANCE[precision], name


W = np.full((8, 8), 0.25, dtype=np.float32)


def _attention(mask: Any, **constants: Any) -> Any:
    """Scores, a mask on them, softmax, and a product with the shares."""
    return model_of(
        [node("MatMul", "x w", "scores"), *mask, node("Softmax", "masked", "shares"), node("MatMul", "shares w", "y")],
        [value("x", FLOAT, "n", 8), value("m", INT64, "n", 8)],
        [value("y", FLOAT, "n", 8)],
        {"w": W, **constants},
    )


MASKS = {
    "added": [
        node("Cast", "m", "present", to=FLOAT),
        node("Sub", "one present", "absent"),
        node("Mul", "absent far", "penalty"),
        node("Add", "scores penalty", "masked"),
    ],
    "selected": [node("Cast", "m", "keep", to=BOOL), node("Where", "keep scores far", "masked")],
}


@pytest.mark.parametrize("far", [-1e4, -3.4028235e38, -np.inf])
@pytest.mark.parametrize("kind", sorted(MASKS))
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_masks_of_any_depth_stay_finite(kind: str, far: float, precision: str) -> None:
    from onnx.reference import ReferenceEvaluator

    if kind == "added" and np.isinf(far):
        return  # 0 * inf is no number in FP32 either
    model = _attention(MASKS[kind], far=np.float32(far), one=np.float32(1))
    lowered = _lowered(model, precision)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    m = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8, [1] + [0] * 7], dtype=np.int64)
    (got,) = ReferenceEvaluator(lowered).run(None, {"x": x, "m": m})
    assert np.isfinite(got).all()
    assert _error(got, run(model, {"x": x, "m": m})["y"]) < TOLERANCE[precision]


def test_what_goes_down_after_a_mask_is_clamped() -> None:
    model = model_of(
        [
            node("Cast", "m", "number", to=FLOAT),
            node("Mul", "number far", "deep"),
            node("MatMul", "x w", "h"),
            node("MatMul", "h deep", "y"),
        ],
        [value("x", FLOAT, 2, 8), value("m", INT64, 8, 2)],
        [value("y", FLOAT, 2, 2)],
        {"w": W, "far": np.float32(-1e30)},
    )
    lowered = _lowered(model)
    assert "Clip" in operators(lowered)
    inputs: dict[str, Any] = {"x": np.full((2, 8), 1e-5, np.float32), "m": np.ones((8, 2), np.int64)}
    assert np.isfinite(run(lowered, inputs)["y"]).all()


def test_weights_beyond_the_range_are_clamped() -> None:
    huge = W.copy()
    huge[0, 0] = 1e6
    model = model_of([node("MatMul", "x w", "y")], [value("x", FLOAT, 2, 8)], [value("y", FLOAT, 2, 8)], {"w": huge})
    import onnx

    (stored,) = _lowered(model).graph.initializer
    assert onnx.numpy_helper.to_array(stored).max() == np.finfo(np.float16).max


def test_positions_count_exactly_beyond_2048() -> None:
    """Rotary arithmetic: positions times frequencies, whose cosine multiplies what the layers compute."""
    model = model_of(
        [
            node("Cast", "p", "position", to=FLOAT),
            node("MatMul", "position frequency", "angle"),
            node("Cos", "angle", "turn"),
            node("MatMul", "x w", "h"),
            node("Mul", "h turn", "y"),
        ],
        [value("x", FLOAT, 4, 8), value("p", INT64, 4, 1)],
        [value("y", FLOAT, 4, 8)],
        {"w": W, "frequency": np.ones((1, 8), dtype=np.float32)},
    )
    lowered = _lowered(model)
    assert _type_of(lowered, "angle") == FLOAT
    inputs: dict[str, Any] = {"x": np.ones((4, 8), np.float32), "p": np.array([[1], [2049], [30_001], [70_001]])}
    assert _error(run(lowered, inputs)["y"], run(model, inputs)["y"]) < 2e-3


def test_islands_can_be_chosen() -> None:
    model = _attention([node("Identity", "scores", "masked")])
    assert _type_of(_lowered(model), "shares") == FLOAT
    assert _type_of(_lowered(model, islands=()), "shares") == FP16
    assert shares(_lowered(model, islands={"Softmax", "MatMul"})) == {"fp32": 2}


def test_nodes_between_islands_stay_up_and_casts_are_shared() -> None:
    model = model_of(
        [
            node("MatMul", "x w", "h"),
            node("ReduceMean", "h axis", "mean"),
            node("Mul", "mean mean", "squared"),
            node("Sqrt", "squared", "root"),
            node("MatMul", "h w", "a"),
            node("Div", "a root", "y"),
        ],
        [value("x", FLOAT, "n", 8)],
        [value("y", FLOAT, "n", 8)],
        {"w": W, "axis": np.array([1])},
    )
    lowered = _lowered(model)
    assert _type_of(lowered, "squared") == FLOAT
    assert operators(lowered).count("Cast") == 3  # x down, h up, a up


def test_q_dq_pairs_carry_the_low_type_and_integers_stay() -> None:
    weight = np.arange(64, dtype=np.int8).reshape(8, 8)
    model = model_of(
        [
            node("MatMul", "x w", "h"),
            node("QuantizeLinear", "h s z", "q"),
            node("DequantizeLinear", "q s z", "d"),
            node("DequantizeLinear", "k ks", "kd", axis=1),
            node("MatMul", "d kd", "y"),
        ],
        [value("x", FLOAT, "n", 8)],
        [value("y", FLOAT, "n", 8)],
        {"w": W, "s": np.float32(0.05), "z": np.int8(3), "k": weight, "ks": np.full(8, 0.01, np.float32)},
        opset=17,
    )
    lowered = _lowered(model)
    assert [_type_of(lowered, name) for name in ("h", "d", "kd")] == [FP16] * 3
    assert {tensor.data_type for tensor in lowered.graph.initializer if tensor.name in ("z", "k")} == {3}
    assert lowered.opset_import[0].version > 17, "FP16 scales need a newer operator set"
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    assert _error(run(lowered, inputs)["y"], run(model, inputs)["y"]) < 5e-2


def test_scales_too_small_for_fp16_keep_their_pair_in_fp32() -> None:
    model = model_of(
        [
            node("MatMul", "x w", "h"),
            node("QuantizeLinear", "h s z", "q"),
            node("DequantizeLinear", "q s z", "d"),
            node("MatMul", "d w", "y"),
        ],
        [value("x", FLOAT, "n", 8)],
        [value("y", FLOAT, "n", 8)],
        {"w": W, "s": np.float32(1e-6), "z": np.int8(0)},
    )
    assert _type_of(_lowered(model), "d") == FLOAT
    assert _type_of(_lowered(model, "bf16"), "d") == BF16


def test_doubles_and_other_domains_and_bodies_stay() -> None:
    import onnx

    body = onnx.helper.make_graph([node("Add", "h h", "twice")], "body", [], [value("twice", FLOAT, "n", 8)])
    model = model_of(
        [
            node("MatMul", "x w", "h"),
            node("If", "c", "i", then_branch=body, else_branch=body),
            node("Cast", "h", "d", to=DOUBLE),
            node("Exp", "d", "e"),
            node("Cast", "e", "f", to=FLOAT),
            node("Gelu", "h", "g", domain="com.microsoft"),
            node("Sum", "i f g", "y"),
        ],
        [value("x", FLOAT, "n", 8), scalar("c", BOOL)],
        [value("y", FLOAT, "n", 8), value("h", FLOAT, "n", 8)],
        {"w": W},
    )
    lowered = lower_precision(model, "fp16")
    assert shares(lowered) == {"fp16": 1}
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32), "c": np.array(True)}
    got, wanted = run(lowered, inputs), run(model, inputs)
    assert {name: array.dtype for name, array in got.items()} == {"y": np.float32, "h": np.float32}
    assert max(_error(got[name], wanted[name]) for name in wanted) < 1e-2


def test_bf16_convolutions_are_raised_to_the_operator_set_that_has_them() -> None:
    model = model_of(
        [node("Conv", "x w", "y")],
        [value("x", FLOAT, 1, 1, 8, 8)],
        [value("y", FLOAT, 1, 1, 6, 6)],
        {"w": np.ones((1, 1, 3, 3), dtype=np.float32)},
        opset=16,
    )
    assert shares(_lowered(model, "bf16")) == {"bf16": 1}
    model.opset_import[0].version = 11
    assert shares(_lowered(model, "bf16")) == {"fp32": 1}, "too old to be raised by adding types"


# Borders: states, and what one engine hands to the next.


def _stepping() -> Any:
    """A cache that grows by what is computed, and scores of all of it."""
    nodes = [
        node("MatMul", "x w", "new"),
        node("Concat", "cache new", "cache_next", axis=0),
        node("MatMul", "cache_next w", "scores"),
        node("Softmax", "scores", "shares"),
    ]
    shapes = {"x": ("n", 8), "cache": ("m", 8), "cache_next": ("k", 8), "scores": ("k", 8), "shares": ("k", 8)}
    values = {name: value(name, FLOAT, *shape) for name, shape in shapes.items()}
    outputs = [values[name] for name in ("cache_next", "scores", "shares")]
    return model_of(nodes, [values["x"], values["cache"]], outputs, {"w": W})


def _step(model: Any, kind: Any) -> Any:
    generator = np.random.default_rng(2)
    given = {"x": generator.normal(size=(1, 8)).astype(np.float32), "cache": generator.normal(size=(4, 8)).astype(kind)}
    return run(model, given)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("borders", [("cache", "cache_next"), ("cache", "cache_next", "shares"), ("shares",), ("x",)])
def test_borders_take_the_low_type_on_both_sides(precision: str, borders: tuple[str, ...]) -> None:
    model = _stepping()
    lowered = _lowered(model, precision, borders=borders)
    assert shares(lowered) == {precision: 2}
    if precision == "fp16" and "x" not in borders:
        got = _step(lowered, np.float16 if "cache" in borders else np.float32)
        wanted = _step(model, np.float32)
        assert {name: array.dtype == np.float16 for name, array in got.items()} == {
            name: name in borders for name in wanted
        }
        assert max(_error(got[name], wanted[name]) for name in wanted) < TOLERANCE["fp16"]


def test_a_state_in_the_low_type_is_cast_nowhere() -> None:
    lowered = _lowered(_stepping(), borders=("cache", "cache_next", "scores"))
    assert [(made.input[0], made.output[0]) for made in lowered.graph.node if made.op_type == "Cast"] == [
        ("x", "x/fp16"),
        ("scores", "scores/fp32"),
    ]


def test_an_output_that_is_computed_in_fp32_is_cast_at_the_end() -> None:
    lowered = _lowered(_stepping(), borders=("shares",))
    last = next(made for made in lowered.graph.node if "shares" in made.output)
    assert (last.op_type, list(last.input)) == ("Cast", ["shares/fp32"])
    assert _type_of(lowered, "shares/fp32") == FLOAT


@pytest.mark.parametrize("borders", [(), ("s",)])
def test_an_output_and_what_needs_it_in_the_other_type_share_one_cast(borders: tuple[str, ...]) -> None:
    """s is computed in FP32; a product behind it wants it low, a softmax wants it high."""
    nodes = [
        node("Softmax", "x", "s"),
        node("MatMul", "s w", "p"),
        node("Softmax", "s", "t"),
    ]
    model = model_of(
        nodes, [value("x", FLOAT, "n", 8)], [value(name, FLOAT, "n", 8) for name in ("s", "p", "t")], {"w": W}
    )
    lowered = _lowered(model, borders=borders)
    x = {"x": np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)}
    got, wanted = run(lowered, x), run(model, x)
    assert max(_error(got[name], wanted[name]) for name in wanted) < TOLERANCE["fp16"]
    casts = [made for made in lowered.graph.node if made.op_type == "Cast"]
    assert len(casts) == 2, "s down, p up"


def test_a_border_beyond_the_range_is_clamped_to_it() -> None:
    model = model_of(
        [node("Add", "x far", "y")], [value("x", FLOAT, 3)], [value("y", FLOAT, 3)], {"far": np.float32(-3.4e38)}
    )
    lowered = _lowered(model, borders=("y",))
    assert run(lowered, {"x": np.ones(3, np.float32)})["y"].tolist() == [-65504] * 3


def test_bodies_see_borders_in_the_type_that_they_were_written_for() -> None:
    import onnx

    branch = onnx.helper.make_graph([node("Add", "s r", "b")], "body", [], [value("b", FLOAT, "n", 8)])
    nodes = [
        node("Softmax", "x", "s"),
        node("MatMul", "state w", "r"),
        node("If", "c", "y", then_branch=branch, else_branch=branch),
    ]
    inputs = [value("x", FLOAT, "n", 8), value("state", FLOAT, "n", 8), scalar("c", BOOL)]
    model = model_of(nodes, inputs, [value(name, FLOAT, "n", 8) for name in ("s", "r", "y")], {"w": W})
    lowered = _lowered(model, borders=("state", "s", "r"))
    generator = np.random.default_rng(5)
    x, state = (generator.normal(size=(2, 8)).astype(np.float32) for _ in range(2))
    got = run(lowered, {"x": x, "state": state.astype(np.float16), "c": np.array(True)})
    wanted = run(model, {"x": x, "state": state, "c": np.array(True)})
    assert max(_error(got[name], wanted[name]) for name in wanted) < TOLERANCE["fp16"]


def test_the_caches_of_whisper_s_decoder_can_be_borders(recipes: dict[str, Recipe]) -> None:
    recipe = recipes["decoder"]
    model = recipe.write_graph()
    caches = {each.name for each in model.graph.input if each.type.tensor_type.elem_type == FLOAT} | {"new"}
    assert len(caches) == 13
    lowered = _lowered(model, borders=caches)
    inputs = recipe.example(recipe.profiles[0].usual, np.random.default_rng(0))
    halved = {name: array.astype(np.float16) if name in caches else array for name, array in inputs.items()}
    got, wanted = run(lowered, halved), run(model, inputs)
    assert [got[name].dtype.name for name in ("new", "logprob")] == ["float16", "float32"]
    assert max(_error(got[name], wanted[name]) for name in wanted if name != "next") < TOLERANCE["fp16"]


def test_another_precision_is_refused() -> None:
    with pytest.raises(EngineError, match="no lower precision 'int8'"):
        lower_precision(_attention([node("Identity", "scores", "masked")]), "int8")
