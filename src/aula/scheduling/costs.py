"""What a batch costs on an engine, in device milliseconds: measured when it was loaded, corrected as it runs."""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from itertools import pairwise

from aula.core.errors import InputError, SettingsError

Measured = Mapping[str, Mapping[int, Mapping[int, float]]]
"""engine -> bucket (greatest size of a profile) -> batch -> milliseconds."""

LEARNING = 0.1
"""Weight of the newest run: a card that has slowed for good is believed after about twenty runs."""
OUTLIER = 4.0
"""One run counts at most as so many times what was expected: a hiccup must not shut the door."""

LEAST_MS = 0.01
"""What a run costs at least: a clock that stands still would else promise the world."""

MARGIN = 1.1
"""Three standard deviations of a batch's duration on one card, where kernels keep within 3 % (Clockwork, OSDI'20)."""


class CostTable:
    """Batches between two measured ones cost what lies between them."""

    def __init__(self, measured: Measured) -> None:
        if not measured or any(not buckets for buckets in measured.values()):
            raise SettingsError("a cost table needs an engine, and each engine a bucket", next_step="measure one batch")
        self.buckets = tuple(sorted({bucket for buckets in measured.values() for bucket in buckets}))
        self._cells: dict[tuple[str, int], list[float]] = {}
        self._measured: dict[tuple[str, int], tuple[float, ...]] = {}
        self._guessed: dict[tuple[str, int], int] = {}
        """Runs that are still left out of account."""
        self.engines = tuple(measured)
        for engine, buckets in measured.items():
            self.replace(engine, buckets)

    def replace(self, engine: str, buckets: Mapping[int, Mapping[int, float]], guessed: Collection[int] = ()) -> None:
        """The engine was loaded, and so measured anew. `guessed` buckets were not: their first run, which reads
        dictionaries and allocates, teaches nothing, and the second is believed whole."""
        if tuple(sorted(buckets)) != self.buckets:
            raise SettingsError(
                f"engine {engine!r} has other buckets than the rest of its ladder",
                available=[str(bucket) for bucket in self.buckets],
                next_step="build every rung with the same profiles",
            )
        for bucket, batches in buckets.items():
            key = engine, bucket
            self._cells[key] = _between(engine, batches)
            self._measured[key] = tuple(self._cells[key])
            self._guessed.pop(key, None)
            if bucket in guessed:
                self._guessed[key] = 1

    def bucket_of(self, size: int) -> int:
        """The least bucket that holds `size`."""
        if size < 1 or size > self.buckets[-1]:
            raise InputError(
                f"a request of size {size} fits no profile",
                available=[f"1 to {bucket}" for bucket in self.buckets],
                next_step="send less at once, or build a larger profile",
            )
        return self.buckets[bisect_left(self.buckets, size)]

    def most(self, engine: str, bucket: int) -> int:
        """The greatest batch."""
        return len(self._cells[engine, bucket])

    def predict(self, engine: str, bucket: int, batch: int) -> float:
        return self._cells[engine, bucket][batch - 1]

    def promise(self, engine: str, bucket: int, batch: int) -> float:
        """What may be promised to somebody with a deadline: what is expected, with room for ordinary jitter."""
        return MARGIN * self.predict(engine, bucket, batch)

    def unit(self, engine: str, bucket: int) -> float:
        """One request's part of a full batch."""
        cells = self._cells[engine, bucket]
        return cells[-1] / len(cells)

    def correct(self, engine: str, bucket: int, batch: int, took_ms: float) -> None:
        """Learn from a run. A clock that jumped gives no cost at all, and is not learnt from."""
        if not (math.isfinite(took_ms) and took_ms >= 0.0):
            return
        cells = self._cells[engine, bucket]
        if batch > len(cells):
            return  # it was measured anew meanwhile, by an engine that takes fewer at once
        expected = cells[batch - 1]
        if (left := self._guessed.get((engine, bucket))) is not None:
            if left:
                self._guessed[engine, bucket] = left - 1
                return
            del self._guessed[engine, bucket]
            factor = max(took_ms, LEAST_MS) / expected
            self._cells[engine, bucket] = [factor * cell for cell in cells]
            return
        cells[batch - 1] += LEARNING * (min(took_ms, OUTLIER * expected) - expected)

    def relax(self, engine: str, bucket: int) -> None:
        """Somebody was refused though nothing waited: come a little back to what was measured.

        Else one slow minute would be believed for ever, since nothing that is refused can teach better.
        """
        cells, measured = self._cells[engine, bucket], self._measured[engine, bucket]
        for index, (cell, least) in enumerate(zip(cells, measured, strict=True)):
            cells[index] = cell + LEARNING * min(0.0, least - cell)


def _between(engine: str, batches: Mapping[int, float]) -> list[float]:
    points = sorted(batches.items())
    if not points or points[0][0] != 1 or any(not (math.isfinite(ms) and ms > 0) for _, ms in points):
        raise SettingsError(
            f"the costs of engine {engine!r} must start at batch 1 and be positive", next_step="measure it again"
        )
    cells = [points[0][1]]
    for (low, low_ms), (high, high_ms) in pairwise(points):
        step = (high_ms - low_ms) / (high - low)
        cells += [low_ms + step * (batch - low) for batch in range(low + 1, high + 1)]
    return cells
