from pathlib import Path

import pytest

from aula.bench.subjects import ARCHITECTURES, dimensions, open_subject, read_shape, seeded_subject, subject_of
from aula.core.errors import EngineError, ModelNotFoundError
from aula.engine.recipe import Model, Size
from aula.engine.store import Store
from aula.models.catalogue import Evidence
from tests.bench.toy import WIDTH, toy_file, toy_model, toy_recipe


def test_a_shape_gives_the_free_dimensions_or_the_whole_input(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    assert dimensions(model.parts["model"]) == ["rows", "columns"]
    assert read_shape("1x8", model).sizes == {"rows": 1, "columns": 8}
    assert read_shape(f"2x5x{WIDTH}", model).sizes == {"rows": 2, "columns": 5}
    assert read_shape("model/1x8", model).name == "1x8"


@pytest.mark.parametrize("text", ["", "x", "0x8", "1x8x", "1x8x9", "8", "1x8x32x4", "-1x8", "1×8", "no/1x8", "9" * 99])
def test_a_bad_shape_is_refused_with_a_right_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        read_shape(text, toy_model(tmp_path))
    assert "name one of these" in str(caught.value) or "--shape 1x8" in str(caught.value)


def test_with_several_parts_a_shape_says_for_which(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    model = Model("two", {"encoder": recipe, "decoder": recipe})
    assert read_shape("decoder/1x8", model).part == "decoder"
    with pytest.raises(EngineError, match="--shape encoder/1x8"):
        read_shape("1x8", model)


def test_a_model_of_ones_own_runs_in_the_narrowest_profile_that_serves(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    subject = subject_of(toy_model(tmp_path), store, ("1x8", "1x64"))
    assert subject.profiles == {("model", "1x8"): "usual", ("model", "1x64"): "wide"}
    assert [shape.name for shape in subject_of(toy_model(tmp_path), store, ()).shapes] == ["1x8", "1x32"]
    with pytest.raises(EngineError, match=r"usual \(rows 1 to 2, columns 2 to 16\)"):
        subject_of(toy_model(tmp_path), store, ("1x65",))


def test_seeded_weights_are_compiled_for_the_shapes_alone(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    model = Model("two", {"encoder": recipe, "decoder": recipe})
    subject = seeded_subject(model, Store(tmp_path / "store"), ("encoder/1x8", "encoder/2x9"))
    assert list(subject.model.parts) == ["encoder"]
    profiles = subject.model.parts["encoder"].profiles
    assert [profile.name for profile in profiles] == ["1x8", "2x9"]
    assert profiles[1].sizes == {"rows": Size(2, 2, 2), "columns": Size(9, 9, 9)}


def test_an_onnx_file_gets_its_free_dimensions_from_the_shapes(tmp_path: Path) -> None:
    path, store = str(toy_file(tmp_path)), Store(tmp_path / "store")
    with open_subject(path, Evidence(), ("1x8", f"2x5x{WIDTH}"), store=store, home=tmp_path) as subject:
        sizes = [dict(profile.sizes) for profile in subject.model.parts["model"].profiles]
        assert subject.store.folder != store.folder, "bundles for a bench's shapes alone are nobody else's"
    assert sizes == [
        {"rows": Size(1, 1, 1), "columns": Size(8, 8, 8)},
        {"rows": Size(2, 2, 2), "columns": Size(5, 5, 5)},
    ]
    assert not subject.seeded


@pytest.mark.parametrize("shapes", [(), ("8",)])
def test_an_onnx_file_without_sizes_says_how_to_give_them(tmp_path: Path, shapes: tuple[str, ...]) -> None:
    path, store = str(toy_file(tmp_path)), Store(tmp_path / "store")
    with (
        pytest.raises(EngineError, match=r"rows, columns.*--shape 16x16"),
        open_subject(path, Evidence(), shapes, store=store, home=tmp_path),
    ):
        pass


def test_every_size_of_whisper_goes_by_its_name() -> None:
    assert {"bert-base", "bert-base-chinese", "whisper-tiny", "whisper-large-v3", "efficientnet-b0"} <= set(
        ARCHITECTURES
    )
    assert "minilm" not in ARCHITECTURES


def test_an_unknown_name_is_answered_with_all_that_can_be_measured(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with (
        pytest.raises(ModelNotFoundError, match="no model 'nosuch'") as failure,
        open_subject("nosuch", Evidence(), (), store=store, home=tmp_path),
    ):
        pass
    assert {"minilm", "bert-base", "whisper-small", "efficientnet-b0"} <= set(failure.value.available)
