"""A user's own ONNX file: a small classifier of tokens, built like what exporters write."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.backends.session import SessionOptions, available_backends, open_session
from aula.core.errors import AulaError, BackendError, CalibrationError, EngineError
from aula.engine.recipe import Profile, Recipe, Size
from aula.models.own_onnx import own_onnx_model, own_onnx_recipe, read_graph
from tests.engine.small_graphs import FLOAT, INT64, model_of, node, value

WORDS, WIDTH, CLASSES = 30, 8, 3
SIZES = {"batch": Size(1, 1, 4), "ids_1": Size(2, 5, 9)}
PROFILES = (Profile("usual", SIZES),)


def _graph(batch: Any = "batch", extra: Any = ()) -> Any:
    """ids and mask [batch, free] to logits [batch, 3]: a mean of embeddings under the mask, and a linear layer."""
    generator = np.random.default_rng(1)
    return model_of(
        [
            node("Gather", "words ids", "rows"),
            node("Cast", "attention_mask", "present", to=FLOAT),
            node("Unsqueeze", "present last", "weight"),
            node("Mul", "rows weight", "kept"),
            node("ReduceMean", "kept middle", "mean", keepdims=0),
            node("Identity", "mean", "same"),
            node("MatMul", "same head", "logits"),
            *extra,
        ],
        [value("ids", INT64, batch, None), value("attention_mask", INT64, batch, None)],
        [value("logits", FLOAT, batch, CLASSES)],
        {
            "words": generator.normal(size=(WORDS, WIDTH)).astype(np.float32),
            "head": generator.normal(size=(WIDTH, CLASSES)).astype(np.float32),
            "last": np.array([2]),
            "middle": np.array([1]),
        },
    )


def _write(folder: Path, model: Any) -> Path:
    path = folder / "classifier.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = _graph()
    # Both inputs are as long as each other, which the file does not say; its user's profile has to.
    for given_input in model.graph.input:
        given_input.type.tensor_type.shape.dim[1].dim_param = "ids_1"
    return _write(tmp_path, model)


def _npz(folder: Path, name: str = "examples.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def _arrays(count: int = 20, length: int = 6) -> dict[str, Any]:
    ids = np.random.default_rng(3).integers(0, WORDS, (count, length))
    return {"ids": ids, "attention_mask": np.ones_like(ids)}


def _recipe(path: Path, **options: Any) -> Recipe:
    return own_onnx_recipe(path, "mine", **{"profiles": PROFILES, **options})


def test_the_recipe_serves_every_corner_on_every_backend(path: Path, tmp_path: Path) -> None:
    import onnx

    recipe = _recipe(path)
    graph = recipe.write_graph()
    assert "Identity" not in {made.op_type for made in graph.graph.node}
    engine = tmp_path / "engine.onnx"
    onnx.save(graph, str(engine))
    for backend in available_backends():
        with open_session(backend, engine, SessionOptions(threads=1)) as session:
            for sizes in recipe.profiles[0].corners:
                inputs = recipe.example(sizes, np.random.default_rng(0))
                wanted = recipe.reference(inputs)["logits"]
                assert wanted.dtype == np.float32
                error = np.abs(session.run(inputs)["logits"] - wanted).max() / np.abs(wanted).max()
                assert error < recipe.tolerance, backend


def test_made_up_examples_are_lawful_and_real_ones_fill_any_size(path: Path, tmp_path: Path) -> None:
    made = _recipe(path).example({"batch": 4, "ids_1": 9}, np.random.default_rng(0))
    assert made["ids"].shape == made["attention_mask"].shape == (4, 9)
    assert 1 < made["ids"].max() < WORDS
    assert (made["attention_mask"] == 1).all()
    arrays = _arrays()
    recipe = _recipe(path, calibrate=_npz(tmp_path, **arrays))
    real = recipe.example({"batch": 2, "ids_1": 9}, np.random.default_rng(0))
    rows = [row for row in arrays["ids"] if (row == real["ids"][0, :6]).all()]
    assert len(rows) == 1
    np.testing.assert_array_equal(real["ids"][1, 6:], rows[0][:3])


def test_calibration_and_task_come_from_npz(path: Path, tmp_path: Path) -> None:
    arrays = _arrays(100)
    whole = {name: array[:, None] for name, array in arrays.items()}
    labels = _recipe(path).reference(arrays)["logits"].argmax(axis=1)
    labels[:25] = (labels[:25] + 1) % CLASSES
    for given_arrays in (arrays, whole):
        recipe = _recipe(
            path,
            calibrate=_npz(tmp_path, **given_arrays),
            labelled=_npz(tmp_path, "labelled.npz", **given_arrays, labels=labels),
        )
        assert recipe.calibration is not None
        assert recipe.task is not None
        calibration, task = recipe.calibration(), recipe.task()
        assert len(calibration.inputs) == 100
        assert calibration.inputs[0]["ids"].shape == (1, 6)
        assert (calibration.source, task.metric, task.examples) == ("examples.npz", "accuracy", 100)
        assert calibration.digest != task.digest
        assert task.chance == np.bincount(labels).max() / 100
        with open_session("onnxruntime", path, SessionOptions(threads=1)) as session:
            assert task.evaluate(session) == 0.75
    assert _recipe(path).calibration is None
    assert _recipe(path).task is None


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"ids": _arrays()["ids"]}, "holds the arrays ids, but the model takes ids, attention_mask"),
        ({**_arrays(), "other": np.zeros(20)}, "holds the arrays attention_mask, ids, other"),
        ({**_arrays(), "ids": _arrays()["ids"].astype(np.float32)}, r"ids .* is float32\[20, 6\], but the model takes"),
        ({**_arrays(), "ids": np.zeros(20, np.int64)}, r"int64\[20\], but the model takes ids int64\[batch, ids_1\]"),
        ({**_arrays(), "ids": np.zeros((20, 0), np.int64)}, r"int64\[20, 0\]"),
        ({**_arrays(), "ids": np.zeros((19, 6), np.int64)}, "different numbers of examples"),
        ({**_arrays(), "ids": np.zeros((20, 7), np.int64)}, "the dimension ids_1 is 6 in attention_mask"),
        (_arrays(5), "5 examples in examples.npz are too few: 16"),
    ],
)
def test_examples_of_the_wrong_form_are_refused(path: Path, tmp_path: Path, arrays: Any, fault: str) -> None:
    with pytest.raises(CalibrationError, match=fault) as caught:
        _recipe(path, calibrate=_npz(tmp_path, **arrays))
    assert "np.savez(FILE, ids=int64 [n, batch, ids_1]" in caught.value.next_step


def test_labels_of_the_wrong_form_are_refused(path: Path, tmp_path: Path) -> None:
    arrays = _arrays(100)
    for labels in (np.zeros(99, np.int64), np.zeros(100, np.float32), np.full(100, -1)):
        with pytest.raises(CalibrationError, match="labels in"):
            _recipe(path, labelled=_npz(tmp_path, **arrays, labels=labels))
    with pytest.raises(CalibrationError, match="the label 3, but the model's classes are 0 to 2"):
        _recipe(path, labelled=_npz(tmp_path, **arrays, labels=np.arange(100) % 4))
    with pytest.raises(CalibrationError, match=r"99 examples in examples\.npz are too few: 100"):
        _recipe(path, labelled=_npz(tmp_path, **_arrays(99), labels=np.arange(99) % 3))
    with pytest.raises(CalibrationError, match="no array labels"):
        _recipe(path, labelled=_npz(tmp_path, **arrays))
    broken = _npz(tmp_path, **_arrays())
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(CalibrationError, match="cannot be read as npz"):
        _recipe(path, calibrate=broken)


def test_labels_beyond_a_free_last_axis_are_refused_when_it_is_known(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "y")], [value("x", FLOAT, 1, "wide")], [value("y", FLOAT, 1, "wide")])
    file = _write(tmp_path, model)
    rows = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    profiles = (Profile("p", {"wide": Size(4, 4, 4)}),)
    labelled = _npz(tmp_path, x=rows, labels=np.arange(100) % 5)
    recipe = own_onnx_recipe(file, "r", profiles=profiles, labelled=labelled)
    assert recipe.task is not None
    with (
        open_session("onnxruntime", file, SessionOptions(threads=1)) as session,
        pytest.raises(CalibrationError, match="the label 4, but the model's classes are 0 to 3"),
    ):
        recipe.task().evaluate(session)


def test_examples_that_are_all_alike_are_refused(path: Path, tmp_path: Path) -> None:
    arrays = {name: array[:1].repeat(20, axis=0) for name, array in _arrays().items()}
    with pytest.raises(CalibrationError, match=r"20 examples in examples\.npz are all alike"):
        _recipe(path, calibrate=_npz(tmp_path, **arrays))
    nothing = {name: np.zeros_like(array) for name, array in arrays.items()}
    with pytest.raises(CalibrationError, match="all zero"):
        _recipe(path, calibrate=_npz(tmp_path, **nothing))


def test_examples_that_prove_an_engine_are_among_its_sources(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    examples = _npz(beside, **_arrays())
    assert _recipe(path, calibrate=examples).sources == (path.resolve(), examples.resolve())
    monkeypatch.chdir(beside)
    mixed = _recipe(Path("..") / path.name, calibrate=examples)
    assert mixed.sources == (path.resolve(), examples.resolve())


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "y")], [value("x", FLOAT, 1, 4)], [value("y", FLOAT, 1, 4)])
    examples = np.ones((20, 4), np.float32)
    examples[3, 1] = np.nan
    with pytest.raises(CalibrationError, match="not finite"):
        own_onnx_recipe(_write(tmp_path, model), "r", profiles=(), calibrate=_npz(tmp_path, x=examples))


def test_labels_need_scores_to_judge(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "y")], [value("x", FLOAT, 1, 4, 2)], [value("y", FLOAT, 1, 4, 2)])
    labelled = _npz(tmp_path, x=np.ones((100, 4, 2), np.float32), labels=np.zeros(100, np.int64))
    with pytest.raises(CalibrationError, match=r"first output y has the shape \[1, 4, 2\]"):
        own_onnx_recipe(_write(tmp_path, model), "r", profiles=(), labelled=labelled)


def test_profiles_must_fit_the_free_dimensions(path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match="the free dimensions batch, ids_1, and a profile gives no sizes for"
    ) as caught:
        _recipe(path, profiles=())
    assert caught.value.next_step == "aula build classifier.onnx --profile usual:batch=1-1-8,ids_1=3-16-64"
    with pytest.raises(EngineError, match="no sizes for ids_1"):
        _recipe(path, profiles=(Profile("p", {"batch": Size(1, 1, 1)}),))
    with pytest.raises(EngineError, match="sizes for frames"):
        _recipe(path, profiles=(Profile("p", {**SIZES, "frames": Size(1, 1, 1)}),))


def test_profiles_are_read_as_the_command_line_writes_them(path: Path) -> None:
    model = own_onnx_model(path, ["short:batch=1,ids_1=2-5-9"])
    assert model.name == "classifier"
    assert model.recipe("model").profiles == (Profile("short", {"batch": Size(1, 1, 1), "ids_1": Size(2, 5, 9)}),)


def test_a_graph_without_free_dimensions_needs_no_profile(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "y")], [value("x", FLOAT, 1, 4)], [value("y", FLOAT, 1, 4)])
    recipe = own_onnx_recipe(_write(tmp_path, model), "r", profiles=())
    assert recipe.profiles[0].usual == {}
    assert recipe.example({}, np.random.default_rng(0))["x"].shape == (1, 4)


def test_external_weights_are_among_the_sources(path: Path) -> None:
    import onnx

    from aula.engine.onnx_files import save_model

    model = onnx.load(str(path))
    bigger = onnx.numpy_helper.from_array(np.ones((400, WIDTH), np.float32), "words")
    model.graph.initializer[0].CopyFrom(bigger)
    save_model(model, path, limit=0)
    recipe = _recipe(path)
    assert [source.name for source in recipe.sources] == ["classifier.onnx", "classifier.onnx.data"]
    assert recipe.example({"batch": 4, "ids_1": 9}, np.random.default_rng(0))["ids"].max() > WORDS
    assert recipe.reference(recipe.example({"batch": 1, "ids_1": 2}, np.random.default_rng(0)))["logits"].shape == (
        1,
        3,
    )


def test_operators_that_nobody_knows_are_named(tmp_path: Path) -> None:
    model = _graph(extra=[node("Odd", "logits", "unused", name="odd.7", domain="my.company")])
    with pytest.raises(BackendError, match=r"odd\.7 \(Odd, domain my\.company"):
        _recipe(_write(tmp_path, model))


def test_a_reference_that_cannot_run_says_so(path: Path) -> None:
    recipe = _recipe(path)
    inputs = recipe.example({"batch": 1, "ids_1": 3}, np.random.default_rng(0))
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot run classifier\.onnx"):
        recipe.reference({**inputs, "ids": inputs["ids"] + 10_000})


_VALID = bytes(_graph(batch=2).SerializeToString())


def _refused_or_sound(folder: Path, content: bytes) -> None:
    path = folder / "fuzzed.onnx"
    path.write_bytes(content)
    try:
        names = {size for spec in read_graph(path).graph.input for size in _names(spec)}
        recipe = own_onnx_recipe(path, "f", profiles=(Profile("p", {name: Size(1, 2, 3) for name in names}),))
        recipe.write_graph()
    except AulaError:
        pass


def _names(given_input: Any) -> list[str]:
    return [size.dim_param for size in given_input.type.tensor_type.shape.dim if not size.HasField("dim_value")]


@given(content=st.binary(max_size=200))
def test_random_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    _refused_or_sound(tmp_path_factory.getbasetemp(), content)


@settings(max_examples=50)
@given(cut=st.integers(0, len(_VALID) - 1))
def test_cut_files_do_no_harm(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    _refused_or_sound(tmp_path_factory.getbasetemp(), _VALID[:cut])


@settings(max_examples=200)
@given(flips=st.lists(st.tuples(st.integers(0, len(_VALID) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    content = bytearray(_VALID)
    for place, mask in flips:
        content[place] ^= mask
    _refused_or_sound(tmp_path_factory.getbasetemp(), bytes(content))
