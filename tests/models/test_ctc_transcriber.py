"""Streams of the recogniser: partial texts, commit, words and how sure they are; the engine is scripted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors
from aula.core.errors import CheckpointError, NothingHeardError, UnsupportedLanguageError
from aula.core.types import Context, Float32, TensorSpec, TranscribeRequest
from aula.models.ctc_beam import Alphabet, Word
from aula.models.ctc_confidence import Calibration
from aula.models.ctc_config import CtcConfig
from aula.models.ctc_hearing import CtcHearing
from aula.models.ctc_transcriber import LONG_FRAMES, PAUSE_FRAMES, CtcTranscriber, SettlingStream
from tests.models.ctc_small_model import SMALL

ALPHABET = Alphabet(
    ("", "\u2581what", "\u2581is", "\u2581mass", "\u2581moss", "\u2581the", "s", "es", "a", "b", "c", "d")
)
CONFIG = CtcConfig.of(SMALL)
CHUNK_SAMPLES = CONFIG.chunk * 640


class Scripted(Session):
    """Says one frame of the script after another, whatever is heard, and then silence."""

    backend = "script"

    def __init__(self, frames: Sequence[dict[str, float]]) -> None:
        free = TensorSpec("mel", "float32", ("rows", "frames", 80))
        super().__init__([free], [], SessionOptions())
        self._frames = list(frames)
        self.runs = 0

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self.runs += 1
        said = [self._frames.pop(0) if self._frames else {"": 0.999} for _ in range(CONFIG.chunk)]
        states = {f"{name}_next": array for name, array in tensors.items() if name != "mel"}
        return {"logarithms": np.stack([_row(one) for one in said])[None], **states}


class Babbling(Scripted):
    """Says what the sound makes it say: the same of the same mel, whoever asks."""

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        frames = tensors["mel"][0].reshape(CONFIG.chunk, -1)
        weights = np.random.default_rng(7).normal(0, 1, (frames.shape[1], len(ALPHABET.tokens)))
        said = (frames - frames.mean(1, keepdims=True)) @ weights / 4
        states = {f"{name}_next": array for name, array in tensors.items() if name != "mel"}
        logarithms = said - np.log(np.exp(said).sum(1, keepdims=True))
        return {"logarithms": logarithms.astype(np.float32)[None], **states}


def _row(shares: dict[str, float]) -> Float32:
    row = np.full(len(ALPHABET.tokens), (1 - sum(shares.values())) / len(ALPHABET.tokens))
    for token, share in shares.items():
        row[ALPHABET.tokens.index(token)] += share
    logarithms: Float32 = np.log(row).astype(np.float32)
    return logarithms


SILENT = {"": 0.99}
QUESTION = [{"▁what": 0.9}, SILENT, {"▁is": 0.8}, SILENT, {"▁moss": 0.5, "▁mass": 0.45}, SILENT, SILENT]
COURSE = TranscribeRequest(("Mass is a measure of inertia.", "What is mass?"), "physics-1")


def transcriber(frames: Sequence[dict[str, float]], calibration: Calibration | None = None) -> CtcTranscriber:
    return CtcTranscriber(CtcHearing(Scripted(frames), CONFIG), ALPHABET, calibration)


def heard(frames: Sequence[dict[str, float]], request: TranscribeRequest, **options: Any) -> Any:
    stream = transcriber(frames, **options).start(request, Context("en"))
    stream.feed(np.zeros(CHUNK_SAMPLES * -(-len(frames) // CONFIG.chunk) + 400, np.float32))
    return stream.commit()


def test_a_course_decides_between_words_that_sound_alike() -> None:
    assert heard(QUESTION, TranscribeRequest()).text == "what is moss"
    assert heard(QUESTION, COURSE).text == "what is mass"


def test_partials_grow_and_the_commit_hears_the_rest() -> None:
    stream = transcriber(QUESTION).start(TranscribeRequest(), Context("en"))
    assert stream.feed(np.zeros(400, np.float32)).text == ""
    partial = stream.feed(np.zeros(CHUNK_SAMPLES, np.float32))
    assert partial.text == "what is"
    assert partial.text.startswith(partial.stable)
    assert stream.commit().text == "what is moss"
    with pytest.raises(RuntimeError, match="committed"):
        stream.feed(np.zeros(1, np.float32))
    stream.close()
    stream.close()


def test_words_have_times_and_shares() -> None:
    words = heard(QUESTION, TranscribeRequest()).words
    assert [(word.text, word.start, word.end) for word in words] == [
        ("what", 0.0, 0.04), ("is", 0.08, 0.12), ("moss", 0.16, 0.2)]  # fmt: skip
    assert [word.confidence for word in words] == pytest.approx([0.9083, 0.8167, 0.5042], abs=1e-3)


def test_confidence_is_as_calibrated_and_absent_without() -> None:
    assert heard(QUESTION, TranscribeRequest()).confidence is None
    doubting = Calibration((0.0, 8.0, 0.0, 0.0), 8 * 0.5)
    assert heard(QUESTION, TranscribeRequest(), calibration=doubting).confidence < 0.5
    assert heard(QUESTION[:4], TranscribeRequest(), calibration=doubting).confidence > 0.5


def test_nothing_said_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NothingHeardError, match="no words"):
        heard([SILENT] * 8, TranscribeRequest())


def test_pauses_end_segments_where_anybody_asked() -> None:
    frames = [{"▁what": 0.9}, *[SILENT] * (PAUSE_FRAMES + 3), {"▁mass": 0.9}, SILENT]
    transcript = heard(frames, TranscribeRequest(timestamps=True))
    assert [one.text for one in transcript.segments] == ["what", "mass"]
    assert transcript.segments[1].start == pytest.approx(0.04 * (PAUSE_FRAMES + 4))
    assert transcript.text == "what mass"
    assert heard(frames, TranscribeRequest()).segments == ()
    stream = transcriber(frames).start(TranscribeRequest(timestamps=True, partials=False), Context("en"))
    finished = [one.text for _ in range(8) for one in stream.feed(np.zeros(CHUNK_SAMPLES, np.float32)).finished]
    assert finished == ["what"]


def test_other_languages_are_refused() -> None:
    with pytest.raises(UnsupportedLanguageError, match="zh"):
        transcriber([]).start(TranscribeRequest(), Context("zh"))


def test_damaged_sound_does_not_spoil_the_stream() -> None:
    stream = transcriber(QUESTION).start(TranscribeRequest(), Context("en"))
    stream.feed(np.full(CHUNK_SAMPLES * 2, np.nan, np.float32))
    assert stream.commit().text == "what is moss"


def test_a_senseless_calibration_is_refused() -> None:
    assert Calibration.read({}) is None
    for raw in ({}, {"weights": [1, 2], "bias": 0}, {"weights": [1, 2, 3, float("nan")], "bias": 0}):
        with pytest.raises(CheckpointError, match="confidence"):
            Calibration.read({"confidence": raw})
    made = Calibration.read({"confidence": {"weights": [1, 1, -1, 0], "bias": 2}})
    assert made is not None
    assert made.confidence([Word("sure", 0, 1, 0.99)]) > 0.8 > made.confidence([Word("unsure", 0, 1, 0.05)])


def test_a_long_talk_is_kept_in_pieces_though_nobody_asked_for_segments() -> None:
    # So sure that a text with one word less is not likelier for its many ways through the frames.
    talk = [*[{"▁what": 0.9999}, {"": 0.9999}] * (LONG_FRAMES // 2), *[SILENT] * PAUSE_FRAMES, {"▁mass": 0.9}]
    stream = transcriber(talk).start(TranscribeRequest(partials=False), Context("en"))
    stream.feed(np.zeros(CHUNK_SAMPLES * (len(talk) // CONFIG.chunk + 3), np.float32))
    assert stream._beam.frames < 4 * CONFIG.chunk
    transcript = stream.commit()
    assert transcript.text.split() == ["what"] * (LONG_FRAMES // 2) + ["mass"]
    assert transcript.words[-1].start == pytest.approx(0.04 * (LONG_FRAMES + PAUSE_FRAMES))


def test_a_pause_settles_the_text_and_a_commit_in_it_has_it_at_once() -> None:
    made = transcriber(QUESTION)
    stream = made.start(TranscribeRequest(), Context("en"))
    assert isinstance(stream, SettlingStream)
    stream.feed(np.zeros(CHUNK_SAMPLES + 400, np.float32))
    partial = stream.pause(0.25)
    assert (partial.text, partial.settled) == ("what is moss", True)
    runs = _runs(made)
    assert stream.pause(0.3) == partial
    told = stream.commit()
    assert (told.text, len(told.words), _runs(made)) == ("what is moss", 3, runs), "nothing was heard anew"
    with pytest.raises(RuntimeError, match="committed"):
        stream.pause(0.4)


def test_who_goes_on_after_a_pause_is_heard_as_if_there_had_been_none() -> None:
    made = CtcTranscriber(CtcHearing(Babbling([]), CONFIG), ALPHABET)
    rng = np.random.default_rng(5)
    sound = rng.normal(0, 0.1, 32_000).astype(np.float32)
    told = []
    for pauses in (False, True):
        stream = made.start(TranscribeRequest(timestamps=True), Context("en"))
        assert isinstance(stream, SettlingStream)
        for start in range(0, len(sound), 3000):
            stream.feed(sound[start : start + 3000])
            if pauses:
                stream.pause(0.25)
        told.append(stream.commit())
    assert len(told[0].words) > 5
    assert told[0] == told[1]


def test_a_pause_before_any_word_settles_on_nothing() -> None:
    stream = transcriber([SILENT] * 4).start(TranscribeRequest(), Context("en"))
    assert isinstance(stream, SettlingStream)
    stream.feed(np.zeros(400, np.float32))
    assert (stream.pause(0.2).text, stream.pause(0.2).settled) == ("", True)
    with pytest.raises(NothingHeardError):
        stream.commit()


def _runs(made: CtcTranscriber) -> int:
    hearing = made.hearing
    assert isinstance(hearing, CtcHearing)
    session = hearing._session
    assert isinstance(session, Scripted)
    return session.runs
