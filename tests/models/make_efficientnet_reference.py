"""Makes efficientnet_reference.npz: logits and prepared pictures by timm and transformers, on seeded weights.

Run with PyTorch, torchvision, timm, transformers and Pillow installed:
    python tests/models/make_efficientnet_reference.py
The weights and inputs are drawn again from the seed where the file is read, so it holds little more than logits.
"""

import json
import tempfile
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REFERENCE = Path(__file__).with_name("efficientnet_reference.npz")
CLASSES = 10
# Sizes that are odd at some stages, where the paddings of the layouts differ.
SIZES = {"timm": (70, 54), "timm-tf": (61, 75), "transformers": (70, 54), "transformers-small": (61, 75)}
PICTURE = (50, 77)
INPUT = 24


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Random weights that keep the signal's size, with statistics of batch normalisation that matter."""
    generator = np.random.default_rng(31)
    weights: dict[str, NDArray[np.float32]] = {}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = generator.standard_normal(shape, dtype=np.float32)
        if name.endswith("running_var"):
            weights[name] = np.exp(0.5 * noise)
        elif name.endswith("weight") and len(shape) == 1:
            weights[name] = 1 + 0.2 * noise
        elif len(shape) == 1:
            weights[name] = 0.3 * noise
        else:
            weights[name] = np.float32(sqrt(2 / prod(shape[1:]))) * noise
    return weights


def seeded_images(height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(32).standard_normal((2, 3, height, width), dtype=np.float32)


def seeded_picture() -> NDArray[np.uint8]:
    return np.random.default_rng(33).integers(0, 256, size=(*PICTURE, 3), dtype=np.uint8)


def main() -> None:
    from PIL import Image
    from timm import create_model
    from timm.data import create_transform
    from timm.models._hub import save_config_for_hf
    from transformers import EfficientNetConfig, EfficientNetForImageClassification
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    stored: dict[str, Any] = {}
    for case, architecture in (("timm", "efficientnet_b0"), ("timm-tf", "tf_efficientnet_b0")):
        model = create_model(architecture, num_classes=CLASSES)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            save_config_for_hf(model, str(path))
            config = json.loads(path.read_text())
        config["pretrained_cfg"]["input_size"] = [3, *SIZES[case]]
        stored[f"{case}.config"] = json.dumps(config)
        stored[f"{case}.logits"] = logits(model, case)
    for case, width, depth, square in (("transformers", 1.0, 1.0, []), ("transformers-small", 0.25, 0.3, [1, 3])):
        settings = EfficientNetConfig(
            width_coefficient=width,
            depth_coefficient=depth,
            depthwise_padding=square,
            hidden_dim=int(1280 * width),
            num_labels=CLASSES,
            image_size=list(SIZES[case]),
        )
        stored[f"{case}.config"] = settings.to_json_string()
        stored[f"{case}.logits"] = logits(EfficientNetForImageClassification(settings), case)

    picture = Image.fromarray(seeded_picture())
    means = (0.485, 0.456, 0.406)
    transform = create_transform(
        (3, INPUT, INPUT), interpolation="bicubic", crop_pct=0.875, mean=means, std=(0.229, 0.224, 0.225)
    )
    stored["timm.picture"] = transform(picture).numpy()
    processor = EfficientNetImageProcessorPil(
        size={"height": INPUT, "width": INPUT},
        image_mean=list(means),
        image_std=[0.47853944, 0.4732864, 0.47434163],
        include_top=True,
    )
    stored["transformers.preprocessor"] = processor.to_json_string()
    stored["transformers.picture"] = processor(picture, return_tensors="np")["pixel_values"][0]
    np.savez_compressed(REFERENCE, **stored)


def logits(model: Any, case: str) -> NDArray[np.float32]:
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    state = {name: torch.from_numpy(array) for name, array in seeded_weights(shapes).items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    with torch.inference_mode():
        produced = model(torch.from_numpy(seeded_images(*SIZES[case])))
    result: NDArray[np.float32] = (produced if isinstance(produced, torch.Tensor) else produced.logits).numpy()
    return result


if __name__ == "__main__":
    main()
