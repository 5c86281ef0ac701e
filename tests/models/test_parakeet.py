"""ParakeetForCTC: graph and reference against what transformers said of seeded checkpoints, and the front end.

parakeet_reference.npz holds what transformers said (make_parakeet_reference.py); where it is installed it is asked
anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import open_session
from aula.core.errors import BackendError, CheckpointError
from aula.core.settings import Settings
from aula.core.types import Context, Float32, TranscribeRequest
from aula.engine.onnx_files import save_model
from aula.models import ctc_rung, ctc_task
from aula.models.catalogue import find_model
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_transcriber import CtcTranscriber
from aula.models.parakeet import PARAKEET, parakeet_recipe
from aula.models.parakeet_config import ParakeetConfig, load_weights, read_alphabet
from aula.models.parakeet_graph import write_parakeet
from aula.models.parakeet_mel import ParakeetMel
from aula.models.parakeet_reference import ParakeetReference
from tests.models.parakeet_small_model import ENCODER, FRAMES, PIECES, VARIANTS, mel_frames, small, sound

LONGEST = 2_000
CLOSE = 5e-5
"""Of logarithms: float32 here and there, summed in another order."""


@pytest.fixture(scope="module")
def told() -> Any:
    with np.load(Path(__file__).with_name("parakeet_reference.npz")) as file:
        return dict(file)


def written(checkpoint: Checkpoint, path: Path, **options: Any) -> Path:
    config = ParakeetConfig.from_checkpoint(checkpoint)
    save_model(write_parakeet(config, load_weights(checkpoint, config), LONGEST, **options), path)
    return path


def referred(checkpoint: Checkpoint, mel: Float32) -> Any:
    config = ParakeetConfig.from_checkpoint(checkpoint)
    return ParakeetReference(config, lambda: load_weights(checkpoint, config))({"mel": mel})["logarithms"]


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_says_what_transformers_said(variant: str, frames: int, tmp_path: Path, told: Any) -> None:
    checkpoint = small(tmp_path, variant)
    config = ParakeetConfig.from_checkpoint(checkpoint)
    made = referred(checkpoint, mel_frames(config, frames))
    assert made.shape == (1, config.frames(frames), len(PIECES) + 1)
    np.testing.assert_allclose(made, told[f"{variant} {frames}"], atol=CLOSE)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_says_it_for_any_length_and_several_rows(
    variant: str, backend: str, tmp_path: Path, told: Any
) -> None:
    checkpoint = small(tmp_path, variant)
    config = ParakeetConfig.from_checkpoint(checkpoint)
    with open_session(backend, written(checkpoint, tmp_path / "p.onnx")) as session:
        for frames in FRAMES:
            made = session.run({"mel": mel_frames(config, frames)})["logarithms"]
            np.testing.assert_allclose(made, told[f"{variant} {frames}"], atol=CLOSE)
        rows = mel_frames(config, 121, rows=2)
        np.testing.assert_allclose(session.run({"mel": rows})["logarithms"], referred(checkpoint, rows), atol=CLOSE)


def test_the_longest_sound_is_heard_rightly_too(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    mel = mel_frames(ParakeetConfig.from_checkpoint(checkpoint), LONGEST)
    with open_session("onnxruntime", written(checkpoint, tmp_path / "p.onnx")) as session:
        np.testing.assert_allclose(session.run({"mel": mel})["logarithms"], referred(checkpoint, mel), atol=CLOSE)


def test_rounded_matrices_stay_near(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    mel = mel_frames(ParakeetConfig.from_checkpoint(checkpoint), 80)
    with open_session("onnxruntime", written(checkpoint, tmp_path / "p.onnx", int8_weights=True)) as session:
        made = session.run({"mel": mel})["logarithms"]
    wanted = referred(checkpoint, mel)
    distance = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < distance < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_says_so_today(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: its stored words alone were compared")
    pytest.importorskip(
        "transformers.models.parakeet", reason="transformers has no Parakeet here: its stored words alone"
    )
    from tests.models.make_parakeet_reference import said

    checkpoint = small(tmp_path, variant)
    mel = mel_frames(ParakeetConfig.from_checkpoint(checkpoint), 91)
    np.testing.assert_allclose(referred(checkpoint, mel), said(checkpoint, mel), atol=CLOSE)


def test_features_are_what_transformers_made(told: Any) -> None:
    made = ParakeetMel()(sound())
    assert made.dtype == np.float32
    # The last frame of theirs lies half behind the sound, and is masked.
    assert (told["features"][len(made) :] == 0).all()
    np.testing.assert_allclose(made, told["features"][: len(made)], atol=2e-3)


@pytest.mark.parametrize(("bins", "samples"), [(80, 4_000), (80, 16_079), (128, 32_000)])
def test_transformers_makes_such_features_today(bins: int, samples: int) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: its stored features alone were compared")
    pytest.importorskip("transformers.models.parakeet", reason="transformers has no Parakeet: its stored features")
    from tests.models.make_parakeet_reference import features

    made = ParakeetMel(bins)(sound(samples))
    wanted, count = features(bins, sound(samples))
    assert len(made) == count
    np.testing.assert_allclose(made, wanted[:count], atol=2e-3)


def test_transformers_hears_so_from_sound_to_logarithms(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: front end and model were compared apart")
    pytest.importorskip("transformers.models.parakeet", reason="transformers has no Parakeet: both were compared apart")
    from tests.models.make_parakeet_reference import features, said

    checkpoint = small(tmp_path, "other sizes")
    mel, count = features(80, sound(16_079))
    made = referred(checkpoint, ParakeetMel()(sound(16_079))[None])
    np.testing.assert_allclose(made, said(checkpoint, mel[None], count)[:, : made.shape[1]], atol=5e-3)


def test_silence_is_no_error() -> None:
    np.testing.assert_allclose(ParakeetMel()(np.zeros(4_000, np.float32)), 0, atol=1e-6)


def test_the_front_end_is_as_the_folder_says(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    assert ParakeetMel.from_checkpoint(checkpoint, 16) == ParakeetMel(16)
    (tmp_path / "preprocessor_config.json").unlink()
    assert ParakeetMel.from_checkpoint(checkpoint, 80) == ParakeetMel()
    inner = {
        "feature_size": 80, "hop_length": 200, "n_fft": 1024, "win_length": 800, "preemphasis": 0.0,
        "do_normalize": True,
    }  # fmt: skip
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": inner}))
    assert ParakeetMel.from_checkpoint(checkpoint, 80) == ParakeetMel(80, 200, 1024, 800, 0.0)
    faults: list[dict[str, Any]] = [
        {"feature_size": 64}, {"sampling_rate": 8000}, {"win_length": 2000}, {"hop_length": []},
        {"do_normalize": False},
    ]  # fmt: skip
    for wrong in faults:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**inner, **wrong}))
        with pytest.raises(CheckpointError, match="feature extractor"):
            ParakeetMel.from_checkpoint(checkpoint, 80)


def test_pieces_become_words_in_small_letters(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    config = ParakeetConfig.from_checkpoint(checkpoint)
    alphabet = read_alphabet(checkpoint, config)
    assert alphabet.text([3, 1, 2, 10, 0, 11]) == "what the s"
    assert alphabet.blank == len(PIECES)
    unigram = {"model": {"vocab": [[piece, -1.0] for piece in PIECES]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert read_alphabet(checkpoint, config).tokens[1:] == alphabet.tokens[1:]
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(CheckpointError, match=f"model says {len(PIECES) + 1}"):
        read_alphabet(checkpoint, config)
    for broken in ("{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": "b"}}}', '{"model": {"vocab": [3]}}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(CheckpointError, match="lists no pieces"):
            read_alphabet(checkpoint, config)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "parakeet_tdt"}, "this recipe writes 'parakeet_ctc'"),
        ({"encoder_config": None}, "no encoder_config"),
        ({"encoder_config": {**ENCODER, "hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"encoder_config": {**ENCODER, "num_key_value_heads": 2}}, "num_key_value_heads 2"),
        ({"encoder_config": {**ENCODER, "conv_norm_type": "layer_norm"}}, "conv_norm_type 'layer_norm'"),
        ({"encoder_config": {**ENCODER, "causal_downsampling": True}}, "causal_downsampling True"),
        ({"encoder_config": {**ENCODER, "att_context_size": [70, 13]}}, r"att_context_size \[70, 13\]"),
        ({"encoder_config": {**ENCODER, "hidden_size": "32"}}, "hidden_size '32'"),
        ({"encoder_config": {**ENCODER, "scale_input": 1}}, "scale_input 1"),
        ({"encoder_config": {**ENCODER, "num_attention_heads": 5}}, "do not go together"),
        ({"encoder_config": {**ENCODER, "conv_kernel_size": 8}}, "do not go together"),
        ({"encoder_config": {**ENCODER, "subsampling_factor": 6}}, "do not go together"),
        ({"encoder_config": {**ENCODER, "subsampling_conv_stride": 4}}, "do not go together"),
        ({"encoder_config": {**ENCODER, "num_mel_bins": 20}}, "do not go together"),
        ({"pad_token_id": 12}, "do not go together"),
    ],
)
def test_what_is_not_written_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        small(tmp_path, changes=changes)


def test_weights_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = small(tmp_path)
    config = ParakeetConfig.from_checkpoint(checkpoint)
    weights = load_file(checkpoint.weights_file)
    absent = dict(weights)
    del absent["encoder.layers.1.conv.norm.running_mean"]
    save_file(absent, checkpoint.weights_file)
    with pytest.raises(CheckpointError, match="running_mean"):
        load_weights(checkpoint, config)
    save_file({**weights, "ctc_head.bias": weights["ctc_head.bias"][:3].copy()}, checkpoint.weights_file)
    with pytest.raises(CheckpointError, match=r"ctc_head\.bias is \[3\]"):
        load_weights(checkpoint, config)
    checkpoint.weights_file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(checkpoint, config)


def test_a_folder_is_heard_as_a_whole(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    config = ParakeetConfig.from_checkpoint(checkpoint)
    with open_session("onnxruntime", written(checkpoint, tmp_path / "p.onnx")) as session:
        hearing = PARAKEET.hearing(session, checkpoint)
        transcriber = CtcTranscriber(hearing, PARAKEET.alphabet(checkpoint))
        stream = transcriber.start(TranscribeRequest(("the state.",), "k"), Context("en"))
        assert stream.feed(sound()[:3000]).text == stream.feed(sound()[3000:]).text == ""
        transcript = stream.commit()
        assert transcript.text
        assert transcript.words[-1].end <= 9_000 / 16_000 + 0.08
        assert len(hearing.whole(sound(9_000))) == config.frames(56)
        assert len(hearing.whole(np.zeros(1, np.float32))) == config.frames(25)
        assert len(hearing.whole(np.zeros(16_000 * 21, np.float32))) == config.frames(2_000) + config.frames(100)
        with pytest.raises(BackendError):
            session.run({"mel": mel_frames(config, 8)[:, :, :3]})


def test_a_named_folder_is_built_once_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path / "mine").folder
    labelled = ctc_task.Labelled(lambda: [(sound(8_000 + 500 * n), "the state") for n in range(3)], 3, "0" * 64)
    monkeypatch.setattr(ctc_task, "spoken", lambda: labelled)
    settings = Settings({"home": str(tmp_path / "home"), "threads": 1})
    assert ctc_rung.info(folder).note == "hears English, each sound as a whole"
    assert ctc_rung.info(tmp_path / "absent").note.startswith("streams")
    transcriber = ctc_rung.open_transcriber(folder, settings)
    stream = transcriber.start(TranscribeRequest(), Context("en"))
    stream.feed(sound())
    assert stream.commit().text
    transcriber.close()
    model = find_model(str(folder), None)
    assert next(iter(model.parts.values())).rows == "rows"


def test_it_is_a_recipe(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    recipe = parakeet_recipe(checkpoint, "tiny", seeded=True)
    assert [profile.name for profile in recipe.profiles] == ["question", "long"]
    assert [one.name for one in recipe.write_graph().graph.input] == ["mel"]
    assert {path.name for path in recipe.sources} == {
        "model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json",
    }  # fmt: skip
