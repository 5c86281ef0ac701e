"""Any signal in, mono speech-rate out; streaming must equal converting in one go."""

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.audio.resampling import FrameCutter, Resampler
from aula.core.types import SPEECH_RATE, Float32


def tone(rate: int, seconds: float, hertz: float = 440.0) -> Float32:
    moments = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * moments)).astype(np.float32)


def convert(resampler: Resampler, samples: Float32, block: int) -> Float32:
    parts = [resampler.feed(samples[start : start + block]) for start in range(0, len(samples), block)]
    return np.concatenate([*parts, resampler.flush()])


@pytest.mark.parametrize("rate", [1, 7, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 655_350])
def test_every_rate_keeps_the_duration(rate: int) -> None:
    converted = convert(Resampler(rate), np.zeros(rate, np.float32), max(1, rate // 50))
    assert abs(len(converted) - SPEECH_RATE) <= 1
    assert converted.dtype == np.float32


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("block", [1_000, 882, 100_000])
def test_streaming_equals_one_conversion(rate: int, block: int) -> None:
    samples = tone(rate, 0.5)
    whole = soxr.resample(samples, rate, SPEECH_RATE, quality="HQ")
    streamed = convert(Resampler(rate), samples, block)
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_tone_stays_that_tone(rate: int) -> None:
    converted = convert(Resampler(rate), tone(rate, 1.0), 500)
    middle = slice(2_000, 14_000)
    np.testing.assert_allclose(converted[middle], tone(SPEECH_RATE, 1.0)[middle], atol=2e-3)


def test_speech_rate_passes_through_unchanged() -> None:
    samples = tone(SPEECH_RATE, 0.1)
    np.testing.assert_array_equal(convert(Resampler(SPEECH_RATE), samples, 77), samples)


def test_channels_are_mixed_by_their_mean() -> None:
    block = np.array([[0.2, 0.4, 0.9], [-1.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(Resampler(SPEECH_RATE).feed(block), [0.5, 0.0], atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, SPEECH_RATE])
def test_non_finite_samples_become_silence(rate: int) -> None:
    block = np.full((rate, 2), np.nan, np.float32)
    block[::3] = np.inf
    block[::5] = -np.inf
    np.testing.assert_array_equal(convert(Resampler(rate), block, 100), np.zeros(SPEECH_RATE, np.float32))


def test_samples_beyond_full_scale_are_clipped() -> None:
    loud = (tone(8_000, 0.2) * 3e38).astype(np.float32)
    converted = convert(Resampler(8_000), loud, 100)
    assert np.isfinite(converted).all()
    assert np.abs(converted).max() <= 1.0


def test_after_a_flush_a_new_signal_begins() -> None:
    resampler = Resampler(48_000)
    first = convert(resampler, tone(48_000, 0.2), 480)
    np.testing.assert_array_equal(convert(resampler, tone(48_000, 0.2), 480), first)


def test_other_dtypes_and_shapes_are_refused() -> None:
    resampler = Resampler(8_000)
    with pytest.raises(TypeError, match="int16"):
        resampler.feed(np.zeros(4, np.int16))
    with pytest.raises(ValueError, match=r"\[1, 2, 3\]"):
        resampler.feed(np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[4, 0\]"):
        resampler.feed(np.zeros((4, 0), np.float32))
    with pytest.raises(ValueError, match="from 0"):
        Resampler(0)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 30))
def test_a_cutter_loses_and_reorders_nothing(lengths: list[int], size: int) -> None:
    samples = np.arange(sum(lengths), dtype=np.float32)
    cutter = FrameCutter(size)
    frames: list[Float32] = []
    start = 0
    for length in lengths:
        frames.extend(cutter.feed(samples[start : start + length]))
        start += length
    assert all(len(frame) == size for frame in frames)
    rest = cutter.rest()
    assert len(rest) < size
    np.testing.assert_array_equal(np.concatenate([*frames, rest]), samples)
    assert len(cutter.rest()) == 0


def test_a_cutter_keeps_its_own_copy() -> None:
    cutter = FrameCutter(4)
    buffer = np.ones(3, np.float32)
    assert list(cutter.feed(buffer)) == []
    buffer[:] = 9
    np.testing.assert_array_equal(cutter.rest(), np.ones(3, np.float32))
