"""Wav2Vec2ForCTC: the graph against the reference here, and against transformers where that is installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import open_session
from aula.core.errors import CheckpointError
from aula.engine.onnx_files import save_model
from aula.models.checkpoints import Checkpoint
from aula.models.wav2vec2 import (
    POSITIONS,
    Wav2Vec2Config,
    load_weights,
    normalised,
    normalises,
    read_alphabet,
    wav2vec2_recipe,
)
from aula.models.wav2vec2_graph import write_wav2vec2
from aula.models.wav2vec2_reference import Wav2Vec2Reference

RAW: dict[str, Any] = {
    "model_type": "wav2vec2", "vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "conv_dim": [16, 24, 24], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2],
    "conv_bias": False, "feat_extract_norm": "group", "do_stable_layer_norm": False, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
    "feat_extract_activation": "gelu", "pad_token_id": 0, "num_feat_extract_layers": 3,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {}, "large": LARGE, "odd positions": {"num_conv_pos_embeddings": 15},
    "norms apart": {**LARGE, "do_stable_layer_norm": False},
}  # fmt: skip


def made(folder: Path, variant: str, **changes: Any) -> Checkpoint:
    """Seeded weights in Hugging Face's layout, and a vocabulary."""
    from safetensors.numpy import save_file

    raw = {**RAW, **VARIANTS[variant], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Wav2Vec2ForCTC"], **raw}))
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "O", "N", "I", "H"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    checkpoint = Checkpoint(folder)
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    rng = np.random.default_rng(3)
    size = config.num_conv_pos_embeddings
    shapes: dict[str, tuple[int, ...]] = {
        **config.shapes(),
        f"{POSITIONS}.parametrizations.weight.original0": (1, 1, size),
        f"{POSITIONS}.parametrizations.weight.original1": (32, 32 // config.num_conv_pos_embedding_groups, size),
        "wav2vec2.masked_spec_embed": (32,),
    }
    weights = {
        name: (
            rng.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
            + ("norm" in name and "weight" in name)
        )
        for name, shape in shapes.items()
    }
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, folder / "model.safetensors")
    return checkpoint


def sound(samples: int = 3000, rows: int = 1) -> Any:
    return np.random.default_rng(4).standard_normal((rows, samples)).astype(np.float32)


def heard(checkpoint: Checkpoint, inputs: Any, folder: Path, backend: str = "onnxruntime") -> Any:
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    save_model(write_wav2vec2(config, load_weights(checkpoint, config)), folder / "w.onnx")
    with open_session(backend, folder / "w.onnx") as session:
        return session.run({"sound": inputs})["logarithms"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_agrees_with_the_reference(variant: str, backend: str, tmp_path: Path) -> None:
    checkpoint = made(tmp_path, variant)
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    inputs = sound(rows=2)
    wanted = Wav2Vec2Reference(config, lambda: load_weights(checkpoint, config))({"sound": inputs})["logarithms"]
    assert wanted.shape == (2, config.frames(3000), 12)
    np.testing.assert_allclose(heard(checkpoint, inputs, tmp_path, backend), wanted, atol=5e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_agrees_with_transformers(variant: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the reference alone was tried")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: the reference was tried")
    checkpoint = made(tmp_path, variant)
    model, told = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"], told
    with torch.no_grad():
        wanted = torch.log_softmax(model.eval()(torch.from_numpy(sound())).logits, -1).numpy()
    np.testing.assert_allclose(heard(checkpoint, sound(), tmp_path), wanted, atol=5e-4)


def test_weights_of_older_names_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = made(tmp_path, "base")
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    wanted = load_weights(checkpoint, config)[f"{POSITIONS}.weight"]
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): array
        for name, array in load_file(checkpoint.weights_file).items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_weights(checkpoint, config)[f"{POSITIONS}.weight"], wanted)


def test_letters_and_what_parts_words(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, "base")
    alphabet = read_alphabet(checkpoint, Wav2Vec2Config.from_checkpoint(checkpoint))
    assert alphabet.text([5, 6, 4, 7]) == "et a"
    assert alphabet.blank == 0
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(CheckpointError, match="12"):
        read_alphabet(checkpoint, Wav2Vec2Config.from_checkpoint(checkpoint))


def test_what_is_not_written_is_refused(tmp_path: Path) -> None:
    for change in ({"add_adapter": True}, {"hidden_act": "relu"}, {"model_type": "hubert"}):
        with pytest.raises(CheckpointError, match="this recipe writes Wav2Vec2"):
            made(tmp_path, "base", **change)
    with pytest.raises(CheckpointError, match="do not go together"):
        made(tmp_path, "base", num_attention_heads=5)


def test_sounds_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, "base")
    assert normalises(checkpoint)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert not normalises(checkpoint)
    loud = normalised(3 + 5 * sound()[0])
    assert abs(loud.mean()) < 1e-4
    assert loud.std() == pytest.approx(1, abs=1e-3)


def test_a_folder_is_heard_as_a_whole(tmp_path: Path) -> None:
    from aula.core.types import Context, TranscribeRequest
    from aula.models.ctc_transcriber import CtcTranscriber
    from aula.models.wav2vec2 import hearing as hearing_of

    checkpoint = made(tmp_path, "base")
    config = Wav2Vec2Config.from_checkpoint(checkpoint)
    save_model(write_wav2vec2(config, load_weights(checkpoint, config)), tmp_path / "w.onnx")
    with open_session("onnxruntime", tmp_path / "w.onnx") as session:
        hearing = hearing_of(session, checkpoint)
        stream = CtcTranscriber(hearing, read_alphabet(checkpoint, config)).start(TranscribeRequest(), Context("en"))
        spoken = sound(5000)[0] / 8
        assert stream.feed(spoken[:1000]).text == stream.feed(spoken[1000:]).text == ""
        transcript = stream.commit()
        assert transcript.text
        assert transcript.words[-1].end <= 5000 / 16000
        assert len(hearing.whole(np.zeros(1, np.float32))) == config.frames(4000)
        assert len(hearing.whole(np.zeros(16000 * 21, np.float32))) == config.frames(320_000) + config.frames(16_000)


def test_other_recognisers_are_refused_with_what_is_read(tmp_path: Path) -> None:
    from aula.models.ctc_rung import recipe_of

    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(CheckpointError, match="hubert") as failure:
        recipe_of(Checkpoint(tmp_path), "p")
    assert failure.value.available == ("aula-ctc", "wav2vec2", "parakeet_ctc")


def test_it_is_a_recipe(tmp_path: Path) -> None:
    recipe = wav2vec2_recipe(made(tmp_path, "large"), "tiny", seeded=True)
    assert [profile.name for profile in recipe.profiles] == ["question", "long"]
    assert [one.name for one in recipe.write_graph().graph.input] == ["sound"]
