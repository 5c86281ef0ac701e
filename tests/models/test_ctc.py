"""The recogniser's graph against PyTorch's network and a plain reference, whole and chunk by chunk."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import Session, open_session
from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.engine.onnx_files import save_model
from aula.models.checkpoints import Checkpoint
from aula.models.ctc import ctc_recipe, example
from aula.models.ctc_config import CtcConfig, load_weights, read_alphabet
from aula.models.ctc_graph import first_states, write_recogniser
from aula.models.ctc_hearing import CtcHearing, Heard
from aula.models.ctc_mel import FLOOR, log_mel, samples_for
from aula.models.ctc_reference import CtcReference
from tests.models.ctc_small_model import CHUNKS, FRAMES, mel_frames, small

STORED = np.load(Path(__file__).with_name("ctc_reference.npz"))
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small(tmp_path_factory.mktemp("ctc"))


@pytest.fixture(scope="module")
def config(checkpoint: Checkpoint) -> CtcConfig:
    return CtcConfig.from_checkpoint(checkpoint)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def session(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: Any) -> Iterator[Session]:
    config = CtcConfig.from_checkpoint(checkpoint)
    path = tmp_path_factory.mktemp("graph") / "ctc.onnx"
    save_model(write_recogniser(config, load_weights(checkpoint, config)), path)
    with open_session(request.param, path) as session:
        yield session


def streamed(hearing: CtcHearing, mel: Float32) -> Float32:
    states, said = hearing.first(), []
    for start in range(0, len(mel), hearing.mel_frames):
        logarithms, states = hearing.step(mel[start : start + hearing.mel_frames], states)
        said.append(logarithms)
    return np.concatenate(said)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_stream_says_what_the_trained_network_says_of_the_whole(
    session: Session, checkpoint: Checkpoint, config: CtcConfig, chunk: int
) -> None:
    assert hashlib.sha256(checkpoint.weights_file.read_bytes()).hexdigest() == str(STORED["digest"]), (
        "the made-up weights changed: run tests/models/make_ctc_reference.py"
    )
    said = streamed(CtcHearing(session, config, chunk), mel_frames())
    np.testing.assert_allclose(said, STORED[f"chunk{chunk}"], **CLOSE)


def test_chunks_and_what_came_before_matter() -> None:
    """Else the test above would prove little."""
    assert np.abs(STORED["chunk4"] - STORED["chunk8"]).max() > 0.05


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_same_against_pytorch_itself(
    session: Session, checkpoint: Checkpoint, config: CtcConfig, chunk: int
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: the stored outputs of it serve")
    from tests.models.make_ctc_reference import trained_network, whole

    mel = mel_frames(4 * FRAMES)
    said = streamed(CtcHearing(session, config, chunk), mel)
    np.testing.assert_allclose(said, whole(trained_network(checkpoint), mel, chunk), **CLOSE)


@pytest.mark.parametrize(("rows", "frames"), [(1, 4), (1, 16), (3, 16), (2, 64)])
def test_the_graph_agrees_with_the_reference(
    session: Session, checkpoint: Checkpoint, config: CtcConfig, rows: int, frames: int
) -> None:
    inputs = example(config, {"rows": rows, "frames": frames}, np.random.default_rng(5))
    wanted = CtcReference(config, lambda: load_weights(checkpoint, config))(inputs)
    made = session.run(inputs)
    assert made.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(made[name], array, err_msg=name, **CLOSE)


def test_streams_in_one_run_do_not_meet(session: Session, config: CtcConfig) -> None:
    first, second = mel_frames(16), mel_frames(48)[32:]
    hearing = CtcHearing(session, config)
    _, states = hearing.step(mel_frames(16), hearing.first())
    alone = [hearing.step(first, hearing.first())[0], hearing.step(second, states)[0]]
    both = {name: np.concatenate((array, states[name])) for name, array in first_states(config).items()}
    together = session.run({"mel": np.stack((first, second)), **both})["logarithms"]
    np.testing.assert_allclose(together, np.stack(alone), **CLOSE)


def test_how_sound_is_cut_does_not_matter(session: Session, config: CtcConfig) -> None:
    sound = np.random.default_rng(6).normal(0, 0.1, 21_000).astype(np.float32)
    hearing = CtcHearing(session, config)
    whole = hearing.whole(sound)
    rng = np.random.default_rng(7)
    heard = Heard(hearing)
    said, start = [], 0
    while start < len(sound):
        size = int(rng.choice([1, 37, 160, 399, 5000]))
        said.append(heard.feed(sound[start : start + size]))
        start += size
    said.append(heard.end())
    np.testing.assert_array_equal(np.concatenate(said), whole)
    # 160 ms of silence, and whole chunks.
    assert len(whole) == 4 * -(-((21_000 + 2560 - 400) // 160 + 1) // 16)


@pytest.mark.parametrize("samples", [0, 1, 399, 400])
def test_next_to_nothing_is_heard_too(session: Session, config: CtcConfig, samples: int) -> None:
    whole = CtcHearing(session, config).whole(np.zeros(samples, np.float32))
    assert whole.shape == (config.chunk * -(-((samples + 2560 - 400) // 160 + 1) // 16), 12)


def test_int8_is_near(session: Session, checkpoint: Checkpoint, config: CtcConfig, tmp_path: Path) -> None:
    recipe = ctc_recipe(checkpoint, "small", seeded=True)
    save_model(recipe.written["int8"](), tmp_path / "int8.onnx")
    with open_session("onnxruntime", tmp_path / "int8.onnx") as rounded:
        near = streamed(CtcHearing(rounded, config), mel_frames())
    exact = STORED["chunk4"]
    assert 1e-4 < np.abs(near - exact).max() < 0.2


def test_weights_that_were_rounded_before_are_read(checkpoint: Checkpoint, config: CtcConfig, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from aula.models.graph_writer import round_int8

    name = "blocks.0.attend.qkv.weight"
    tensors = load_file(checkpoint.weights_file)
    rounded, scale = round_int8(tensors[name], axis=1)
    stored: dict[str, NDArray[Any]] = {**tensors, name: rounded, f"{name}.scale": scale[:, 0]}
    save_file(stored, tmp_path / "model.safetensors")
    found = load_weights(Checkpoint(tmp_path), config)[name]
    np.testing.assert_allclose(found, tensors[name], atol=float(scale.max()))
    del stored[f"{name}.scale"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not scale"):
        load_weights(Checkpoint(tmp_path), config)


def test_what_does_not_fit_is_refused(checkpoint: Checkpoint, config: CtcConfig) -> None:
    with pytest.raises(CheckpointError, match=r"tensor blocks\.3\.feed_in"):
        load_weights(checkpoint, replace(config, blocks=4))
    with pytest.raises(CheckpointError, match="do not go together"):
        CtcConfig.of({**checkpoint.read_json("config.json")["model"], "heads": 3})
    with pytest.raises(CheckpointError, match="12 units, and the model says 13"):
        read_alphabet(checkpoint, 13)


def test_the_alphabet_says_where_words_begin(checkpoint: Checkpoint, config: CtcConfig) -> None:
    alphabet = read_alphabet(checkpoint, config.units)
    assert alphabet.tokens[:4] == ("", "a", "b", "\u2581c")
    assert alphabet.text([1, 3, 2, 3]) == "a cb c"


def test_mel_frames_are_those_of_the_definition() -> None:
    """A transform by hand, frame by frame, beside the quick one."""
    from aula.models.whisper_mel import mel_filters

    sound = np.random.default_rng(8).normal(0, 0.05, samples_for(3)).astype(np.float32)
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    turns = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400)
    wanted = []
    for start in (0, 160, 320):
        power = np.abs((sound[start : start + 400] * window) @ turns) ** 2
        wanted.append(np.log10(np.maximum(mel_filters(80) @ power, FLOOR)))
    np.testing.assert_allclose(log_mel(sound), wanted, atol=1e-4)


def test_mel_frames_are_those_of_the_training() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the definition was tried above")
    from training.recogniser import features

    sound = np.random.default_rng(9).normal(0, 0.05, 4000).astype(np.float32)
    wanted = features.log_mel(torch.from_numpy(sound[None]), features.mel_filters())[0].numpy()
    np.testing.assert_allclose(log_mel(sound), wanted, atol=2e-4)
