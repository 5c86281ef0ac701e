"""EfficientNet checkpoints with made-up weights in the true sizes, for benches and tests of speed and parity."""

import hashlib
import json
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.errors import ModelNotFoundError
from aula.core.types import Float32
from aula.engine.recipe import Calibration, Recipe
from aula.models.checkpoints import Checkpoint
from aula.models.efficientnet_layout import EfficientNetConfig

EXAMPLES = 16

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "efficientnet-b0": {
        "architectures": ["EfficientNetForImageClassification"],
        "model_type": "efficientnet",
        "hidden_act": "swish",
        "num_channels": 3,
        "image_size": 224,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "depth_divisor": 8,
        "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "in_channels": [32, 16, 24, 40, 80, 112, 192],
        "out_channels": [16, 24, 40, 80, 112, 192, 320],
        "depthwise_padding": [],
        "strides": [1, 2, 2, 2, 1, 2, 1],
        "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
        "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
        "squeeze_expansion_ratio": 0.25,
        "hidden_dim": 1280,
        "pooling_type": "mean",
        "batch_norm_eps": 0.001,
        "dropout_rate": 0.2,
        "id2label": {str(number): f"LABEL_{number}" for number in range(1000)},
        "label2id": {f"LABEL_{number}": number for number in range(1000)},
    },
}
"""config.json of `google/efficientnet-b0` on the Hugging Face hub, with numbers for its labels."""

_SWISH_GAIN = 1.7
"""What a kernel after a swish is multiplied with, so that the spread of activations stays: for x normal with spread 1,
the mean of swish(x)² is 0.36. Kernels after a projection, which has no activation, keep the spread as they are."""
_AFTER_NO_SWISH = (".convolution.weight", ".expand_conv.weight", ".top_conv.weight")


def random_checkpoint(architecture: str | Mapping[str, Any], folder: Path, seed: int) -> Checkpoint:
    """Write config.json and seeded random weights in the Hugging Face layout into `folder`.

    `architecture`: a name in ARCHITECTURES, or a config.json. Raises ModelNotFoundError and CheckpointError.
    """
    from safetensors.numpy import save_file

    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise ModelNotFoundError(
                f"there is no EfficientNet called {architecture!r}",
                available=list(ARCHITECTURES),
                next_step="choose one of these",
            )
        architecture = ARCHITECTURES[architecture]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(architecture)), encoding="utf-8")
    checkpoint = Checkpoint(folder)
    shapes = EfficientNetConfig.from_checkpoint(checkpoint).network().weight_shapes()
    generator = np.random.default_rng(seed)
    tensors = {name: _tensor(name, shape, generator) for name, shape in shapes.items()}
    save_file(tensors, checkpoint.folder / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def random_calibration(recipe: Recipe) -> Calibration:
    """Noise for pictures, which only a builder of seeded weights takes."""
    generator = np.random.default_rng(0)
    sizes = {name: 1 for profile in recipe.profiles for name in profile.sizes}
    inputs = [recipe.example(sizes, generator) for _ in range(EXAMPLES)]
    digest = hashlib.sha256(b"".join(array.tobytes() for example in inputs for array in example.values()))
    return Calibration(inputs, "made-up pictures", digest.hexdigest(), random=True)


def _tensor(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Float32:
    """Batch normalisation near one and zero, as training leaves it; kernels that keep the spread."""
    array = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        np.abs(array, out=array)
        array /= np.float32(10)
        array += 1
    elif len(shape) == 1:
        array /= np.float32(10)
        array += 1 if name.endswith("weight") else 0
    else:
        gain = 1.0 if name.endswith(_AFTER_NO_SWISH) else _SWISH_GAIN
        array *= np.float32(gain / sqrt(prod(shape[1:])))
    return array
