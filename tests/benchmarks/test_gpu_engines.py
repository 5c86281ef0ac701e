"""What the benchmark's jobs do besides building: here without a GPU."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from aula.models import efficientnet_examples
from benchmarks.gpu import engines
from benchmarks.gpu.rows import PICTURES


class Guessing:
    """Of fixed rows; says the class that the picture's first pixel names."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def run(self, tensors: dict[str, Any]) -> dict[str, Any]:
        (pixels,) = tensors.values()
        assert len(pixels) == PICTURES, "an engine of fixed rows"
        said = pixels[:, 0, 0, 0].astype(int)
        self.seen.update(said.tolist())
        return {"logits": np.eye(1000)[said]}


@pytest.mark.parametrize("count", [PICTURES * 4, PICTURES * 4 - 3, PICTURES * 4 + 1])
def test_every_picture_is_judged_once_in_full_batches(count: int) -> None:
    pixels = np.zeros((count, 3, 2, 2), np.float32)
    pixels[:, 0, 0, 0] = np.arange(count)
    labels = np.arange(count)
    labels[:10] += 1  # ten that the network gets wrong
    pictures = efficientnet_examples.Pictures("made up", pixels, labels)
    session: Any = Guessing()
    assert engines.task_by_batches(pictures).evaluate(session) == pytest.approx(1 - 10 / count)
    assert set(session.seen) == set(range(count))
