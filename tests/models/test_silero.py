"""The real detector on real and made sound; it comes with a package, so it is skipped aloud where that is absent."""

import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.audio.decoding import read_audio
from aula.backends.session import SessionOptions, StatePair, open_session
from aula.core.errors import BackendError, ModelNotFoundError
from aula.core.types import SPEECH_RATE, Context, DetectRequest, Float32
from aula.models.silero import CHUNK, CHUNK_MS, INFO, SileroDetector, SpeechProbability, find_graph

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="silero-vad is absent: pip install --no-deps silero-vad"
)


@pytest.fixture
def detector() -> Iterator[SpeechProbability]:
    with SpeechProbability() as opened:
        yield opened


def noise(seconds: float, rms: float) -> Float32:
    generator = np.random.default_rng(7)
    return generator.normal(0, rms, int(SPEECH_RATE * seconds)).astype(np.float32)


def by_one_chunk_graph(samples: Float32) -> list[float]:
    """The plain path: the package's general graph, a chunk a run, its context prepended by hand."""
    graph = find_graph().with_name("silero_vad.onnx")
    options = SessionOptions(threads=1, states=(StatePair("state", "stateN"),), state_shapes={"state": (2, 1, 128)})
    probabilities = []
    context: NDArray[np.float32] = np.zeros(64, np.float32)
    with open_session("onnxruntime", graph, options) as session:
        for start in range(0, len(samples) - CHUNK + 1, CHUNK):
            chunk = samples[start : start + CHUNK]
            window = np.concatenate((context, chunk))[None]
            produced = session.run({"input": window, "sr": np.array(SPEECH_RATE, np.int64)})
            probabilities.append(float(produced["output"].item()))
            context = chunk[-64:]
    return probabilities


@needs_package
@pytest.mark.shared_data
def test_real_speech_is_near_one_and_equals_the_plain_path(detector: SpeechProbability, shared_data: Path) -> None:
    speech = read_audio(shared_data / "speech_en_misc" / "jfk_16k.wav", 30).samples[: SPEECH_RATE * 4]
    probabilities = detector.feed(speech)
    assert max(probabilities) > 0.99
    assert np.mean(np.array(probabilities) > 0.9) > 0.4
    np.testing.assert_allclose(probabilities, by_one_chunk_graph(speech), atol=1e-5)


@needs_package
@pytest.mark.parametrize("block", [1, 320, 511, 512, 513, 5_000, 100_000])
def test_how_the_sound_is_cut_does_not_matter(detector: SpeechProbability, block: int) -> None:
    samples = noise(0.2 if block == 1 else 3.0, 0.1)
    whole = detector.feed(samples)
    detector.reset()
    pieces = [
        probability
        for start in range(0, len(samples), block)
        for probability in detector.feed(samples[start : start + block])
    ]
    assert len(whole) == len(samples) // CHUNK
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


@needs_package
def test_silence_and_noise_are_not_speech(detector: SpeechProbability) -> None:
    assert max(detector.feed(np.zeros(SPEECH_RATE * 3, np.float32))) < 0.1
    detector.reset()
    assert max(detector.feed(noise(3.0, 0.1))) < 0.35


@needs_package
def test_reset_forgets_the_unfinished_chunk_too(detector: SpeechProbability) -> None:
    first = detector.feed(noise(0.5, 0.1))
    detector.reset()
    assert detector.feed(noise(0.5, 0.1)) == first
    assert detector.feed(np.zeros(0, np.float32)) == []


@needs_package
def test_bad_samples_are_refused_and_change_nothing(detector: SpeechProbability) -> None:
    with pytest.raises(ValueError, match="finite"):
        detector.feed(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        detector.feed(np.zeros((2, 2), np.float32))
    with pytest.raises(TypeError, match="int16"):
        detector.feed(np.zeros(2, np.int16))
    assert detector.feed(np.zeros(CHUNK - 1, np.float32)) == []
    assert len(detector.feed(np.zeros(1, np.float32))) == 1


@needs_package
def test_a_closed_detector_says_so() -> None:
    detector = SpeechProbability()
    detector.close()
    detector.close()
    with pytest.raises(BackendError, match="closed"):
        detector.feed(np.zeros(CHUNK, np.float32))


@needs_package
def test_a_stream_is_used_again_and_remembers_nothing_of_the_one_before() -> None:
    loud, other = noise(0.5, 0.3), noise(0.5, 0.05)
    detector = SileroDetector()
    first = detector.start(DetectRequest(), Context())
    expected = first.feed(loud)
    beside = detector.start(DetectRequest(), Context())
    first.close()
    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        first.feed(loud)
    again = detector.start(DetectRequest(), Context())
    assert again._stream is not beside._stream
    assert again.feed(loud) == expected
    beside.feed(other)
    beside.close()
    detector.close()
    assert detector._idle == []


@needs_package
def test_a_stream_that_failed_is_handed_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = SileroDetector()
    stream = detector.start(DetectRequest(), Context())

    def fail(self: SpeechProbability, windows: Float32) -> Float32:
        raise BackendError("gone", next_step="start another")

    monkeypatch.setattr(SpeechProbability, "_run", fail)
    with pytest.raises(BackendError):
        stream.feed(noise(0.1, 0.1))
    stream.close()
    assert detector._idle == []


@needs_package
def test_the_package_itself_is_never_imported() -> None:
    code = (
        "import sys; from aula.models.silero import SpeechProbability; SpeechProbability().close(); "
        "sys.exit('silero_vad' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_absent_package_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps 'silero-vad"):
        find_graph()


def test_an_old_package_names_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "silero_vad.onnx").touch()
    spec = importlib.machinery.ModuleSpec("silero_vad", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelNotFoundError, match=r"Available: silero_vad\.onnx"):
        find_graph()


def test_a_damaged_graph_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"graph\.onnx"):
        SpeechProbability(tmp_path / "graph.onnx")


def test_constants() -> None:
    assert (CHUNK, CHUNK_MS) == (512, 32)
    assert INFO.licences[0].licence == "MIT"
