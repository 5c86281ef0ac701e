import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from aula.core.capabilities import Speaker
from aula.core.errors import InputError, SettingsError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import Context, Int16, SpeakRequest
from aula.models import espeak
from aula.models.espeak import EspeakSpeaker, available_voices, phonemes, sentences

LONG = "A force is a push or a pull that one object exerts on another. Forces can change the speed of an object. " * 8


@pytest.fixture
def speaker() -> EspeakSpeaker:
    return EspeakSpeaker(Settings())


def spoken(speaker: Speaker, text: str, language: str = "en", **options: object) -> Int16:
    request = SpeakRequest(text, **options)  # type: ignore[arg-type]
    chunks = list(speaker.speak(request, Context(language)))
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


def test_chunks_are_int16_and_the_first_is_short(speaker: EspeakSpeaker) -> None:
    chunks = list(speaker.speak(SpeakRequest("A force is a push or a pull."), Context()))
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.int16)}
    assert len(chunks[0]) < 0.1 * speaker.rate < len(chunks[1])


def test_sound_begins_at_once(speaker: EspeakSpeaker) -> None:
    first = next(iter(speaker.speak(SpeakRequest("Energy"), Context())))
    assert np.flatnonzero(np.abs(first.astype(int)) > 300)[0] < 0.005 * speaker.rate


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "。。。", "\x01\x02", "— –"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_to_say_is_no_chunk(speaker: EspeakSpeaker, text: str, language: str) -> None:
    assert len(spoken(speaker, text, language)) == 0


def test_two_sentences_have_a_pause_between_but_none_at_the_end(speaker: EspeakSpeaker) -> None:
    sound = np.abs(spoken(speaker, "Energy. Force.").astype(int)) > 300
    loud = np.flatnonzero(sound)
    assert np.diff(loud).max() > 0.2 * speaker.rate
    assert len(sound) - loud[-1] < 0.05 * speaker.rate


def test_a_slower_pace_takes_longer(speaker: EspeakSpeaker) -> None:
    text = "Energy is the ability to do work."
    slow, usual, held = (len(spoken(speaker, text, words_per_minute=pace)) for pace in (100, None, 1))
    assert held > slow > usual


def test_markup_and_notation_are_read_as_text(speaker: EspeakSpeaker) -> None:
    plain = len(spoken(speaker, "hello"))
    assert len(spoken(speaker, "hello <break time='9s'/>")) < plain + 4 * speaker.rate
    assert len(spoken(speaker, "[[h@l'oU]]")) > plain


def test_a_closed_iterator_stops_its_thread(speaker: EspeakSpeaker) -> None:
    chunks = speaker.speak(SpeakRequest(LONG), Context())
    next(chunks)
    assert any(thread.name == "aula-espeak" for thread in threading.enumerate())
    chunks.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "aula-espeak" for thread in threading.enumerate())


def test_closing_the_speaker_ends_what_it_says(speaker: EspeakSpeaker) -> None:
    whole = len(spoken(speaker, LONG))
    chunks = speaker.speak(SpeakRequest(LONG), Context())
    heard = len(next(chunks))
    speaker.close()
    assert heard + sum(map(len, chunks)) < whole


def test_an_unfinished_speech_does_not_hold_up_another(speaker: EspeakSpeaker) -> None:
    waiting = speaker.speak(SpeakRequest(LONG), Context())
    next(waiting)
    assert len(spoken(speaker, "Energy")) > 0
    waiting.close()  # type: ignore[attr-defined]


def test_many_at_once_each_get_their_own_words(speaker: EspeakSpeaker) -> None:
    texts = ["Energy.", LONG[:100], "What is a force?", "力是一个物体对另一个物体的推或拉。"] * 2
    languages = ["en", "en", "en", "zh"] * 2
    alone = [len(spoken(speaker, text, language)) for text, language in zip(texts, languages, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: len(spoken(speaker, *pair)), zip(texts, languages, strict=True)))
    # The synthesiser carries its pitch's phase on, so that lengths differ by a few samples.
    assert together == pytest.approx(alone, abs=0.02 * speaker.rate)


def test_another_voice_sounds_different(speaker: EspeakSpeaker) -> None:
    usual, other = (spoken(speaker, "Energy.", voice=voice) for voice in (None, "en-gb+f2"))
    size = min(len(usual), len(other))
    assert np.abs(usual[:size].astype(int) - other[:size]).mean() > 300


@pytest.mark.parametrize("voice", ["klingon", "en-us+nobody", "cmn", "../../etc/passwd", "en-us+../f2", "!v/f2"])
def test_a_voice_that_cannot_be_had_is_named_with_the_others(speaker: EspeakSpeaker, voice: str) -> None:
    with pytest.raises(InputError) as caught:
        speaker.speak(SpeakRequest("hello", voice), Context())
    assert voice in str(caught.value)
    assert "en-gb" in caught.value.available


def test_a_bad_voice_in_the_settings_is_found_when_loading() -> None:
    with pytest.raises(SettingsError, match="voice_zh"):
        EspeakSpeaker(Settings({"speech.voice_zh": "en-us"}))


def test_a_language_without_a_voice_is_refused(speaker: EspeakSpeaker) -> None:
    with pytest.raises(UnsupportedLanguageError, match="'fr'"):
        speaker.speak(SpeakRequest("bonjour"), Context("fr"))
    assert len(spoken(speaker, "力", "zh-CN")) > 0


def test_latin_letters_inside_chinese_are_said_in_english() -> None:
    assert "ˈɛf" in phonemes("力是F等于", "cmn")
    assert "njˈuːtən" in phonemes("Newton 定律", "cmn")


def test_phonemes_of_a_word_and_of_nothing() -> None:
    assert phonemes("energy") == "ˈɛnɚdʒi"
    assert phonemes("") == phonemes("...") == ""


def test_voices_of_a_language_begin_with_the_plainest() -> None:
    assert available_voices("en")[0] == "en-us"
    assert available_voices("zh")[0] == "cmn"


def test_sentences_are_cut_where_they_end() -> None:
    assert sentences("It is, e.g. A thing. 3.5 m. 力是。你好！ ... \n new") == [
        "It is, e.g. A thing.",
        "3.5 m.",
        "力是。",
        "你好！",
        "new",
    ]


def test_the_licence_is_said() -> None:
    assert any("GPL-3.0" in licence.licence for licence in espeak.INFO.licences)
