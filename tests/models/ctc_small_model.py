"""A small recogniser with seeded random weights, and a sound's mel frames, for make_ctc_reference.py and the tests."""

from pathlib import Path
from typing import Any

import numpy as np

from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.ctc import random_checkpoint
from aula.models.ctc_config import BINS

SMALL: dict[str, Any] = {
    "units": 12, "width": 32, "heads": 2, "inner": 48, "blocks": 3, "kernel": 5, "channels": 8, "left": 10, "chunk": 4,
    "said_after": [1, 2],
}  # fmt: skip
CHUNKS = (4, 8)
FRAMES = 128


def small(folder: Path, **changes: Any) -> Checkpoint:
    return random_checkpoint({**SMALL, **changes}, folder, seed=3)


def mel_frames(count: int = FRAMES) -> Float32:
    return np.random.default_rng(4).uniform(-7, 0, (count, BINS)).astype(np.float32)
