from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.core.errors import AudioTooLongError
from aula.models.whisper_mel import HOP, MelStream, log_mel, mel_filters


@pytest.mark.shared_data
@pytest.mark.parametrize("bins", [80, 128])
def test_filters_by_formula_equal_the_published_ones(shared_data: Path, bins: int) -> None:
    with np.load(shared_data / "tokenizers" / "whisper" / "mel_filters.npz", allow_pickle=False) as published:
        np.testing.assert_allclose(mel_filters(bins), published[f"mel_{bins}"], atol=1e-8, rtol=1e-5)


def _noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 0.1, count).astype(np.float32)


@settings(max_examples=25)
@given(st.integers(0, 4000), st.lists(st.integers(0, 1500), max_size=6))
def test_a_stream_gives_the_frames_of_the_whole(count: int, cuts: list[int]) -> None:
    sound = _noise(count)
    stream = MelStream(20)
    for part in np.split(sound, np.cumsum(cuts).clip(0, count)):
        stream.feed(part)
        stream.features(30)  # asking early changes nothing
    np.testing.assert_allclose(stream.features(30), log_mel(sound, 20, 30), atol=1e-4)
    assert stream.features(30).shape == (20, 30)


def test_silence_after_the_sound_is_padding_of_samples() -> None:
    sound = _noise(3000)
    padded = np.concatenate([sound, np.zeros(30 * HOP - 3000, dtype=np.float32)])
    np.testing.assert_allclose(log_mel(sound, 80, 30), log_mel(padded, 80, 30), atol=1e-5)


def test_silence_alone_is_flat_and_finite() -> None:
    features = log_mel(np.zeros(0, dtype=np.float32), 80, 20)
    np.testing.assert_allclose(features, (-10 + 4) / 4, rtol=1e-6)


def test_a_sound_longer_than_its_window_is_refused() -> None:
    with pytest.raises(AudioTooLongError, match=r"0\.2 s"):
        log_mel(_noise(20 * HOP + 1), 80, 20)
