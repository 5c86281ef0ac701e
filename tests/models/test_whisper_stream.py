from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.core.clock import FakeClock
from aula.core.errors import NothingHeardError
from aula.core.types import Float32, Partial, Segment
from aula.models.whisper_bias import bias_tokens, course_terms
from aula.models.whisper_hearing import Heard, HearingOptions, WhisperHearing
from aula.models.whisper_mel import MelStream
from aula.models.whisper_passes import Work, Write, alone
from aula.models.whisper_segments import window_segments
from aula.models.whisper_stream import StreamOptions, WhisperStream, common_start
from aula.models.whisper_text import Written
from tests.models.whisper_thin_model import WINDOW, hearing_of, insist_on, sound, thin_checkpoint

TIME = 50_364
SECOND = 50
"""Timestamps."""


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> WhisperHearing:
    return hearing_of(thin_checkpoint(tmp_path_factory.mktemp("thin")), options=HearingOptions(temperatures=(0.0,)))


def _at(seconds: float) -> int:
    return TIME + round(seconds * SECOND)


class Scripted:
    """A hearing whose finals and drafts a test writes; the last of each comes again. Every call takes `costs` s."""

    def __init__(self, hearing: WhisperHearing, finals: Sequence[Sequence[int]], drafts: Sequence[Any] = ((),)) -> None:
        self.contexts, self.tokenizer = hearing.contexts, hearing.tokenizer
        self.finals, self.drafts = list(finals), list(drafts)
        self.clock = FakeClock()
        self.costs = 0.0
        self.drafted_at: list[int] = []
        self.languages = [50_259]
        self.asked: list[dict[str, Any]] = []
        self.longest = 0

    def mel_stream(self) -> MelStream:
        return MelStream(4)

    def drafting(self, mel: MelStream, language: int | None, **options: Any) -> Work[Heard]:
        self.drafted_at.append(mel.samples)
        self.clock.advance(self.costs)
        return self._heard(self.drafts, language)
        yield

    def finalising(self, mel: MelStream, language: int | None, **options: Any) -> Work[Heard]:
        self.longest = max(self.longest, mel.samples)
        self.asked.append(options)
        found = self.languages.pop(0) if len(self.languages) > 1 else self.languages[0]
        return self._heard(self.finals, found if language is None else language)
        yield

    def alone(self, work: Work[Any]) -> Any:
        return alone(work, None)  # type: ignore[arg-type]

    def _heard(self, texts: list[Sequence[int]], language: int | None) -> Heard:
        tokens = texts.pop(0) if len(texts) > 1 else texts[0]
        return Heard(tuple(tokens), language, -0.5, 0.0, 200, 0.0, 1, 0)


def _stream(scripted: Scripted, **options: Any) -> WhisperStream:
    return WhisperStream(scripted, scripted.clock, StreamOptions(**options))  # type: ignore[arg-type]


def _silence(seconds: float) -> Float32:
    return np.zeros(round(seconds * 16_000), np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_that_of_the_whole_sound_however_it_came(hearing: WhisperHearing, seed: int) -> None:
    """Frame by frame with hypotheses as drafts, or at once: tokens equal."""
    whole = sound(seed, 2.0 + seed / 2)
    mel = hearing.mel_stream()
    mel.feed(whole)
    wanted = hearing.tokenizer.text(hearing.final(mel, 50_259).tokens)
    live = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259))
    partials = {live.feed(frame).text for frame in np.array_split(whole, 100)}
    assert len(partials) > 3, "hypotheses were made on the way"
    transcript = live.commit()
    assert transcript.text == wanted
    assert transcript.language == "en"
    assert transcript.segments == ()
    assert transcript.confidence is not None
    assert 0 < transcript.confidence <= 1


def test_a_long_sound_is_the_same_by_frames_and_at_once(hearing: WhisperHearing) -> None:
    whole = sound(7, 15.0)
    made = []
    for pieces in (1, 7, 400):
        stream = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259, timestamps=True))
        finished = [segment for piece in np.array_split(whole, pieces) for segment in stream.feed(piece).finished]
        transcript = stream.commit()
        assert transcript.segments[: len(finished)] == tuple(finished)
        assert all(0 <= one.start <= one.end <= 15.0 for one in transcript.segments)
        made.append(transcript)
    assert [one.text for one in made] == [made[0].text] * 3
    assert made[0].segments == made[1].segments == made[2].segments


