"""What rooms, microphones and voices do to speech, on whole batches, where the model trains (the GPU).

Each effect draws its own strength per clip; `strength` from 0 to 1 scales how many clips are touched at all.
"""

import math

import torch
from torch import Generator, Tensor

from training.recogniser.features import BINS, RATE, mel_filters

WARPS = torch.linspace(0.86, 1.14, 9).tolist()


class Augmenter:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._filters = torch.stack([mel_filters(warp) for warp in WARPS]).to(device)
        self.plain_filters = mel_filters().to(device)

    def spoilt(self, sound: Tensor, strength: float, dice: Generator) -> Tensor:
        """float32 [B, n] in -1..1, to the same clips in other rooms and on other microphones."""
        batch, samples = sound.shape
        size = _fast_size(samples + RATE // 4)
        spectrum = torch.fft.rfft(sound, size)
        hertz = torch.linspace(0, RATE / 2, spectrum.shape[1], device=self.device)

        # 1. Other people talking: each clip's neighbour, softly.
        babble = self._chosen(batch, 0.15 * strength, dice) * self._between(batch, 0.03, 0.25, dice)
        spectrum = spectrum + babble[:, None] * spectrum.roll(1, 0)
        # 2. The room: a decaying tail of noise.
        spectrum = spectrum * torch.where(
            (self._chosen(batch, 0.4 * strength, dice) > 0)[:, None], torch.fft.rfft(self._rooms(batch, dice), size), 1
        )
        # 3. The microphone: a smooth random response, and the band it lets through.
        spectrum = spectrum * self._microphones(batch, hertz, strength, dice)
        # 4. Noise from white to brown.
        spectrum = spectrum + self._noise(spectrum, sound, size, hertz, strength, dice)

        sound = torch.fft.irfft(spectrum, size)[:, :samples]
        peak = sound.abs().amax(1, keepdim=True).clamp_min(1e-4)
        # 5. Level from far away to too loud (which clips), and the steps of eight bits.
        level = 10 ** (self._between(batch, -30, 3, dice) / 20)
        sound = (sound / peak * level[:, None]).clamp(-1, 1)
        coarse = self._chosen(batch, 0.1 * strength, dice)[:, None] > 0
        return torch.where(coarse, _mu_law(sound), sound)

    def filters(self, batch: int, strength: float, dice: Generator) -> Tensor:
        """Mel filters [B, 201, BINS] of other throats' lengths."""
        which = torch.randint(0, len(WARPS), (batch,), generator=dice, device=self.device)
        touched = self._chosen(batch, 0.6 * strength, dice) > 0
        return self._filters[torch.where(touched, which, len(WARPS) // 2)]

    def masked(self, mel: Tensor, strength: float, dice: Generator) -> Tensor:
        """SpecAugment (Park et al. 2019, arXiv:1904.08779): bands and moments are replaced by the clip's mean."""
        batch, time, _ = mel.shape
        hidden = torch.zeros(mel.shape, dtype=torch.bool, device=self.device)
        bins = torch.arange(BINS, device=self.device)
        for _ in range(2):
            width = self._between(batch, 0, 22 * strength, dice)
            start = self._between(batch, 0, 1, dice) * (BINS - width)
            hidden |= ((bins >= start[:, None]) & (bins < (start + width)[:, None]))[:, None]
        moments = torch.arange(time, device=self.device)
        for _ in range(max(1, time // 64)):
            width = self._between(batch, 0, 24 * strength, dice)
            start = self._between(batch, 0, 1, dice) * (time - width)
            hidden |= ((moments >= start[:, None]) & (moments < (start + width)[:, None]))[:, :, None]
        return torch.where(hidden, mel.mean((1, 2), keepdim=True), mel)

    def _rooms(self, batch: int, dice: Generator) -> Tensor:
        """Impulse responses [B, 0.25 s]: one, then noise that fades by 60 dB in 0.08 to 0.7 s."""
        time = torch.arange(RATE // 4, device=self.device) / RATE
        fading = torch.exp(-6.9 * time / self._between(batch, 0.08, 0.7, dice)[:, None])
        tail = torch.randn(batch, len(time), generator=dice, device=self.device) * fading
        tail = tail / tail.square().sum(1, keepdim=True).sqrt()
        late = time > 0.002
        room = tail * late * self._between(batch, 0.2, 1.0, dice)[:, None]
        room[:, 0] = 1
        return room

    def _microphones(self, batch: int, hertz: Tensor, strength: float, dice: Generator) -> Tensor:
        points = torch.randn(batch, 1, 10, generator=dice, device=self.device) * 4 * strength
        decibels = torch.nn.functional.interpolate(points, len(hertz), mode="linear", align_corners=True)[:, 0]
        narrow = self._chosen(batch, 0.25 * strength, dice) > 0
        top = torch.where(narrow, self._between(batch, 3000, 7500, dice), 20000.0)[:, None]
        bottom = torch.where(narrow, self._between(batch, 50, 300, dice), 1.0)[:, None]
        decibels = decibels - 0.04 * (hertz - top).clamp(0, 2000) - 24 * (1 - hertz / bottom).clamp(0, 1)
        return 10 ** (decibels / 20)

    def _noise(
        self, spectrum: Tensor, sound: Tensor, size: int, hertz: Tensor, strength: float, dice: Generator
    ) -> Tensor:
        batch = len(sound)
        noise = torch.view_as_complex(torch.randn(*spectrum.shape, 2, generator=dice, device=self.device))
        noise = noise * (hertz.clamp_min(60) / 1000) ** -self._between(batch, 0, 1.2, dice)[:, None]
        noise_power = noise.abs().square().mean(1).clamp_min(1e-9)
        speech_power = sound.square().mean(1) * size  # by Parseval, what a bin holds on average
        noisy = self._chosen(batch, 0.75 * strength, dice) > 0
        # Some microphones close their gate between words, so that what is not speech is nothing at all.
        gated = self._chosen(batch, 0.25, dice) > 0
        ratio = torch.where(noisy, self._between(batch, 5, 40, dice), torch.where(gated, 200.0, 55.0))
        gain = (speech_power / noise_power * 10 ** (-ratio / 10)).sqrt()
        return noise * gain[:, None]

    def _chosen(self, batch: int, probability: float, dice: Generator) -> Tensor:
        return (torch.rand(batch, generator=dice, device=self.device) < probability).float()

    def _between(self, batch: int, low: float, high: float, dice: Generator) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=dice, device=self.device)


def _mu_law(sound: Tensor) -> Tensor:
    """Through the eight bits of a telephone (ITU-T G.711) and back."""
    squeezed = torch.sign(sound) * torch.log1p(255 * sound.abs()) / math.log(256)
    steps = torch.round(squeezed * 127) / 127
    return torch.sign(steps) * (torch.exp(steps.abs() * math.log(256)) - 1) / 255


def _fast_size(samples: int) -> int:
    """The next multiple of 4000 = 2^5 x 5^3, which the transform cuts up well."""
    return -(-samples // 4000) * 4000
