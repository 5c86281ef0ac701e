import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CheckpointError, EngineError, ModelNotFoundError
from aula.engine.build import BuildOptions, build
from aula.engine.store import EngineStore
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import ARCHITECTURES, architecture, decoder_recipe, encoder_recipe, random_checkpoint
from aula.models.whisper_config import INDEX, WhisperConfig, load_weights, weight_files
from aula.models.whisper_decoding import WhisperDecoding
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
    recipes = encoder_recipe(small, "w"), decoder_recipe(small, "w")
    return WhisperDecoding(config, *(_session(recipe, small.folder, request.param) for recipe in recipes))


def _mel(seed: int, frames: int = 60) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (20, frames)).astype(np.float32)


@pytest.mark.parametrize("int8", [False, True])
def test_the_graphs_equal_the_plain_reference_on_every_backend(tmp_path: Path, small: Checkpoint, int8: bool) -> None:
    for recipe in (encoder_recipe(small, "w"), decoder_recipe(small, "w", int8_weights=int8)):
        engine = build(recipe, EngineStore(tmp_path / "store"), BuildOptions(threads=1))
        errors = [candidate.relative_error for candidate in engine.manifest.candidates]
        worst = recipe.tolerance if recipe.name.endswith("int8") else 5e-5
        assert all(error is not None and error < worst for error in errors), engine.manifest.candidates


def test_the_graph_with_int8_weights_is_exact_where_nothing_else_is_rounded(tmp_path: Path, small: Checkpoint) -> None:
    import onnxruntime

    recipe = decoder_recipe(small, "w", int8_weights=True)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(recipe.write_graph().SerializeToString(), plain)
    inputs = recipe.example({"rows": 2, "tokens": 3, "slots": 9, "positions": 7}, np.random.default_rng(1))
    for name, wanted in recipe.reference(inputs).items():
        np.testing.assert_allclose(session.run([name], inputs)[0], wanted, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_likeliest_token_is_the_references(
    small: Checkpoint, config: WhisperConfig, reference: WhisperReference, backend: str
) -> None:
    recipe = decoder_recipe(small, "w")
    inputs = recipe.example({"rows": 3, "tokens": 5, "slots": 70, "positions": 31}, np.random.default_rng(1))
    assert len(set(inputs["position"])) == 3, "every row has its own position"
    with _session(recipe, small.folder, backend) as session:
        produced = session.run(inputs)
        # What stands in slots that are not filled yet must not matter, nor positions that were not heard.
        for name, array in inputs.items():
            for row in range(3):
                if name.startswith("past"):
                    array[row, :, int(inputs["position"][row]) :] = 1e3
                if name.startswith("cross"):
                    array[row, :, int(inputs["heard"][row]) :] = 1e3
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
    for right in (0, 1, 7, 15):
        wrong = (plain.tokens[right] + 1) % 300
        drafted = decoding.write(PROMPT, -1, limit=16, draft=[*plain.tokens[:right], wrong, 5, 6])
        assert drafted.tokens == plain.tokens
        assert drafted.accepted == right
        assert drafted.runs == 16 - right
        np.testing.assert_allclose(drafted.logprobs, plain.logprobs, atol=1e-4)
    assert decoding.write(PROMPT, -1, limit=16, draft=plain.tokens).runs == 1


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


def test_slots_grow_to_the_models_last_position_and_no_further(decoding: WhisperDecoding) -> None:
    decoding.listen(_mel(4))
    short = decoding.write(PROMPT, -1, limit=40)
    longest = decoding.write(PROMPT, -1, limit=1000)
    assert len(longest.tokens) == SMALL["max_target_positions"] - len(PROMPT)
    assert longest.tokens[:40] == short.tokens


def test_misuse_of_the_loop_is_told(small: Checkpoint, config: WhisperConfig) -> None:
    recipes = encoder_recipe(small, "w"), decoder_recipe(small, "w")
    fresh = WhisperDecoding(config, *(_session(recipe, small.folder, "onnxruntime") for recipe in recipes))
    with pytest.raises(EngineError, match=r"listen\(\)"):
        fresh.write(PROMPT, END, limit=5)
    with pytest.raises(EngineError, match="prompt"):
        fresh.write([], END, limit=5)


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
    for variant, cut in (("bare", len("model.")), ("sharded", 0)):
        folder = tmp_path / variant
        folder.mkdir()
        (folder / "config.json").write_text((small.folder / "config.json").read_text())
        names = sorted(tensors)
        if variant == "bare":
            save_file({name[cut:]: tensors[name] for name in names}, folder / "model.safetensors")
        else:
            shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
            for file, part in shards.items():
                save_file({name: tensors[name] for name in part}, folder / file)
            index = {name: file for file, part in shards.items() for name in part}
            (folder / INDEX).write_text(json.dumps({"weight_map": index}))
        loaded = load_weights(Checkpoint(folder), shapes)
        assert all(np.array_equal(loaded[name], tensors[f"model.{name}"]) for name in shapes)
    assert [path.name for path in weight_files(Checkpoint(tmp_path / "sharded"))] == [
        INDEX,
        "a.safetensors",
        "b.safetensors",
    ]
    assert weight_files(Checkpoint(tmp_path / "bare"))[0].name == "model.safetensors"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"model.encoder.conv1.weight": "../elsewhere.safetensors"}}, "does not lie beside it"),
        ({"weight_map": {"model.something": "a.safetensors"}}, "names no file"),
    ],
)
def test_a_senseless_index_is_told(tmp_path: Path, config: WhisperConfig, index: Any, message: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_weights(Checkpoint(tmp_path), config.encoder_shapes())


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