def test_hypotheses_never_come_so_often_that_sound_must_wait(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5]], [[5]])
    scripted.costs = 0.4
    stream = _stream(scripted, language=50_259)
    for _ in range(150):
        stream.feed(_silence(0.02))
    assert [at / 16_000 for at in scripted.drafted_at] == pytest.approx([0.5, 1.3, 2.1, 2.9], abs=0.02)
    quick = Scripted(hearing, [[5]], [[5]])
    stream = _stream(quick, language=50_259)
    for _ in range(100):
        stream.feed(_silence(0.02))
    assert len(quick.drafted_at) == 6


def test_where_nobody_looks_no_hypothesis_is_made(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5, 6]])
    stream = _stream(scripted, partials=False)
    assert stream.feed(_silence(5)).text == ""
    assert scripted.drafted_at == []
    transcript = stream.commit()
    assert transcript.text == "w5 w6"
    assert transcript.confidence == pytest.approx(2**-0.5)


def test_what_two_hypotheses_agree_on_is_stable(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5, 6, 8]], [[5, 6, 7], [5, 6, 8, 9], [5, 6, 8, 9, 10]])
    stream = _stream(scripted, language=50_259)
    seen = [stream.feed(_silence(0.6)) for _ in range(3)]
    assert [one.text for one in seen] == ["w5 w6 w7", "w5 w6 w8 w9", "w5 w6 w8 w9 w10"]
    assert [one.stable for one in seen] == ["", "w5 w6", "w5 w6 w8 w9"]
    assert stream.commit().text == "w5 w6 w8"
    assert scripted.asked[-1]["draft"] == (5, 6, 8, 9, 10)


def test_a_commit_after_a_pause_costs_nothing(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5, 6, 8], [9]], [[5, 6, 7]])
    stream = _stream(scripted, language=50_259)
    assert not stream.feed(_silence(0.6)).settled
    assert stream.pause(0.1) == Partial("w5 w6 w8", "w5 w6", (), settled=True)
    assert stream.pause(0.2).settled
    assert stream.commit().text == "w5 w6 w8"
    assert len(scripted.asked) == 1


@pytest.mark.parametrize("timestamps", [False, True])
def test_sound_after_a_pause_unsettles_the_text(hearing: WhisperHearing, timestamps: bool) -> None:
    scripted = Scripted(hearing, [[5, 6], [5, 6, 7]], [[5]])
    stream = _stream(scripted, language=50_259, timestamps=timestamps)
    stream.feed(_silence(0.6))
    assert stream.pause(0.1).settled
    assert not stream.feed(_silence(0.02)).settled
    assert stream.commit().text == "w5 w6 w7"
    assert [asked["draft"] for asked in scripted.asked] == [(5,), (5, 6)], "what the pause gave is the next draft"


def test_a_text_without_times_is_none_of_a_window_that_is_cut(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5], [_at(0), 11, _at(5)], [_at(0), 12, _at(1)]], [[5]])
    stream = _stream(scripted, language=50_259)
    stream.feed(_silence(6.0))
    assert stream.pause(1.0).settled
    stream.feed(_silence(1.0))
    assert stream.commit().text == "w11 w12"


def test_a_pause_must_last_as_long_as_its_text_is_expected_to_take(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5]], [[5]])
    scripted.costs = 0.4  # for 2 s of context; the text takes the window of 6 s
    stream = _stream(scripted, language=50_259)
    stream.feed(_silence(0.6))
    assert [stream.pause(seconds).settled for seconds in (0.3, 1.1)] == [False, False]
    assert stream.pause(1.2).settled


def test_nothing_is_settled_before_any_sound(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[5]])
    assert not _stream(scripted).pause(5.0).settled
    assert scripted.asked == []


@pytest.mark.parametrize("seed", range(3))
def test_what_a_pause_settled_is_what_the_whole_sound_gives(hearing: WhisperHearing, seed: int) -> None:
    whole = sound(seed, 2.5)
    plain = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259, partials=False))
    plain.feed(whole)
    live = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259))
    for place, piece in enumerate(np.array_split(whole, 25)):
        live.feed(piece)
        if place in (9, 24):
            live.pause(0.5)
    assert live.commit().text == plain.commit().text


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_the_agreed_start_begins_both(one: list[int], two: list[int]) -> None:
    start = list(common_start(one, two))
    assert one[: len(start)] == start == two[: len(start)]
    assert len(start) in (len(one), len(two)) or one[len(start)] != two[len(start)]


