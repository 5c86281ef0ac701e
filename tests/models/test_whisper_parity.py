"""Against transformers: stored vectors always, and the library itself where it is installed.

To run the second kind: PYTHONPATH=src:. python -m pytest tests/models/test_whisper_parity.py, in an environment with
PyTorch and transformers.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import architecture, decoder_recipe, encoder_recipe, random_checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_mel import log_mel
from tests.models.make_whisper_reference import FRAMES, hidden_and_tokens, mels, samples, transformers_model
from tests.models.whisper_small_model import INPUTS, POSITIONS, PROMPT, SEED, SMALL, TOKENS

NO_TOKEN = -1


@pytest.fixture(scope="module")
def reference() -> Any:
    return np.load(Path(__file__).with_name("whisper_reference.npz"), allow_pickle=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(SMALL, tmp_path_factory.mktemp("small"), SEED)


def _decoding(checkpoint: Checkpoint, folder: Path, backend: str) -> tuple[Session, WhisperDecoding]:
    import onnx

    opened = []
    for recipe in (encoder_recipe(checkpoint, "e"), decoder_recipe(checkpoint, "d")):
        path = folder / f"{recipe.name}.onnx"
        onnx.save(recipe.write_graph(), str(path))
        opened.append(open_session(backend, path, SessionOptions(threads=1)))
    return opened[0], WhisperDecoding(WhisperConfig.from_checkpoint(checkpoint), *opened)


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def engines(request: Any, small: Checkpoint) -> tuple[Session, WhisperDecoding]:
    return _decoding(small, small.folder, request.param)


def test_the_seeded_weights_are_those_the_vectors_were_made_with(reference: Any, small: Checkpoint) -> None:
    digest = hashlib.sha256(small.weights_file.read_bytes()).hexdigest()
    assert digest == str(reference["digest"]), "run tests/models/make_whisper_reference.py again"


@pytest.mark.parametrize("positions", POSITIONS)
def test_hidden_states_equal_those_of_transformers(reference: Any, engines: Any, positions: int) -> None:
    encoder, _ = engines
    for mel, wanted in zip(mels(positions, 20, 2), reference[f"hidden_{positions}"], strict=True):
        hidden = encoder.run({"mel": mel[None]})["hidden"][0]
        assert np.abs(hidden - wanted).max() / np.abs(wanted).max() <= 1e-4


@pytest.mark.parametrize("positions", POSITIONS)
def test_greedy_tokens_equal_those_of_transformers(reference: Any, engines: Any, positions: int) -> None:
    _, decoding = engines
    wanted = reference[f"tokens_{positions}"]
    texts = []
    for mel in mels(positions, 20, INPUTS // len(POSITIONS)):
        decoding.listen(mel)
        texts.append(decoding.write(PROMPT, NO_TOKEN, limit=TOKENS).tokens)
    np.testing.assert_array_equal(texts, wanted)
    assert len(np.unique(wanted)) > 20, "a text that repeats itself proves little"


@pytest.mark.parametrize("bins", [80, 128])
def test_the_front_end_equals_that_of_transformers(reference: Any, bins: int) -> None:
    np.testing.assert_allclose(log_mel(samples(), bins, FRAMES), reference[f"mel_{bins}"], atol=2e-5)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is absent: pip install aula[export]")
@pytest.mark.filterwarnings("default")
def test_whisper_tiny_in_full_size_equals_transformers(tmp_path: Path) -> None:
    raw = {**architecture("whisper-tiny"), "suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 50257]}
    checkpoint = random_checkpoint(raw, tmp_path, 1)
    encoder, decoding = _decoding(checkpoint, tmp_path, "openvino")
    model = transformers_model(checkpoint, raw, 250)
    seen = set()
    for mel in mels(250, 80, 20):
        hidden, tokens = hidden_and_tokens(model, mel, (50258, 50259, 50359, 50363), 12, raw)
        ours = encoder.run({"mel": mel[None]})["hidden"][0]
        assert np.abs(ours - hidden).max() / np.abs(hidden).max() <= 1e-4
        decoding.listen(mel)
        assert list(decoding.write((50258, 50259, 50359, 50363), NO_TOKEN, limit=12).tokens) == tokens
        seen |= set(tokens)
    assert len(seen) > 20, "a text that repeats itself proves little"
