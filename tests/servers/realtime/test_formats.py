"""Against libsndfile, whose G.711 nobody here wrote."""

import io

import numpy as np
import pytest
import soundfile

from aula.core.errors import NotAudioError
from aula.servers.realtime.formats import FORMATS, Coding, SoundIn, SoundOut, decoded, encoded

G711 = {Coding.ULAW: "ULAW", Coding.ALAW: "ALAW"}


@pytest.mark.parametrize("coding", G711)
def test_every_code_of_g711_means_what_libsndfile_says(coding: Coding) -> None:
    codes = bytes(range(256))
    samples, _ = soundfile.read(
        io.BytesIO(codes), format="RAW", samplerate=8000, channels=1, subtype=G711[coding], dtype="int16"
    )
    assert np.array_equal(decoded(codes, coding) * 32768, samples)


@pytest.mark.parametrize("coding", G711)
def test_a_sample_becomes_the_nearest_code(coding: Coding) -> None:
    samples = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
    levels = decoded(bytes(range(256)), coding) * 32768
    again = decoded(encoded(samples, coding), coding) * 32768
    nearest = np.array([np.abs(levels - sample).min() for sample in samples[::97].astype(np.float32)])
    assert np.array_equal(np.abs(again - samples)[::97], nearest)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(NotAudioError, match="3 bytes"):
        decoded(b"abc", Coding.PCM)


@pytest.mark.parametrize("coding", list(Coding))
def test_sound_comes_through_both_ways_whatever_the_pieces(coding: Coding) -> None:
    rate = FORMATS[coding].rate
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)
    raw = encoded(tone, coding)
    whole, pieces = SoundIn(FORMATS[coding]), SoundIn(FORMATS[coding])
    step = 7 * FORMATS[coding].width * 31
    once = np.concatenate([whole.feed(raw), whole.flush()])
    often = np.concatenate([*(pieces.feed(raw[at : at + step]) for at in range(0, len(raw), step)), pieces.flush()])
    assert len(once) == len(often) == 16_000
    assert np.abs(once - often).max() < 1e-4
    out = SoundOut(FORMATS[coding], 16_000)
    back = decoded(out.feed((once * 32767).astype(np.int16)) + out.flush(), coding)
    middle = slice(rate // 4, 3 * rate // 4)
    assert np.corrcoef(back[middle], tone[middle])[0, 1] > 0.99
