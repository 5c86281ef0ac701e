"""Sound to log-mel frames: 80 bins, windows of 25 ms every 10 ms, frame i over the samples from 160 i to 160 i + 400.

The mel scale is Slaney's, as in `aula.models.whisper_mel`, whose filters the shipped front end uses; a test compares
the two. Frames look only backwards and 15 ms ahead, so a stream computes the same ones.
"""

import math
from functools import cache

import torch
from torch import Tensor

RATE = 16000
WINDOW = 400
HOP = 160
BINS = 80
FLOOR = 1e-8
"""Least power before the logarithm: -80 dB, below any microphone's own noise."""


def frames(samples: int) -> int:
    """How many frames so many samples fill."""
    return max(0, (samples - WINDOW) // HOP + 1)


def log_mel(sound: Tensor, filters: Tensor) -> Tensor:
    """float32 [B, n] and filters [201, BINS] or [B, 201, BINS], to float32 [B, frames, BINS] in log10 units."""
    windows = sound.unfold(1, WINDOW, HOP) * hann(sound.device)
    power = torch.fft.rfft(windows).abs().square()
    return (power @ filters).clamp_min(FLOOR).log10()


@cache
def hann(device: torch.device) -> Tensor:
    return torch.hann_window(WINDOW, periodic=True, device=device)


def mel_filters(warp: float = 1.0) -> Tensor:
    """float32 [201, BINS]: triangles of area one. `warp` stretches the frequencies they look at: above 1 a voice seems
    to come from a longer throat, below 1 from a shorter one."""
    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    mels = torch.linspace(0, top, BINS + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 1000 / 15, 1000 * 6.4 ** ((mels - 15) / 27)) * warp
    # A warped filter must not lie wholly above the spectrum: the highest ones lean against its end.
    edges = edges.clamp_max(RATE / 2 * 1.02)
    centres = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (centres - low) / (middle - low).clamp_min(1)
    falling = (high - centres) / (high - middle).clamp_min(1)
    triangles = torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low).clamp_min(1)
    return triangles.T.float().contiguous()