def test_a_window_is_cut_where_its_last_pair_of_times_says(hearing: WhisperHearing) -> None:
    first = [_at(0), 11, _at(2), _at(2), 12, _at(4.5), _at(4.5), 13]
    second = [_at(0), 13, 14, _at(3)]
    scripted = Scripted(hearing, [first, second])
    stream = _stream(scripted, timestamps=True, partials=False)
    finished = [segment for _ in range(10) for segment in stream.feed(_silence(0.7)).finished]
    assert finished == [Segment(0.0, 2.0, "w11"), Segment(2.0, 4.5, "w12")]
    transcript = stream.commit()
    assert transcript.segments[2:] == (Segment(4.5, 7.0, "w13 w14"),), "never beyond the sound"
    assert transcript.text == "w11 w12 w13 w14"


def test_live_captions_are_final_as_soon_as_two_hypotheses_agree(hearing: WhisperHearing) -> None:
    one = [_at(0), 11, _at(0.4), _at(0.4), 12]
    two = [_at(0), 11, _at(0.4), _at(0.4), 13, 14]
    scripted = Scripted(hearing, [one, two, [_at(0), 13, 14, _at(0.5)]])
    stream = _stream(scripted, timestamps=True, early=True, language=50_259)
    assert stream.feed(_silence(0.5)) == Partial("w11 w12", "", ())
    partial = stream.feed(_silence(0.4))
    assert partial.finished == (Segment(0.0, 0.4, "w11"),)
    assert partial.text == "w11"
    assert stream.commit().segments == (Segment(0.0, 0.4, "w11"), Segment(0.4, 0.9, "w13 w14"))
    assert scripted.drafted_at == [], "what becomes final is heard as a final text is"


def test_three_hours_take_the_memory_of_one_window(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[_at(0), 11, _at(5), _at(5), 12]])
    stream = _stream(scripted, partials=False)
    minute = _silence(60)
    for _ in range(180):
        stream.feed(minute)
        assert stream.seconds % 60 == 0
    assert scripted.longest <= WINDOW
    transcript = stream.commit()
    assert transcript.segments[-1].end == 3 * 3600
    assert 2150 <= len(transcript.segments) <= 2170


def test_a_model_that_moves_nowhere_still_comes_to_an_end(hearing: WhisperHearing) -> None:
    for tokens in (
        [_at(0), _at(0)],
        [_at(0), 11, _at(0), _at(0)],
        [_at(1), _at(0), 11],
        [11, 12],
        [_at(6), _at(6)],
        [],
    ):
        scripted = Scripted(hearing, [tokens])
        stream = _stream(scripted, timestamps=True, partials=False)
        stream.feed(_silence(20))
        try:
            transcript = stream.commit()
        except NothingHeardError:
            continue
        assert all(one.start <= one.end for one in transcript.segments)


def test_nothing_at_all_is_nothing_heard(hearing: WhisperHearing) -> None:
    for length in (0, 100):
        stream = _stream(Scripted(hearing, [[]]), language=50_259)
        stream.feed(_silence(0)[:length])
        with pytest.raises(NothingHeardError):
            stream.commit()
    stream = _stream(Scripted(hearing, [[]]), timestamps=True)
    with pytest.raises(NothingHeardError):
        stream.commit()


def _noise(seconds: float) -> Float32:
    return np.random.default_rng(2).normal(0, 0.3, round(seconds * 16_000)).astype(np.float32)


