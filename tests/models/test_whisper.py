import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CheckpointError, EngineError, ModelNotFoundError
from aula.engine.recipe import Recipe
from aula.models.checkpoints import INDEX, Checkpoint
from aula.models.whisper import (
    ARCHITECTURES,
    architecture,
    decoder_recipe,
    encoder_recipe,
    random_checkpoint,
    whisper_model,
)
from aula.models.whisper_choice import HostChoice
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_graphs import rounded
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_tokens import RULES, SpecialTokens, suppression
from tests.models.whisper_small_model import PROMPT, SEED, SMALL

BACKENDS = ["openvino", "onnxruntime"]
END = 309


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(SMALL, tmp_path_factory.mktemp("small"), SEED)


@pytest.fixture(scope="module")
def config(small: Checkpoint) -> WhisperConfig:
    return WhisperConfig.from_checkpoint(small)


@pytest.fixture(scope="module")
def reference(small: Checkpoint, config: WhisperConfig) -> WhisperReference:
    return WhisperReference(config, lambda: load_weights(small, config.encoder_shapes() | config.decoder_shapes()))


def _session(recipe: Any, folder: Path, backend: str) -> Session:
    import onnx

    path = folder / f"{recipe.name}.onnx"
    if not path.exists():
        onnx.save(recipe.write_graph(), path)
    return open_session(backend, path, SessionOptions(threads=1))


@pytest.fixture(scope="module", params=BACKENDS)
def decoding(request: Any, small: Checkpoint, config: WhisperConfig) -> WhisperDecoding:
    recipes = encoder_recipe(small, "e"), decoder_recipe(small, "d")
    return WhisperDecoding(config, *(_session(recipe, small.folder, request.param) for recipe in recipes))


def _mel(seed: int, frames: int = 60) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (20, frames)).astype(np.float32)


