"""Pictures for an EfficientNet: real ones to calibrate on, labelled ones to be judged by. The metric is top-1.

They come as a folder of picture files, with a folder of its own for each class where they are labelled; or prepared, as
an npz file with `pixel_values`, float32 [n, 3, height, width] as ImagePreparation makes them, and `labels`, int64 [n].
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
from aula.engine.recipe import Arrays, Calibration, Task
from aula.models.checkpoints import Checkpoint
from aula.models.efficientnet import INPUT, OUTPUT
from aula.models.efficientnet_images import ImagePreparation
from aula.models.efficientnet_layout import EfficientNetConfig
from aula.models.labels import check_count, check_range, check_variety, majority_share, task_digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Picture files that are looked for in a folder."""

METRIC = "top-1"
MOST_EXAMPLES = 300
"""Calibration examples that are used."""

WATCHED = 64
"""Labelled pictures, at least, on which layers are ranked."""

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


def read_pictures(path: Path, checkpoint: Checkpoint) -> Pictures:
    """Raises CalibrationError for a file that cannot be read or holds other arrays, for folders or labels that are no
    classes of the checkpoint, and for pictures of another size than it takes."""
    pictures = _read_folder(path, checkpoint) if path.is_dir() else _read_npz(path)
    network = EfficientNetConfig.from_checkpoint(checkpoint).network()
    wanted, given = (3, network.height, network.width), pictures.pixels.shape[1:]
    if given != wanted:
        raise CalibrationError(
            f"the pictures of {pictures.source} are {list(given)}, but {checkpoint.folder.name} takes {list(wanted)} "
            "(channels, height, width)",
            next_step="prepare each picture with this checkpoint's ImagePreparation",
        )
    if pictures.labels is not None:
        check_range(pictures.labels, network.classes, pictures.source)
    return pictures


def _read_folder(folder: Path, checkpoint: Checkpoint) -> Pictures:
    from PIL import Image

    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise CalibrationError(
            f"the folder {folder} holds no pictures", available=SUFFIXES, next_step="give a folder with picture files"
        )
    classes = {file.parent.relative_to(folder).as_posix() for file in files}
    numbers = None if classes == {"."} else _class_numbers(sorted(classes), folder, checkpoint)
    preparation = ImagePreparation.from_checkpoint(checkpoint)
    pixels = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels.append(preparation(np.asarray(image.convert("RGB"))))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{file} cannot be read as a picture ({error})", next_step="remove it") from error
    if numbers is None:
        return Pictures(folder.name, np.stack(pixels), None)
    labels = [numbers[file.parent.relative_to(folder).as_posix()] for file in files]
    return Pictures(folder.name, np.stack(pixels), np.array(labels, np.int64))


def _class_numbers(folders: list[str], folder: Path, checkpoint: Checkpoint) -> dict[str, int]:
    """By the checkpoint's label names, by number, or in alphabetical order where the checkpoint names nothing and
    their number is its number of classes, as torchvision's ImageFolder numbers them."""
    raw = checkpoint.read_json("config.json")
    named = {str(name): int(number) for number, name in (raw.get("id2label") or {}).items()}
    classes = EfficientNetConfig.from_checkpoint(checkpoint).classes
    if all(name in named for name in folders):
        return {name: named[name] for name in folders}
    if all(name.isdecimal() and int(name) < classes for name in folders):
        return {name: int(name) for name in folders}
    if len(folders) == classes and all(name == f"LABEL_{number}" for name, number in named.items()):
        return {name: number for number, name in enumerate(folders)}
    strange = [name for name in folders if name not in named]
    raise CalibrationError(
        f"the folders of {folder} ({', '.join(strange[:5])}) are no classes of this checkpoint",
        available=list(named)[:20],
        next_step=f"name each folder after a class, or by its number from 0 to {classes - 1}",
    )


def _read_npz(path: Path) -> Pictures:
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
    """Each picture alone; at most MOST_EXAMPLES, spread over all. Raises CalibrationError where all are alike."""
    step = max(1, len(pictures.pixels) // MOST_EXAMPLES)
    chosen = Pictures(pictures.source, pictures.pixels[::step][:MOST_EXAMPLES], None)
    inputs: list[Arrays] = [{INPUT: picture[None]} for picture in chosen.pixels]
    check_variety(inputs, chosen.source)
    return Calibration(inputs, chosen.source, chosen.digest)


def task(pictures: Pictures) -> Task:
    """Raises CalibrationError where the pictures have no labels, or are fewer than FEWEST_LABELLED."""
    labels = pictures.labels
    if labels is None:
        raise CalibrationError(
            f"{pictures.source} has no array labels to judge by", next_step="np.savez(FILE, pixel_values=…, labels=…)"
        )
    check_count(len(labels), pictures.source)

    def evaluate(session: Session) -> float:
        guesses = [
            session.run({INPUT: pictures.pixels[start : start + BATCH]})[OUTPUT].argmax(axis=1)
            for start in range(0, len(labels), BATCH)
        ]
        return float((np.concatenate(guesses) == labels).mean())

    watched = [{INPUT: picture[None]} for picture in pictures.pixels[:: max(1, len(labels) // WATCHED)]]
    return Task(
        METRIC,
        len(labels),
        task_digest(METRIC, pictures.digest),
        evaluate,
        watched,
        chance=majority_share(labels.tolist()),
    )
