"""Which clips a batch holds, and how each of them is spoken: decided before the batch is made.

Batches come in few shapes. All clips of a batch fill the same room, a whole number of CHUNKED output frames, and so
many of them are taken as the wanted seconds hold; a shape that comes back can be replayed as a CUDA graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.recogniser import schedule
from training.recogniser.bank import Bank, padded
from training.recogniser.features import RATE

POOL = 96
"""Batches that are drawn together and sorted by length."""

PACES = (-0.17, 0.2)
"""How much slower or faster than it was spoken a clip may be; its pitch goes with it, as of another throat."""

LEAD = 0.3
"""Seconds of silence before a clip, at most."""


@dataclass(frozen=True)
class Plan:
    """int64 clips, float32 paces (1 as it was spoken) and int64 samples of silence before, all [B]; `room` samples hold
    the longest of them and its tail."""

    clips: NDArray[np.int64]
    paces: NDArray[np.float32]
    leads: NDArray[np.int64]
    room: int


def pool(bank: Bank, seed: int, number: int, progress: float, seconds: float) -> list[Plan]:
    """Some batches of about `seconds` each, by the shares that belong to this progress."""
    rng = np.random.default_rng((seed, number))
    lengths = np.asarray(bank.lengths)
    clips = _drawn(bank, lengths, rng, progress, seconds)
    strength = schedule.strength(progress)
    paces = (1 + rng.uniform(*PACES, len(clips)) * strength).astype(np.float32)
    leads = rng.integers(0, int(LEAD * RATE), len(clips))
    rooms = padded((lengths[clips] / paces).astype(np.int64) + leads)
    plans, rests = [], []
    for room in np.unique(rooms):
        members = rng.permutation(np.flatnonzero(rooms == room))
        size = max(1, int(seconds * RATE) // int(room))
        whole = len(members) // size * size
        plans += [Plan(clips[some], paces[some], leads[some], int(room)) for some in members[:whole].reshape(-1, size)]
        if whole < len(members):
            # What does not fill a batch is filled up with clips of the same room, as often as it is worth it.
            some = np.concatenate((members[whole:], rng.choice(members, size - (len(members) - whole))))
            rest = Plan(clips[some], paces[some], leads[some], int(room))
            rests.append(rest)
            if rng.uniform() < (len(members) - whole) / size:
                plans.append(rest)
    plans = plans or rests
    rng.shuffle(plans)
    return plans


def _drawn(
    bank: Bank, lengths: NDArray[np.int64], rng: np.random.Generator, progress: float, seconds: float
) -> NDArray[np.int64]:
    longest = schedule.longest_clip(progress) * RATE
    allowed = []
    for kind, share in schedule.shares(progress).items():
        short = np.asarray(bank.kinds.get(kind, []), dtype=np.int64)
        short = short[lengths[short] <= longest]
        if len(short):
            hours = lengths[short].sum() / RATE / 3600
            allowed.append((short, share * min(1.0, hours / schedule.ENOUGH_HOURS)))
    total = sum(share for _, share in allowed)
    # By seconds, not by clips: a kind of short clips is not to vanish in a kind of long ones.
    return np.concatenate([
        rng.choice(short, size=max(1, int(POOL * seconds * share / total / (lengths[short].mean() / RATE))))
        for short, share in allowed
    ])  # fmt: skip


class Draws:
    """An endless row of batches that can be stopped and taken up again."""

    def __init__(self, bank: Bank, seed: int, seconds: float) -> None:
        self._bank, self._seed, self._seconds = bank, seed, seconds
        self._number = 0
        self._left: list[Plan] = []

    def next(self, progress: float) -> Plan:
        if not self._left:
            self._left = pool(self._bank, self._seed, self._number, progress, self._seconds)
            self._number += 1
        return self._left.pop()

    def state(self) -> dict[str, Any]:
        return {"number": self._number, "left": self._left}

    def restore(self, state: dict[str, Any], clips: int) -> None:
        """Batches that name clips which are not there (a bank that is filled anew may be smaller) are drawn again."""
        self._number = state["number"]
        self._left = [plan for plan in state["left"] if plan.clips.max() < clips]


def in_order(bank: Bank, count: int, seconds: float) -> Iterator[Plan]:
    """The first `count` clips for evaluation, as they were spoken, the shortest first."""
    lengths = np.asarray(bank.lengths)[:count]
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * padded(lengths[order[last]]) <= seconds * RATE:
            last += 1
        yield plain(bank, order[first:last])
        first = last


def plain(bank: Bank, clips: NDArray[np.int64]) -> Plan:
    """These clips, as they were spoken."""
    room = padded(max(bank.lengths[clip] for clip in clips))
    return Plan(clips, np.ones(len(clips), np.float32), np.zeros(len(clips), np.int64), int(room))
