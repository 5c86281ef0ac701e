"""All speech of a training, in the memory of the device that trains, and the batches drawn from it.

Sixty hours are 7 GB of int16: they are decoded once, and cut, resampled and spoilt anew for every batch. Workers that
still synthesise add shards while the training runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from training.recogniser import schedule, shards
from training.recogniser.features import HOP, RATE, frames
from training.recogniser.model import SUBSAMPLING

if TYPE_CHECKING:
    from training.recogniser.plans import Plan

CHUNKED = 32
"""Batches are whole multiples of so many output frames long, so that every chunk size divides them."""

TAIL = 0.16
"""Seconds of near silence after the last word; a stream that ends is fed as much."""

CROSSED_SECONDS = 12.0
"""Two clips in one are no longer than the longest that a schedule lets in."""

Count = TypeVar("Count", int, NDArray[np.int64])


@dataclass(frozen=True)
class Batch:
    """float32 [B, n] sound; int64 [B, longest] units, and the output frames where each would be said if speech ran
    evenly; how many output frames and units count, on the CPU."""

    sound: Tensor
    units: Tensor
    places: Tensor
    frame_counts: Tensor
    unit_counts: Tensor

    def repeated(self, views: int) -> "Batch":
        """The same clips several times, to be spoilt in several ways: all of them, then all of them again."""
        parts = (self.sound, self.units, self.places, self.frame_counts, self.unit_counts)
        return Batch(*(part.repeat(views, *[1] * (part.ndim - 1)) for part in parts))


class Bank:
    def __init__(self, tokenizer: Tokenizer, device: torch.device, hours: float) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._sound = torch.zeros(int(hours * 3600 * RATE), dtype=torch.int16, device=device)
        self._used = 0
        self._seen: set[Path] = set()
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.units: list[list[int]] = []
        self.middles: list[NDArray[np.float32]] = []
        self.kinds: dict[str, list[int]] = {}

    @property
    def hours(self) -> float:
        return self._used / RATE / 3600

    def take_new(self, folders: Sequence[Path], most: int = 10**9) -> int:
        """Add shards that were not there before, in the order of their names; how many were."""
        new = sorted({file for folder in folders for file in folder.glob("*.json")} - self._seen)[:most]
        return sum(self.take(file) for file in new)

    def take_whole(self, file: Path) -> list[shards.Clip]:
        """One shard for a report: every clip counts, also one that no alignment fits; the clips in their order."""
        self.take(file, all_clips=True)
        return shards.clips(file)

    def take(self, file: Path, *, all_clips: bool = False) -> bool:
        """One shard; False where the memory put aside is full. Clips too short for their text are left out."""
        clips, flat = shards.read(file)
        self._seen.add(file)
        if self._used + len(flat) > len(self._sound):
            return False
        self._sound[self._used : self._used + len(flat)] = torch.from_numpy(flat).to(self._device)
        place = self._used
        for clip, encoding in zip(clips, self._tokenizer.encode_batch([clip.text for clip in clips]), strict=True):
            room = frames(clip.samples) // SUBSAMPLING
            if all_clips or (encoding.ids and len(encoding.ids) * 1.15 + 1 < room):
                kind = schedule.KINDS.get(clip.source.partition(":")[0], "other")
                self.kinds.setdefault(kind, []).append(len(self.starts))
                self.starts.append(place)
                self.lengths.append(clip.samples)
                self.units.append(encoding.ids)
                self.middles.append(_middles(encoding.tokens))
            place += clip.samples
        if not all_clips:
            self._take_crossed(clips)
        self._used += len(flat)
        return True

    def _take_crossed(self, clips: Sequence[shards.Clip]) -> None:
        """Every second clip of a person with the one after it, as one clip more: a third of what people say is then two
        sentences, and none is always heard from its beginning. They lie end to end, so that it takes no memory."""
        place = self._used
        for number, (clip, after) in enumerate(pairwise(clips)):
            samples = clip.samples + after.samples
            if number % 2 == 0 and clip.speaker and clip.speaker == after.speaker and samples < CROSSED_SECONDS * RATE:
                encoding = self._tokenizer.encode(f"{clip.text} {after.text}")
                kind = schedule.KINDS.get(clip.source.partition(":")[0], "other")
                if len(encoding.ids) * 1.15 + 1 < frames(samples) // SUBSAMPLING:
                    self.kinds.setdefault(kind, []).append(len(self.starts))
                    self.starts.append(place)
                    self.lengths.append(samples)
                    self.units.append(encoding.ids)
                    self.middles.append(_middles(encoding.tokens))
            place += clip.samples

    def batch(self, plan: "Plan") -> Batch:
        """The clips of a plan, each at its pace (and a pitch that goes with it) after its silence."""
        device = self._device
        lengths = torch.tensor([self.lengths[clip] for clip in plan.clips])
        starts = torch.tensor([self.starts[clip] for clip in plan.clips])
        pace, lead = torch.from_numpy(plan.paces), torch.from_numpy(plan.leads)
        spoken = (lengths / pace).long()
        place = torch.arange(plan.room, device=device)[None] - lead.to(device)[:, None]
        source = place * pace.to(device)[:, None]
        inside = (source >= 0) & (source < (lengths.to(device) - 1)[:, None])
        base = source.clamp(min=0).long().minimum((lengths - 2).clamp_min(0).to(device)[:, None])
        fraction = (source - base).clamp(0, 1)
        base += starts.to(device)[:, None]
        sound = torch.lerp(self._sound[base].float(), self._sound[base + 1].float(), fraction) / 32768
        ends = spoken + lead + int(TAIL * RATE)
        counts = (frames_of(ends) + 7) // 8 * 8  # a stream's last chunk is filled up with silence
        longest = max(len(self.units[clip]) for clip in plan.clips)
        units = np.zeros((len(plan.clips), longest), np.int64)
        middles = np.zeros((len(plan.clips), longest), np.float32)
        for row, clip in enumerate(plan.clips):
            units[row, : len(self.units[clip])] = self.units[clip]
            middles[row, : len(self.units[clip])] = self.middles[clip]
        places = (lead[:, None] + torch.from_numpy(middles) * spoken[:, None]) / (HOP * SUBSAMPLING)
        return Batch(
            sound * inside,
            torch.from_numpy(units).to(device),
            places.long().to(device),
            counts.clamp_max(frames(plan.room) // SUBSAMPLING),
            torch.tensor([len(self.units[clip]) for clip in plan.clips]),
        )


def _middles(pieces: Sequence[str]) -> NDArray[np.float32]:
    """Where in its text the middle of each piece stands, from 0 to 1."""
    sizes = np.array([len(piece) for piece in pieces], np.float32)
    return ((np.cumsum(sizes) - sizes / 2) / max(1.0, float(sizes.sum()))).astype(np.float32)


def frames_of(samples: Tensor) -> Tensor:
    return ((samples - RATE * 25 // 1000) // HOP + 1) // SUBSAMPLING


def padded(samples: Count) -> Count:
    """Samples of a batch whose longest clip has so many: the tail, then whole multiples of CHUNKED output frames."""
    step = CHUNKED * SUBSAMPLING * HOP
    overhang = RATE * 25 // 1000 - HOP
    return -(-(samples + int(TAIL * RATE) - overhang) // step) * step + overhang
