"""Parakeet's front end: log-mel frames of 25 ms every 10 ms, each bin brought to mean 0 and spread 1 over the sound.

As NVIDIA NeMo makes them, and Hugging Face's feature extractor after it: high tones are raised first, frames lie around
their middle with silence at both ends, 2^-24 is added before the natural logarithm, the spread is that of n - 1 values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from aula.core.errors import CheckpointError
from aula.core.types import SPEECH_RATE, Float32
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_mel import mel_filters

GUARD = 2.0**-24
LEAST_SPREAD = 1e-5


@dataclass(frozen=True, slots=True)
class ParakeetMel:
    """Sizes in samples; `raised` is the share of the sample before that each loses."""

    bins: int = 80
    hop: int = 160
    transform: int = 512
    window: int = 400
    raised: float = 0.97

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, bins: int) -> "ParakeetMel":
        """preprocessor_config.json, or the feature extractor in processor_config.json; NeMo's habits where a folder has
        neither. Raises CheckpointError for what is not made here or does not suit the model's bins."""
        raw = _described(checkpoint)
        try:
            made = cls(
                int(raw.get("feature_size", bins)), int(raw.get("hop_length", 160)), int(raw.get("n_fft", 512)),
                int(raw.get("win_length", 400)), float(raw.get("preemphasis") or 0.0) if "preemphasis" in raw else 0.97,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the feature extractor in {checkpoint.folder} has a senseless size ({error})",
                next_step="copy preprocessor_config.json again",
            ) from error
        if raw.get("do_normalize") is False:
            raise CheckpointError(
                f"the feature extractor in {checkpoint.folder} does not normalise, which is not made here",
                next_step="choose a checkpoint of ParakeetForCTC that hears a sound as a whole",
            )
        rate = raw.get("sampling_rate", SPEECH_RATE)
        if made.bins != bins or rate != SPEECH_RATE or not 1 < made.window <= made.transform or made.hop < 1:
            raise CheckpointError(
                f"the feature extractor in {checkpoint.folder} makes {made.bins} bins of {rate} Hz, windows of "
                f"{made.window} in {made.transform} samples every {made.hop}; the model takes {bins} bins of "
                f"{SPEECH_RATE} Hz",
                next_step="copy the whole folder again: its files belong together",
            )
        return made

    def frames(self, samples: int) -> int:
        return samples // self.hop

    def __call__(self, samples: Float32) -> Float32:
        """float32 [n], n at least two hops, to float32 [frames, bins]."""
        before = np.concatenate((np.zeros(1, np.float32), samples[:-1]))
        raised = np.pad(samples - np.float32(self.raised) * before, self.transform // 2)
        windows = sliding_window_view(raised, self.transform)[:: self.hop][: self.frames(len(samples))]
        spectrum = np.fft.rfft(windows * self._weights(), axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        mels = np.log(power @ mel_filters(self.bins, self.transform).T + np.float32(GUARD))
        # In float64, so that silence becomes zeros and not rounding made large.
        centred = mels - mels.mean(axis=0, dtype=np.float64)
        spread = np.sqrt((centred**2).sum(axis=0) / (len(mels) - 1))
        result: Float32 = (centred / (spread + LEAST_SPREAD)).astype(np.float32)
        return result

    def _weights(self) -> Float32:
        """A symmetric Hann window in the middle of the transform."""
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / (self.window - 1))
        left = (self.transform - self.window) // 2
        return np.pad(hann, (left, self.transform - self.window - left)).astype(np.float32)


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    if (checkpoint.folder / "preprocessor_config.json").is_file():
        return checkpoint.read_json("preprocessor_config.json")
    if (checkpoint.folder / "processor_config.json").is_file():
        inner = checkpoint.read_json("processor_config.json").get("feature_extractor")
        return inner if isinstance(inner, dict) else {}
    return {}
