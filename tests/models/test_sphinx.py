from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from aula.core.errors import BackendError, NothingHeardError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import Context, Float32, SpeakRequest, TranscribeRequest, Transcript
from aula.models import sphinx
from aula.models.adaptation import AdaptedModel
from aula.models.espeak import EspeakSpeaker
from aula.models.sphinx import SphinxStream, SphinxTranscriber

COURSE = (
    "Inertia is the tendency of an object to keep its state of motion.",
    "Kinetic energy is the energy that a body has because it moves.",
    "Static friction keeps a crate from sliding.",
    "The net force is the vector sum of all the forces acting on an object.",
)
REQUEST = TranscribeRequest(COURSE, "tiny")
QUESTION = "what is static friction"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def transcriber(home: Path) -> Iterator[SphinxTranscriber]:
    made = SphinxTranscriber(Settings({"home": str(home)}))
    yield made
    made.close()


@pytest.fixture(scope="module")
def question() -> Float32:
    """A question in a synthetic voice: 16 kHz, 0.3 s of silence on either side, a little noise."""
    speaker = EspeakSpeaker(Settings())
    chunks = list(speaker.speak(SpeakRequest(QUESTION, words_per_minute=140), Context()))
    sound = soxr.resample(np.concatenate(chunks).astype(np.float32) / 32768, speaker.rate, 16_000)
    noise = np.random.default_rng(1).standard_normal(len(sound) + 9600) * 0.003
    return (np.pad(sound, 4800) * 0.6 + noise).astype(np.float32)


def transcribe(transcriber: SphinxTranscriber, samples: Float32, block: int = 320) -> Transcript:
    stream = transcriber.start(REQUEST, Context())
    try:
        for place in range(0, len(samples), block):
            stream.feed(samples[place : place + block])
        return stream.commit()
    finally:
        stream.close()


def assert_alike(first: Transcript, second: Transcript) -> None:
    """PocketSphinx carries which Gaussians were best into the next utterance, so scores differ in the third digit."""
    assert first.text == second.text
    assert first.confidence == pytest.approx(second.confidence, abs=0.03)


def test_a_question_of_the_course_is_heard_and_trusted(transcriber: SphinxTranscriber, question: Float32) -> None:
    transcript = transcribe(transcriber, question)
    assert transcript.text == QUESTION
    assert transcript.language == "en"
    assert transcript.confidence is not None
    assert transcript.confidence > 0.5


@pytest.mark.parametrize("block", [97, 333, 16_000, 10**6])
def test_the_size_of_the_blocks_does_not_matter(transcriber: SphinxTranscriber, question: Float32, block: int) -> None:
    assert_alike(transcribe(transcriber, question, block), transcribe(transcriber, question))


def test_the_same_sound_gives_the_same_transcript_whatever_came_before(
    transcriber: SphinxTranscriber, question: Float32
) -> None:
    first = transcribe(transcriber, question)
    with pytest.raises(NothingHeardError):
        transcribe(transcriber, np.zeros(16_000, np.float32))
    assert_alike(transcribe(transcriber, question), first)


