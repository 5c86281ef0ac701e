"""Prepared pictures for an EfficientNet: real ones to calibrate on, labelled ones to be judged by.

They come as an npz file with `pixel_values`, float32 [n, 3, height, width] as ImagePreparation makes them, and for a
task `labels`, int64 [n]. The metric is top-1 accuracy.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import CalibrationError
from aula.core.types import Float32
from aula.engine.recipe import Calibration, Task
from aula.models.efficientnet import INPUT, OUTPUT

MOST_EXAMPLES = 300
"""Calibration examples that are used."""

BATCH = 8
"""Pictures in one run of the task: the usual size of the recipe's larger profile."""


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """`pixels` float32 [n, 3, height, width]; `labels` int64 [n] in [0, classes), None where the file has none."""

    source: str
    pixels: Float32
    labels: NDArray[np.int64] | None

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def read_pictures(path: Path) -> Pictures:
    """Raises CalibrationError for a file that cannot be read or holds other arrays."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            pixels = file["pixel_values"]
            labels = file.get("labels")
    except KeyError as error:
        raise CalibrationError(
            f"{path.name} has no array pixel_values", next_step="np.savez(FILE, pixel_values=…, labels=…)"
        ) from error
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} cannot be read as npz ({error})", next_step="write it with np.savez") from error
    if pixels.dtype != np.float32 or pixels.ndim != 4 or not len(pixels):
        raise CalibrationError(
            f"pixel_values in {path.name} is {pixels.dtype}{list(pixels.shape)}, not float32 [n, 3, height, width]",
            next_step="prepare each picture with ImagePreparation and stack them",
        )
    if labels is not None and (labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer)):
        raise CalibrationError(
            f"labels in {path.name} is {labels.dtype}{list(labels.shape)}, not int64 [{len(pixels)}]",
            next_step="give the number of its class for every picture",
        )
    return Pictures(path.name, pixels, None if labels is None else labels.astype(np.int64))


def calibration(pictures: Pictures) -> Calibration:
    """Each picture alone; at most MOST_EXAMPLES, spread over all."""
    step = max(1, len(pictures.pixels) // MOST_EXAMPLES)
    chosen = Pictures(pictures.source, pictures.pixels[::step][:MOST_EXAMPLES], None)
    return Calibration([{INPUT: picture[None]} for picture in chosen.pixels], chosen.source, chosen.digest)


def task(pictures: Pictures) -> Task:
    """Raises CalibrationError where the pictures have no labels."""
    labels = pictures.labels
    if labels is None:
        raise CalibrationError(
            f"{pictures.source} has no array labels to judge by", next_step="np.savez(FILE, pixel_values=…, labels=…)"
        )

    def evaluate(session: Session) -> float:
        guesses = [
            session.run({INPUT: pictures.pixels[start : start + BATCH]})[OUTPUT].argmax(axis=1)
            for start in range(0, len(labels), BATCH)
        ]
        return float((np.concatenate(guesses) == labels).mean())

    return Task("top-1", len(labels), pictures.digest, evaluate)
