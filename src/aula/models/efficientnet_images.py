"""Pictures to the tensor that an EfficientNet takes, as its checkpoint says: resize, centre crop, normalise."""

from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import CheckpointError, InputError
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint

_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers, which preprocessor_config.json writes as such and timm by name."""

_SMALLEST, _LARGEST = 2, 16384
"""Pixels on a side that a picture may have."""


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """`resize` is the height and width a picture is brought to before the crop: exactly, or with `keep_ratio` so
    that it just covers them. `mean` and `deviation` are per channel, of values in [0, 1]."""

    resize: tuple[int, int]
    keep_ratio: bool
    crop: tuple[int, int]
    filter: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (1 <= self.crop[0] <= self.resize[0] and 1 <= self.crop[1] <= self.resize[1]):
            raise ValueError(f"a crop of {self.crop} cannot be cut from {self.resize}")

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "ImagePreparation":
        """From timm's config.json, or transformers' preprocessor_config.json. Raises CheckpointError."""
        raw = checkpoint.read_json("config.json")
        file = "config.json" if "pretrained_cfg" in raw else "preprocessor_config.json"
        try:
            if "pretrained_cfg" in raw:
                return cls._from_timm(raw["pretrained_cfg"])
            return cls._from_transformers(checkpoint.read_json(file))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{file} lacks a usable field ({type(error).__name__}: {error})", next_step=f"copy {file} again"
            ) from error

    @classmethod
    def _from_timm(cls, raw: dict[str, Any]) -> "ImagePreparation":
        _, height, width = (int(side) for side in raw["input_size"])
        share = float(raw.get("crop_pct") or 0.875)
        return cls(
            (floor(height / share), floor(width / share)),
            True,
            (height, width),
            _FILTERS[raw["interpolation"]],
            _three(raw["mean"]),
            _three(raw["std"]),
        )

    @classmethod
    def _from_transformers(cls, raw: dict[str, Any]) -> "ImagePreparation":
        if raw.get("rescale_offset") or not np.isclose(raw.get("rescale_factor", 1 / 255), 1 / 255):
            raise ValueError("rescale_offset and another rescale_factor than 1/255 are not supported")
        if not all(raw.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")):
            raise ValueError("a preparation without resizing, rescaling or normalisation is not supported")
        resize = (int(raw["size"]["height"]), int(raw["size"]["width"]))
        crop = raw["crop_size"] if raw.get("do_center_crop") else raw["size"]
        deviation = _three(raw["image_std"])
        return cls(
            resize,
            False,
            (int(crop["height"]), int(crop["width"])),
            int(raw.get("resample", _FILTERS["bicubic"])),
            _three(raw["image_mean"]),
            # With its classifier this family divides by the deviation twice.
            tuple(value**2 for value in deviation) if raw.get("include_top", True) else deviation,
        )

    def __call__(self, image: NDArray[np.uint8]) -> Float32:
        """uint8 RGB [height, width, 3] to float32 [3, height, width] of the network's input.

        Raises InputError for another dtype or shape, or a side outside 2 to 16384 pixels.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"a picture must be uint8 [height, width, 3], not {image.dtype}{list(image.shape)}",
                next_step="convert it to RGB first",
            )
        height, width = image.shape[:2]
        if not (min(height, width) >= _SMALLEST and max(height, width) <= _LARGEST):
            raise InputError(
                f"a picture of {width}x{height} pixels has a side outside {_SMALLEST} to {_LARGEST}",
                next_step="send a picture of ordinary size",
            )
        from PIL import Image

        rows, columns = self._resized(height, width)
        resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling(self.filter)))
        resized = self._cropped(resized).astype(np.float32) / 255
        normal = (resized - np.asarray(self.mean, np.float32)) / np.asarray(self.deviation, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.resize
        if not self.keep_ratio:
            return rows, columns
        if rows * width >= columns * height:
            return rows, rows * width // height
        return columns * height // width, columns

    def _cropped(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        margins = [(have - wanted) / 2 for have, wanted in zip(image.shape, self.crop, strict=False)]
        # Half a pixel goes to the even side with torchvision, which timm uses, and up or left with transformers.
        top, left = (round(margin) if self.keep_ratio else floor(margin) for margin in margins)
        return image[top : top + self.crop[0], left : left + self.crop[1]]


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise ValueError(f"{values} are not three numbers")
    return numbers