def test_words_come_while_the_sound_is_fed(transcriber: SphinxTranscriber, question: Float32) -> None:
    stream = transcriber.start(REQUEST, Context())
    partials = [stream.feed(question[place : place + 320]).text for place in range(0, len(question), 320)]
    assert partials[0] == ""
    assert any("what" in text for text in partials[: len(partials) // 2])
    stream.close()


@pytest.mark.parametrize("kind", ["empty", "silence", "short"])
def test_nothing_heard_is_said(transcriber: SphinxTranscriber, kind: str) -> None:
    samples = {"empty": np.zeros(0), "silence": np.zeros(16_000), "short": np.zeros(100)}[kind].astype(np.float32)
    with pytest.raises(NothingHeardError, match="say it again"):
        transcribe(transcriber, samples)


def test_noise_is_not_trusted(transcriber: SphinxTranscriber) -> None:
    random = np.random.default_rng(3)
    for level in (0.01, 0.1, 0.5):
        noise = np.clip(random.standard_normal(24_000) * level, -1, 1).astype(np.float32)
        try:
            transcript = transcribe(transcriber, noise)
        except NothingHeardError:
            continue
        assert transcript.confidence is not None
        assert transcript.confidence < 0.5


def test_samples_that_are_no_numbers_or_too_loud_are_survived(
    transcriber: SphinxTranscriber, question: Float32
) -> None:
    bad = question.copy()
    bad[:3] = [np.nan, np.inf, -np.inf]
    bad[3:100] = 40.0
    assert "friction" in transcribe(transcriber, bad).text


@pytest.mark.parametrize("language", ["zh", "fr", ""])
def test_another_language_is_refused_with_the_next_step(transcriber: SphinxTranscriber, language: str) -> None:
    with pytest.raises(UnsupportedLanguageError, match="--text"):
        transcriber.start(REQUEST, Context(language))


def test_a_region_of_english_is_english(transcriber: SphinxTranscriber) -> None:
    transcriber.start(REQUEST, Context("en-GB")).close()


def test_states_are_kept(transcriber: SphinxTranscriber, question: Float32) -> None:
    stream = transcriber.start(REQUEST, Context())
    stream.feed(question)
    stream.commit()
    with pytest.raises(RuntimeError, match="committed"):
        stream.feed(question)
    with pytest.raises(RuntimeError, match="committed"):
        stream.commit()
    stream.close()
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.feed(question)


def test_streams_side_by_side_do_not_disturb_each_other(transcriber: SphinxTranscriber, question: Float32) -> None:
    alone = transcribe(transcriber, question)
    first, second = (transcriber.start(REQUEST, Context()) for _ in range(2))
    for place in range(0, len(question), 1600):
        first.feed(question[place : place + 1600])
        second.feed(np.zeros(1600, np.float32))
    assert_alike(first.commit(), alone)
    second.close()


def test_decoders_are_used_again_and_few_courses_are_kept(
    home: Path, question: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[AdaptedModel] = []
    new_decoder = sphinx._new_decoder

    def counted(model: AdaptedModel, options: dict[str, Any]) -> Any:
        made.append(model)
        return new_decoder(model, options)

    monkeypatch.setattr(sphinx, "_new_decoder", counted)
    monkeypatch.setattr(sphinx, "KEPT_COURSES", 1)
    transcriber = SphinxTranscriber(Settings({"home": str(home)}))
    for _ in range(3):
        transcribe(transcriber, question)
    assert len(made) == 1
    other = TranscribeRequest(COURSE[:1], "other")
    transcriber.start(other, Context()).close()
    transcribe(transcriber, question)
    assert len(made) == 3


@pytest.mark.shared_data
def test_mandarin_is_not_taken_for_a_question(transcriber: SphinxTranscriber, shared_data: Path) -> None:
    import soundfile

    clips = sorted((shared_data / "speech_zh_aishell" / "wav").rglob("*.wav"))[:5]
    assert clips
    for clip in clips:
        samples, rate = soundfile.read(clip, dtype="float32")
        assert rate == 16_000
        try:
            transcript = transcribe(transcriber, samples[:64_000])
        except NothingHeardError:
            continue
        assert transcript.confidence is not None
        assert transcript.confidence < 0.5


@pytest.mark.parametrize("end", ["close", "commit"])
def test_a_decoder_that_fails_at_the_end_is_given_back(end: str) -> None:
    class Failing:
        def set_cmn(self, mean: str) -> None: ...

        def start_utt(self) -> None: ...

        def end_utt(self) -> None:
            raise RuntimeError("no utterance")

    given: list[bool] = []
    stream = SphinxStream(Failing(), lambda: given.append(True), judged=False)
    with pytest.raises(BackendError):
        getattr(stream, end)()
    stream.close()
    assert given == [True]
