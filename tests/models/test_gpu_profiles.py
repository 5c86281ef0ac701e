"""What each family serves on a GPU, on small checkpoints: every profile built, proven, and answered as on a CPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.selecting import SelectingSession
from aula.core.errors import CheckpointError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.recipe import Model, Profile, Recipe, Size
from aula.engine.store import Store
from aula.models import bert, whisper
from aula.models.checkpoints import Checkpoint
from aula.models.efficientnet import efficientnet_recipe
from aula.models.efficientnet_layout import EfficientNetConfig
from tests.engine.fake_gpu import FakeBuilder, FakeDeviceSession, fake_workshop
from tests.models.bert_small_model import small, small_sentence_encoder
from tests.models.make_efficientnet_reference import REFERENCE, seeded_weights
from tests.models.whisper_small_model import SMALL


def _built(model: Model, folder: Path) -> Bundle:
    return build(
        model, Store(folder / "store"), BuildOptions(target="sm90"), make_workshop=lambda _target: fake_workshop()
    )


def _session(bundle: Bundle, profile: str, part: str = "model") -> FakeDeviceSession:
    return FakeDeviceSession(bundle.model_file(part, "sm90", profile), bundle.options(part, profile, "sm90"))


def _narrow(recipe: Recipe, **most: int) -> Recipe:
    """The same profiles with dimensions cut to sizes that a test can compute."""

    def cut(profile: Profile) -> Profile:
        sizes = {
            name: Size(*(min(size, most.get(name, size)) for size in (given.least, given.usual, given.greatest)))
            for name, given in profile.sizes.items()
        }
        return Profile(profile.name, sizes)

    return replace(recipe, gpu_profiles=tuple(cut(profile) for profile in recipe.gpu_profiles))


def _efficientnet(folder: Path) -> Checkpoint:
    from safetensors.numpy import save_file

    folder.mkdir()
    stored = np.load(REFERENCE, allow_pickle=False)
    (folder / "config.json").write_text(json.dumps(json.loads(str(stored["transformers-small.config"]))))
    checkpoint = Checkpoint(folder)
    shapes = EfficientNetConfig.from_checkpoint(checkpoint).network().weight_shapes()
    save_file(seeded_weights(shapes), checkpoint.weights_file)
    return checkpoint


def _sizes(recipe: Recipe) -> dict[str, dict[str, tuple[int, int, int]]]:
    return {
        profile.name: {name: (size.least, size.usual, size.greatest) for name, size in profile.sizes.items()}
        for profile in recipe.gpu_profiles
    }


def test_one_question_many_at_once_and_passages(tmp_path: Path) -> None:
    """The small checkpoint's texts have at most 40 tokens, so all lengths end there."""
    assert _sizes(bert.bert_recipe(small(tmp_path), "small")) == {
        "question": {"batch": (1, 1, 1), "sequence": (3, 32, 40)},
        "questions": {"batch": (1, 64, 64), "sequence": (3, 32, 40)},
        "passages": {"batch": (1, 16, 32), "sequence": (3, 40, 40)},
    }


def test_no_profile_exceeds_the_table_of_positions(tmp_path: Path) -> None:
    recipe = bert.bert_recipe(small(tmp_path, max_position_embeddings=3), "short")
    assert {sizes["sequence"] for sizes in _sizes(recipe).values()} == {(3, 3, 3)}


@pytest.mark.parametrize("family", ["sentences", "BertForSequenceClassification"])
def test_a_bert_is_proven_at_each(tmp_path: Path, family: str) -> None:
    checkpoint = (
        small_sentence_encoder(tmp_path / "c", "mean") if family == "sentences" else small(tmp_path / "c", family)
    )
    recipe = _narrow(bert.bert_recipe(checkpoint, "small"), batch=8)
    bundle = _built(Model.of(recipe), tmp_path)
    engine = bundle.engine(target="sm90")
    assert engine.plans.keys() == {"question", "questions", "passages"}
    assert engine.precision == "fp16"
    assert engine.chosen.relative_error is not None
    assert 0 < engine.chosen.relative_error < recipe.half_tolerance
    openers = {profile: (lambda name=profile: _session(bundle, name)) for profile in engine.plans}
    with SelectingSession({name: engine.bounds(name) for name in engine.plans}, openers) as session:
        for rows, length in ((1, 3), (1, 20), (8, 17)):
            inputs = recipe.example({"batch": rows, "sequence": length}, np.random.default_rng(rows))
            for name, wanted in recipe.reference(inputs).items():
                got = session.run(inputs)[name]
                assert got.shape == wanted.shape
                assert np.abs(got - wanted).max() < recipe.half_tolerance * np.abs(wanted).max()


