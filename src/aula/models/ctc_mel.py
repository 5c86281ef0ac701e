"""The recogniser's front end: log-mel frames of 25 ms every 10 ms.

As training/recogniser/features.py: frame i is of the samples from 160 i to 160 i + 400, without padding; the power is
floored at 1e-8 before the logarithm to base 10. A test compares the two.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from aula.core.types import Float32
from aula.models.ctc_config import BINS
from aula.models.whisper_mel import HOP, WINDOW, mel_filters

FLOOR = 1e-8


def log_mel(samples: Float32) -> Float32:
    """float32 [n], n at least one window, to float32 [frames, 80]."""
    windows = sliding_window_view(samples, WINDOW)[::HOP] * _HANN
    spectrum = np.fft.rfft(windows, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
    mels: Float32 = np.log10(np.maximum(power @ mel_filters(BINS).T, np.float32(FLOOR)))
    return mels


def samples_for(frames: int) -> int:
    """How many samples so many frames look at."""
    return (frames - 1) * HOP + WINDOW


_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