def _relative_error(session: Session, recipe: Recipe, sizes: dict[str, int]) -> float:
    inputs = recipe.example(sizes, np.random.default_rng(1))
    produced = session.run(inputs)
    wanted = recipe.reference(inputs)
    return max(float(np.abs(produced[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graphs_equal_the_plain_reference_at_every_corner(small: Checkpoint, backend: str) -> None:
    for recipe in whisper_model(small, "w").parts.values():
        with _session(recipe, small.folder, backend) as session:
            for profile in recipe.profiles:
                for sizes in profile.corners:
                    assert _relative_error(session, recipe, sizes) < 5e-5, (recipe.name, profile.name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graph_with_int8_weights_is_near_the_plain_one(small: Checkpoint, backend: str) -> None:
    import onnx

    recipe = decoder_recipe(small, "w-int8")
    path = small.folder / "int8.onnx"
    onnx.save(recipe.written["int8"](), str(path))
    # The runtimes round activations as well; what all of it costs a text is for the recipe's task to say.
    with open_session(backend, path, SessionOptions(threads=1)) as session:
        for profile in recipe.profiles:
            assert _relative_error(session, recipe, profile.usual) < 0.2, profile.name


def test_the_graph_with_int8_weights_is_exact_where_nothing_else_is_rounded(
    small: Checkpoint, config: WhisperConfig
) -> None:
    import onnxruntime

    recipe = decoder_recipe(small, "w")
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(recipe.written["int8"]().SerializeToString(), plain)
    sizes = {"rows": 2, "tokens": 3, "answers": 2, "slots": 9, "positions": 7}
    inputs = recipe.example(sizes, np.random.default_rng(1))
    reference = WhisperReference(config, lambda: rounded(load_weights(small, config.decoder_shapes())))
    for name, wanted in reference.decode(inputs).items():
        np.testing.assert_allclose(session.run([name], inputs)[0], wanted, atol=1e-4, err_msg=name)


def test_the_model_has_two_parts_with_profiles_for_what_is_served(small: Checkpoint) -> None:
    model = whisper_model(small, "whisper-w")
    encoder, decoder = model.recipe("encoder"), model.recipe("decoder")
    assert (model.name, encoder.name, decoder.name) == ("whisper-w", "whisper-w-encoder", "whisper-w-decoder")
    assert set(decoder.written) == {"int8"}
    assert (encoder.unproven, decoder.unproven) == ((), ("next", "logprob"))
    assert not encoder.written
    assert [encoder.seeded, encoder.calibration, encoder.task, decoder.task] == [False, None, None, None]
    step = {profile.name: profile for profile in decoder.profiles}["step"].sizes
    assert all(step[name].least == step[name].greatest for name in ("rows", "tokens", "slots"))
    assert {profile.name for profile in decoder.profiles} == {"step", "long", "prompt", "window", "rows"}
    assert all(profile.sizes["rows"].greatest == 1 for profile in encoder.profiles)
    assert small.weights_file in encoder.sources


def test_a_seeded_model_owns_up_to_it(small: Checkpoint) -> None:
    model = whisper_model(small, "w", seeded=True)
    assert all(recipe.seeded and recipe.task is None for recipe in model.parts.values())
    calibration = model.recipe("encoder").calibration
    assert calibration is not None
    assert calibration().random
    assert calibration().inputs[0]["mel"].shape[1] == SMALL["num_mel_bins"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_likeliest_token_is_the_references(
    small: Checkpoint, config: WhisperConfig, reference: WhisperReference, backend: str
) -> None:
    recipe = decoder_recipe(small, "w")
    sizes = {"rows": 3, "tokens": 5, "answers": 4, "slots": 70, "positions": 31}
    inputs = recipe.example(sizes, np.random.default_rng(1))
    assert len(set(inputs["position"])) == 3, "every row has its own position"
    with _session(recipe, small.folder, backend) as session:
        produced = session.run(inputs)
        # What stands in slots that are not filled yet must not matter, nor positions that were not heard.
        for name, array in inputs.items():
            for row in range(3):
                if name.startswith("past"):
                    array[row, :, int(inputs["position"][row]) :] = 1e2
                if name.startswith("cross"):
                    array[row, :, int(inputs["heard"][row]) :] = 1e2
        again = session.run(inputs)
    np.testing.assert_array_equal(produced["next"], reference.decode(inputs)["next"])
    np.testing.assert_array_equal(produced["next"], again["next"])
    np.testing.assert_allclose(produced["logprob"], again["logprob"], atol=1e-5)


def test_the_loop_writes_what_computing_everything_anew_writes(
    decoding: WhisperDecoding, reference: WhisperReference
) -> None:
    forbidden = np.zeros((2, 310), dtype=bool)
    forbidden[:, [1, 2, 7]] = True
    forbidden[0, [30, 309]] = True
    mel = _mel(1)
    decoding.listen(mel)
    wanted = reference.greedy(mel, PROMPT, lambda step: forbidden[min(step, 1)], 20)
    written = decoding.write(PROMPT, -1, limit=20)
    assert list(written.tokens) == wanted
    assert not written.finished
    assert written.runs == 20
    assert max(written.logprobs) <= 0


def test_a_draft_saves_runs_and_never_changes_the_text(decoding: WhisperDecoding) -> None:
    decoding.listen(_mel(2))
    plain = decoding.write(PROMPT, -1, limit=16)
    # A piece that stood, whole or in part, saves as many runs. The first has PROBE tokens beside the `sure` ones.
    for right, sure, runs in ((0, 0, 16), (1, 0, 15), (3, 0, 13), (7, 0, 10), (7, 7, 9), (15, 0, 2), (15, 15, 1)):
        wrong = (plain.tokens[right] + 1) % 300
        drafted = decoding.write(PROMPT, -1, limit=16, draft=[*plain.tokens[:right], wrong, 5, 6], sure=sure)
        assert drafted.tokens == plain.tokens
        assert drafted.runs == runs
        assert drafted.accepted + drafted.runs == 16
        np.testing.assert_allclose(drafted.logprobs, plain.logprobs, atol=1e-4)
    assert decoding.write(PROMPT, -1, limit=16, draft=plain.tokens).runs == 2
    assert decoding.write(PROMPT, -1, limit=16, draft=plain.tokens, sure=16).runs == 1


def test_the_end_token_ends_the_text_also_inside_a_draft(decoding: WhisperDecoding) -> None:
    decoding.listen(_mel(3))
    text = decoding.write(PROMPT, -1, limit=16).tokens
    end = text[9]
    first = text.index(end)
    ended = decoding.write(PROMPT, end, limit=16)
    drafted = decoding.write(PROMPT, end, limit=16, draft=text)
    assert ended.tokens == drafted.tokens == text[:first]
    assert ended.finished
    assert drafted.finished
    assert len(ended.logprobs) == first + 1


def test_choices_made_outside_the_graph_are_the_graphs_own(decoding: WhisperDecoding, config: WhisperConfig) -> None:
    decoding.listen(_mel(2))
    plain = decoding.write(PROMPT, -1, limit=16)
    for draft in ((), plain.tokens[:7], (*plain.tokens[:3], 5, 6)):
        chosen = decoding.write(PROMPT, -1, limit=16, draft=draft, choose=HostChoice(config))
        assert chosen.tokens == plain.tokens
        np.testing.assert_allclose(chosen.logprobs, plain.logprobs, atol=1e-4)
    assert plain.mean_logprob == pytest.approx(sum(plain.logprobs) / 17)


def test_a_text_is_given_up_where_the_caller_says_so(decoding: WhisperDecoding) -> None:
    decoding.listen(_mel(2))
    plain = decoding.write(PROMPT, -1, limit=16)
    short = decoding.write(PROMPT, -1, limit=16, give_up=lambda tokens: len(tokens) == 5)
    assert short.tokens == plain.tokens[:5]
    assert not short.finished


def test_slots_grow_to_the_models_last_position_and_no_further(decoding: WhisperDecoding) -> None:
    decoding.listen(_mel(4))
    short = decoding.write(PROMPT, -1, limit=40)
    longest = decoding.write(PROMPT, -1, limit=1000)
    assert len(longest.tokens) == SMALL["max_target_positions"] - len(PROMPT)
    assert longest.tokens[:40] == short.tokens


def test_misuse_of_the_loop_is_told(small: Checkpoint, config: WhisperConfig) -> None:
    recipes = encoder_recipe(small, "e"), decoder_recipe(small, "d")
    fresh = WhisperDecoding(config, *(_session(recipe, small.folder, "onnxruntime") for recipe in recipes))
    with pytest.raises(EngineError, match=r"listen\(\)"):
        fresh.write(PROMPT, END, limit=5)
    with pytest.raises(EngineError, match="prompt"):
        fresh.write([], END, limit=5)
    with pytest.raises(EngineError, match="no room among 80"):
        fresh.write([1] * 80, END, limit=5)


def test_a_step_brings_the_arrays_of_the_step_before(small: Checkpoint, config: WhisperConfig) -> None:
    """A session that knows its arrays again need not bind them anew."""
    recipes = encoder_recipe(small, "e"), decoder_recipe(small, "d")
    encoder, decoder = (_session(recipe, small.folder, "openvino") for recipe in recipes)
    counting = _Counting(decoder)
    decoding = WhisperDecoding(config, encoder, counting)
    decoding.listen(_mel(5))
    written = decoding.write(PROMPT, -1, limit=70)
    # 64 slots hold the prompt and 61 tokens more; then the slots grow.
    assert counting.runs == len(written.tokens) == 70
    assert len(counting.arrays) == 3, "those of the prompt, of a step, and of a step in more slots"


class _Counting(Session):
    """Passes runs on, and remembers which arrays came."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.inputs, session.outputs, session.options)
        self.session = session
        self.runs = 0
        self.arrays: set[tuple[int, ...]] = set()

    def _run(self, tensors: Any) -> dict[str, Any]:
        self.runs += 1
        self.arrays.add(tuple(array.ctypes.data for array in tensors.values()))
        return self.session.run(tensors)


def test_special_tokens_of_the_three_vocabularies() -> None:
    english, multilingual, third = (SpecialTokens.of(size) for size in (51_864, 51_865, 51_866))
    assert english is not None
    assert multilingual is not None
    assert third is not None
    assert (english.start, english.transcribe, english.no_timestamps) == (50_257, 50_358, 50_362)
    assert (multilingual.start, multilingual.transcribe, multilingual.no_timestamps) == (50_258, 50_359, 50_363)
    assert (third.transcribe, len(third.languages)) == (50_360, 100)
    assert multilingual.languages[0] == 50_259
    assert SpecialTokens.of(310) is None


def test_rules_forbid_and_allow(tmp_path: Path) -> None:
    raw = {**architecture("whisper-tiny"), "d_model": 6, "encoder_layers": 1, "decoder_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "suppress_tokens": [3, -1]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"begin_suppress_tokens": [220]}))
    table = suppression(WhisperConfig.from_checkpoint(Checkpoint(tmp_path)))
    allowed = {rule: row == 0 for rule, row in zip(RULES, table, strict=True)}
    assert allowed["any"].all()
    assert np.flatnonzero(~allowed["text"]).tolist() == [3]
    assert np.flatnonzero(~allowed["first"]).tolist() == [3, 220]
    assert np.flatnonzero(allowed["language"]).tolist() == list(range(50_259, 50_358))


def test_tensor_names_with_and_without_prefix_in_one_file_or_several(tmp_path: Path, small: Checkpoint) -> None:
    from safetensors.numpy import load_file, save_file

    config = WhisperConfig.from_checkpoint(small)
    shapes = config.encoder_shapes() | config.decoder_shapes()
    tensors = load_file(small.weights_file)
    bare = Checkpoint(tmp_path / "bare")
    bare.folder.mkdir()
    save_file({name.removeprefix("model."): array for name, array in tensors.items()}, bare.weights_file)
    split = Checkpoint(tmp_path / "split")
    split.folder.mkdir()
    names = sorted(tensors)
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in part}, split.folder / file)
    index = {name: "ab"[place % 2] + ".safetensors" for place, name in enumerate(names)}
    (split.folder / INDEX).write_text(json.dumps({"weight_map": index}))
    for checkpoint in (bare, split):
        loaded = load_weights(checkpoint, shapes)
        assert all(np.array_equal(loaded[name], tensors[f"model.{name}"]) for name in shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"activation_function": "relu"}, "relu"),
        ({"scale_embedding": True}, "scale_embedding"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"d_model": None}, "d_model None"),
        ({"decoder_layers": 0}, "decoder_layers 0"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"encoder_attention_heads": 5}, "do not divide"),
        ({"suppress_tokens": [310]}, "tokens below 310"),
        ({"begin_suppress_tokens": "none"}, "must list tokens"),
    ],
)
def test_a_foreign_or_senseless_config_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **changes}))
    with pytest.raises(CheckpointError, match=message):
        WhisperConfig.from_checkpoint(Checkpoint(tmp_path))


def test_weights_of_another_model_are_told(tmp_path: Path, small: Checkpoint) -> None:
    (tmp_path / "model.safetensors").symlink_to(small.weights_file)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "d_model": 32}))
    with pytest.raises(CheckpointError, match=r"config\.json implies"):
        encoder_recipe(Checkpoint(tmp_path), "w").write_graph()
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "decoder_layers": 4}))
    with pytest.raises(CheckpointError, match=r"layers\.3"):
        decoder_recipe(Checkpoint(tmp_path), "w").write_graph()


def test_random_weights_are_the_same_for_the_same_seed(tmp_path: Path, small: Checkpoint) -> None:
    again = random_checkpoint(SMALL, tmp_path / "again", SEED)
    other = random_checkpoint(SMALL, tmp_path / "other", SEED + 1)
    assert again.weights_file.read_bytes() == small.weights_file.read_bytes()
    assert other.weights_file.read_bytes() != small.weights_file.read_bytes()


def test_every_published_size_is_a_lawful_config(tmp_path: Path) -> None:
    parameters = {}
    for name in ARCHITECTURES:
        (tmp_path / "config.json").write_text(json.dumps(architecture(name)))
        config = WhisperConfig.from_checkpoint(Checkpoint(tmp_path))
        shapes = config.encoder_shapes() | config.decoder_shapes()
        parameters[name] = sum(int(np.prod(shape)) for shape in shapes.values()) / 1e6
    # The sizes that the model cards print, in millions.
    assert parameters["whisper-tiny"] == pytest.approx(39, rel=0.05)
    assert parameters["whisper-small"] == pytest.approx(244, rel=0.02)
    assert parameters["whisper-large-v3"] == pytest.approx(1550, rel=0.02)
    assert parameters["whisper-large-v3-turbo"] == pytest.approx(809, rel=0.02)
    with pytest.raises(ModelNotFoundError, match="whisper-small"):
        architecture("whisper-enormous")