def test_many_rows_are_as_each_alone(tmp_path: Path) -> None:
    """What lets a few rows prove all: the recipe says that rows do not depend on one another."""
    recipe = _narrow(bert.bert_recipe(small(tmp_path / "c"), "small"), batch=8)
    assert recipe.rows == "batch"
    bundle = _built(Model.of(recipe), tmp_path)
    inputs = recipe.example({"batch": 8, "sequence": 12}, np.random.default_rng(2))
    with _session(bundle, "questions") as many, _session(bundle, "question") as one:
        together = many.run(inputs)
        for row in range(8):
            alone = one.run({name: array[row : row + 1] for name, array in inputs.items()})
            for name, array in alone.items():
                np.testing.assert_allclose(together[name][row], array[0], atol=1e-2)


def test_pictures_one_and_many(tmp_path: Path) -> None:
    recipe = efficientnet_recipe(_efficientnet(tmp_path / "c"), "small")
    assert _sizes(recipe) == {"image": {"batch": (1, 1, 1)}, "images": {"batch": (1, 32, 32)}}
    recipe = _narrow(recipe, batch=6)
    bundle = _built(Model.of(recipe), tmp_path)
    engine = bundle.engine(target="sm90")
    assert engine.plans.keys() == {"image", "images"}
    assert engine.precision == "fp16"
    inputs = recipe.example({"batch": 6}, np.random.default_rng(1))
    wanted = recipe.reference(inputs)["logits"]
    with _session(bundle, "images") as many, _session(bundle, "image") as one:
        together = many.run(inputs)["logits"]
        alone = one.run({name: array[:1] for name, array in inputs.items()})["logits"]
    assert np.abs(together - wanted).max() < recipe.half_tolerance * np.abs(wanted).max()
    assert np.abs(together[:1] - alone).max() < 1e-2 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Model:
    checkpoint = whisper.random_checkpoint(SMALL, tmp_path_factory.mktemp("whisper"), 5)
    return whisper.whisper_model(checkpoint, "small", seeded=True)


def test_whisper_s_parts_are_others_on_a_gpu(speech: Model) -> None:
    """Here as on a card: one utterance at a time, five seconds or the whole window. The small one's window is shorter
    than five seconds."""
    cpu, gpu = speech.parts_for(False), speech.parts_for(True)
    assert cpu.keys() == gpu.keys() == {"encoder", "decoder"}
    names = [profile.name for profile in gpu["decoder"].profiles]
    assert names == ["step", "prompt", "window-step", "window-prompt"]
    assert gpu["decoder"].by_profile.keys() == {"prompt", "window-prompt"}
    assert gpu["decoder"].states
    assert not cpu["decoder"].states
    for profile in gpu["decoder"].profiles:
        assert all(size.least == size.greatest for size in profile.sizes.values())
        assert profile.usual == {"rows": 1, "slots": 64, "positions": 50}
    assert [profile.usual for profile in gpu["encoder"].profiles] == [{"rows": 1, "frames": 100}] * 2


def test_whisper_s_positions_and_slots_stop_at_the_model_s(tmp_path: Path) -> None:
    checkpoint = whisper.random_checkpoint({**SMALL, "max_target_positions": 20}, tmp_path, 5)
    gpu = whisper.whisper_model(checkpoint, "small", seeded=True).parts_for(True)
    assert {profile.usual["slots"] for profile in gpu["decoder"].profiles} == {20}


def test_whisper_is_proven_at_each(speech: Model, tmp_path: Path) -> None:
    bundle = _built(speech, tmp_path)
    for part in ("encoder", "decoder"):
        engine = bundle.engine(part, "sm90")
        assert engine.plans.keys() == engine.inspection.keys() == engine.profiles.keys()
        assert engine.precision == "fp16"
    # Prompt and step take and give the same: one may follow the other in place.
    with _session(bundle, "prompt", "decoder") as prompt, _session(bundle, "step", "decoder") as step:
        assert [spec.name for spec in prompt.inputs] == [spec.name for spec in step.inputs]
        assert {pair.input: prompt.dtype_of(pair.input) for pair in prompt.options.states} == {
            pair.input: step.dtype_of(pair.input) for pair in step.options.states
        }
    # What the encoder gives is what the decoder takes, in types too.
    with _session(bundle, "question", "encoder") as encoder, _session(bundle, "step", "decoder") as step:
        given = {spec.name: spec.dtype for spec in encoder.outputs}
        taken = {spec.name: spec.dtype for spec in step.inputs if spec.name.startswith("cross")}
        assert taken.items() <= given.items()


def test_a_damaged_checkpoint_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    checkpoint = small(tmp_path / "c")
    checkpoint.weights_file.write_bytes(b"damaged")
    builder = FakeBuilder()

    def workshop(_target: Any) -> Any:
        return fake_workshop(builder)

    with pytest.raises(CheckpointError):
        build(
            Model.of(bert.bert_recipe(checkpoint, "small")),
            Store(tmp_path / "store"),
            BuildOptions(target="sm90"),
            make_workshop=workshop,
        )
    assert builder.built == []
