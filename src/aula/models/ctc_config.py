"""This project's own recogniser as a checkpoint: sizes, tensor names, weights and alphabet.

A folder holds config.json, model.safetensors and tokens.json (a `tokenizers` file whose token 0 is the blank). Weights
are floats, or matrices in int8 with a scale for every row beside them (`NAME` and `NAME.scale`): a fourth of the bytes.
`training/recogniser` makes such folders; the class of the same sizes there is what this describes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_beam import Alphabet

Shapes = dict[str, tuple[int, ...]]

KIND = "aula-ctc"
"""What config.json calls it under "model_type"."""
BINS = 80
SUBSAMPLING = 4
"""Mel frames of 10 ms a frame of output."""
TOKENS = "tokens.json"
SCALE = ".scale"

_SIZES = ("units", "width", "heads", "inner", "blocks", "kernel", "channels", "left", "chunk")


@dataclass(frozen=True, slots=True)
class CtcConfig:
    """Widths and contexts; times are in output frames of 40 ms. `left` frames before a chunk are remembered, `chunk`
    frames are heard at once, `said_after` are the blocks whose output is fed back as what was understood so far."""

    units: int
    width: int
    heads: int
    inner: int
    blocks: int
    kernel: int
    channels: int
    left: int
    chunk: int
    said_after: tuple[int, ...]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "CtcConfig":
        """Raises CheckpointError for another architecture, or a missing or senseless size."""
        raw = checkpoint.read_json("config.json")
        if raw.get("model_type") != KIND or not isinstance(raw.get("model"), dict):
            raise CheckpointError(
                f"{checkpoint.folder} has model_type {raw.get('model_type')!r}; this recipe writes {KIND!r}",
                next_step="name a folder that training/recogniser/ship.py made",
            )
        return cls.of(raw["model"])

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "CtcConfig":
        sizes = {name: _size(raw, name) for name in _SIZES}
        said = tuple(raw.get("said_after", ()))
        if sizes["width"] % (2 * sizes["heads"]) or not all(
            isinstance(n, int) and 0 < n < sizes["blocks"] for n in said
        ):
            raise CheckpointError(
                f"config.json gives width {sizes['width']}, {sizes['heads']} heads, {sizes['blocks']} blocks and "
                f"said_after {list(said)}, which do not go together",
                next_step="copy config.json again",
            )
        return cls(**sizes, said_after=said)

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def shapes(self) -> Shapes:
        """Every tensor, as the training names them."""
        wide = self.width
        shapes: Shapes = {
            "mean": (BINS,),
            "scale": (BINS,),
            "subsample.first.weight": (self.channels, 1, 3, 3),
            "subsample.first.bias": (self.channels,),
            "subsample.depth.weight": (self.channels, 1, 3, 3),
            "subsample.depth.bias": (self.channels,),
            "subsample.point.weight": (self.channels, self.channels, 1, 1),
            "subsample.point.bias": (self.channels,),
            **_linear("subsample.out", self.channels * BINS // SUBSAMPLING, wide),
            **_linear("output", wide, self.units),
            **_linear("feedback", self.units, wide),
        }
        for place in range(len(self.said_after) + 1):
            shapes |= _norm(f"says.{place}", wide)
        for block in range(self.blocks):
            shapes |= self._block(f"blocks.{block}")
        return shapes

    def _block(self, prefix: str) -> Shapes:
        wide, inner = self.width, self.inner
        shapes: Shapes = {}
        for half in ("feed_in", "feed_out"):
            shapes |= _norm(f"{prefix}.{half}.norm", wide)
            shapes |= _linear(f"{prefix}.{half}.widen", wide, inner) | _linear(f"{prefix}.{half}.narrow", inner, wide)
        return shapes | {
            **_norm(f"{prefix}.attend.norm", wide),
            **_linear(f"{prefix}.attend.qkv", wide, 3 * wide),
            **_linear(f"{prefix}.attend.out", wide, wide),
            **_norm(f"{prefix}.convolve.norm", wide),
            **_linear(f"{prefix}.convolve.gate", wide, 2 * wide),
            f"{prefix}.convolve.depth.weight": (wide, 1, self.kernel),
            f"{prefix}.convolve.depth.bias": (wide,),
            **_norm(f"{prefix}.convolve.middle", wide),
            **_linear(f"{prefix}.convolve.out", wide, wide),
            **_norm(f"{prefix}.norm", wide),
        }


def load_weights(checkpoint: Checkpoint, config: CtcConfig) -> dict[str, Float32]:
    """All tensors as float32; those in int8 are multiplied by their scales. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(checkpoint.weights_file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights {checkpoint.weights_file} cannot be read ({error})", next_step="copy the file again"
        ) from error
    weights: dict[str, Float32] = {}
    for name, shape in config.shapes().items():
        tensor = found.get(name)
        if tensor is None or tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name} in {checkpoint.weights_file} is {None if tensor is None else list(tensor.shape)} but "
                f"config.json implies {list(shape)}",
                next_step="config.json and weights belong to different models: copy both again",
            )
        weights[name] = tensor.astype(np.float32)
        if tensor.dtype == np.int8:
            scale = found.get(name + SCALE)
            if scale is None or scale.shape != shape[:1]:
                raise CheckpointError(
                    f"tensor {name} is int8, and {name + SCALE} does not scale its {shape[0]} rows",
                    next_step="copy the file again",
                )
            weights[name] *= scale.astype(np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return weights


def read_alphabet(checkpoint: Checkpoint, units: int) -> Alphabet:
    """What the units spell. Raises CheckpointError for a tokens.json of another size."""
    try:
        raw = json.loads((checkpoint.folder / TOKENS).read_text(encoding="utf-8"))
        numbers = {str(token): int(number) for token, number in raw["model"]["vocab"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / TOKENS} cannot be read as a tokenizer ({error})", next_step="copy the file again"
        ) from error
    if sorted(numbers.values()) != list(range(units)):
        raise CheckpointError(
            f"{TOKENS} names {len(numbers)} units, and the model says {units}",
            next_step="copy the whole folder again: its files belong together",
        )
    tokens = sorted(numbers, key=numbers.__getitem__)
    return Alphabet(("", *tokens[1:]), blank=0)


def _linear(name: str, given: int, made: int) -> Shapes:
    return {f"{name}.weight": (made, given), f"{name}.bias": (made,)}


def _norm(name: str, wide: int) -> Shapes:
    return {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}


def _size(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json gives {name} {value!r}, not a size", next_step="copy config.json again")
    return value