def _music(seconds: float) -> Float32:
    """Chords, one every half second."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    root = 220 * 2 ** (np.floor(2 * time) % 5 / 12)
    chord = sum(np.sin(2 * np.pi * ratio * root * time) for ratio in (1, 1.25, 1.5))
    return np.asarray(0.2 * chord, dtype=np.float32)


@pytest.mark.parametrize("made", [_noise, _music])
def test_noise_and_music_are_nothing_heard(tmp_path: Path, made: Callable[[float], Float32]) -> None:
    """With a model that is sure that nobody speaks; with times and without, in one window and in several."""
    checkpoint = thin_checkpoint(tmp_path)
    insist_on(checkpoint, {50_362: 25.0})
    quiet = hearing_of(checkpoint)
    for seconds, timestamps in ((2.0, False), (2.0, True), (8.0, False)):
        stream = WhisperStream(quiet, FakeClock(), StreamOptions(language=50_259, timestamps=timestamps))
        for piece in np.array_split(made(seconds), 8):
            assert stream.feed(piece).text == ""
        with pytest.raises(NothingHeardError):
            stream.commit()


def test_two_languages_are_each_heard_as_what_they_are(hearing: WhisperHearing) -> None:
    scripted = Scripted(hearing, [[11, 12, 13], [14]])
    scripted.languages = [50_260, 50_259]
    stream = _stream(scripted, partials=False, timestamps=True)
    stream.feed(_silence(8))
    assert stream.commit().language == "zh", "what most of it is spoken in"


@pytest.mark.parametrize(("translate", "task", "tag"), [(True, 50_358, "en"), (False, 50_359, "zh")])
def test_what_is_translated_is_english(hearing: WhisperHearing, translate: bool, task: int, tag: str) -> None:
    """Hypotheses and the text are asked for with the same task."""
    stream = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_260, translate=translate))
    prompts: list[list[int]] = []
    for work in (stream.feeding(sound(1, 2.0)), stream.committing()):
        made: Any = None
        answer: Any = None
        while made is None:
            try:
                asked = work.send(answer)
            except StopIteration as end:
                made = end.value
                continue
            if isinstance(asked, Write):
                prompts.append(list(asked.prompt))
                answer = Written((11, 12), (0.0, 0.0, 0.0), 0, 1, True)
    assert prompts == [[50_258, 50_260, task, 50_363]] * 2
    assert made.language == tag


def test_a_client_may_disappear_at_any_moment(hearing: WhisperHearing) -> None:
    stream = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259))
    stream.feed(sound(1, 1.0))
    stream.close()
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.feed(sound(1, 1.0))
    other = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259))
    other.feed(sound(1, 1.0))
    assert other.commit().text
    with pytest.raises(RuntimeError, match="committed"):
        other.commit()


def test_streams_side_by_side_do_not_disturb_each_other(hearing: WhisperHearing) -> None:
    alone = []
    for seed in (1, 2):
        stream = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259))
        stream.feed(sound(seed))
        alone.append(stream.commit().text)
    streams = [WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259)) for _ in range(2)]
    for pieces in zip(np.array_split(sound(1), 30), np.array_split(sound(2), 30), strict=True):
        for stream, piece in zip(streams, pieces, strict=True):
            stream.feed(piece)
    assert [stream.commit().text for stream in streams] == alone


def test_samples_that_are_no_numbers_are_silence(hearing: WhisperHearing) -> None:
    broken = sound(1)
    broken[1000:1100] = np.nan
    broken[2000] = np.inf
    mended = broken.copy()
    mended[1000:1100] = 0
    mended[2000] = 0
    texts = []
    for samples in (broken, mended):
        stream = WhisperStream(hearing, FakeClock(), StreamOptions(language=50_259, partials=False))
        stream.feed(samples)
        texts.append(stream.commit().text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("tokens", "last", "wanted", "samples"),
    [
        ([_at(0), 5, _at(2)], False, [(0, 2, "w5")], 96_000),
        ([_at(0), 5], False, [(0, 6, "w5")], 96_000),
        ([5, 6], True, [(0, 6, "w5 w6")], 96_000),
        ([_at(0), 5, _at(2), _at(3), 6], False, [(0, 2, "w5")], 32_000),
        ([_at(0), 5, _at(2), _at(3), 6], True, [(0, 2, "w5"), (3, 6, "w6")], 96_000),
        ([_at(0), 5, _at(2), _at(2)], True, [(0, 2, "w5")], 32_000),
        ([], True, [], 96_000),
    ],
)
def test_segments_of_one_window(
    hearing: WhisperHearing, tokens: list[int], last: bool, wanted: list[tuple[float, float, str]], samples: int
) -> None:
    made = window_segments(tokens, hearing.tokenizer, offset=10.0, samples=96_000, last=last)
    assert made.samples == samples
    assert [(one.start - 10, one.end - 10, one.text) for one in made.segments] == wanted


class Syllables:
    """A tokeniser with a token for four letters, or for one Chinese character."""

    def encode(self, text: str) -> list[int]:
        word = text.strip()
        return list(range(len(word) if ord(word[0]) > 0x3000 else -(-len(word) // 4)))


def test_a_courses_terms_are_its_rare_words() -> None:
    tokenizer: Any = Syllables()
    english = ["The momentum of this cart", "momentum and inertia", "Momentum", "with inertia, momentum!"]
    sentences = [*english, "牛顿定律", "牛顿说", "牛顿"]
    assert course_terms(sentences, tokenizer) == ["inertia", "momentum", "牛顿"]
    assert bias_tokens(sentences, tokenizer, 0) == ()
    assert bias_tokens(["momentum momentum inertia"], tokenizer, 5) == (0, 1, 0, 1, 2), "what is said most comes last"
    assert bias_tokens(["momentum momentum inertia"], tokenizer, 4) == (0, 1, 2)
