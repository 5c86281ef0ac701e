"""Trains an EfficientNet-B0 from scratch on the digits that scikit-learn carries, to have real weights to quantise.

    python training/digits/train_digits.py FOLDER [--epochs 24] [--seed 20]

Needs PyTorch, transformers and scikit-learn; two CPU cores are enough. It leaves a checkpoint in transformers'
layout (config.json, model.safetensors), calibration.npz and test.npz (pixel_values float32 [n, 3, 64, 64], labels
int64 [n]) in FOLDER. Interrupted, it goes on after the last whole epoch when it is started again, with the same
result.
"""

import argparse
import time
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from transformers import EfficientNetConfig, EfficientNetForImageClassification

SIZE = 64
BATCH = 50
TEST = 797
CALIBRATION = 300
PEAK_RATE = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    images, labels = prepared_digits()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, stratify=labels.numpy(), random_state=options.seed
    )
    torch.manual_seed(options.seed)
    model = new_model().to(memory_format=torch.channels_last)  # depthwise gradients take half the time so
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    # 1. Take up where an earlier run stopped.
    checkpoint = options.folder / f"training-{options.seed}-{options.epochs}.pt"
    first = resume(checkpoint, model, optimiser)
    # 2. Train; every epoch draws from a generator of its own, so a resumed run repeats an unbroken one.
    for epoch in range(first, options.epochs):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(1000 * options.seed + epoch)
        loss = train_epoch(model, optimiser, images[train], labels[train], epoch, options.epochs, generator)
        save(checkpoint, model, optimiser, epoch + 1)
        print(
            f"epoch {epoch + 1}/{options.epochs}  loss {loss:.3f}  top-1 {top1(model, images[test], labels[test]):.2f}"
            f"  {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    # 3. Leave what the engine builder reads.
    model.save_pretrained(options.folder)
    calibration = train[:CALIBRATION]
    for name, rows in (("calibration", calibration), ("test", test)):
        arrays = {"pixel_values": images[rows].numpy(), "labels": labels[rows].numpy()}
        np.savez_compressed(options.folder / f"{name}.npz", **arrays)
    print(f"top-1 {top1(model, images[test], labels[test]):.2f} % of {len(test)} test images")


def prepared_digits() -> tuple[Tensor, Tensor]:
    """1797 digits of 8x8 pixels (0 to 16), enlarged bicubically; float32 [1797, 3, 64, 64] in about [-1, 1]."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images.astype(np.float32) / 8 - 1)[:, None]
    large = functional.interpolate(grey, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return large.repeat(1, 3, 1, 1), torch.from_numpy(digits.target.astype(np.int64))


def new_model() -> Any:
    config = EfficientNetConfig(
        image_size=SIZE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        dropout_rate=0.2,
        drop_connect_rate=0.1,
        # transformers hands TensorFlow's 0.99 to PyTorch, where it means the opposite: keep 1 % of the past.
        batch_norm_momentum=0.1,
        num_labels=10,
    )
    model = EfficientNetForImageClassification(config)
    # Its own initialisation is meant for fine-tuning: gains near 0 stop the signal in the first blocks.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def train_epoch(
    model: Any, optimiser: Any, images: Tensor, labels: Tensor, epoch: int, epochs: int, generator: torch.Generator
) -> float:
    model.train()
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # for dropout
    batches = torch.randperm(len(labels), generator=generator).split(BATCH)
    total = 0.0
    for index, rows in enumerate(batches):
        done = (epoch + index / len(batches)) / epochs
        warm_up = min(1.0, (epoch + index / len(batches)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * warm_up * (0.5 + 0.5 * cos(pi * done))
        logits = model(pixel_values=moved(images[rows], generator)).logits
        loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        total += float(loss.detach()) * len(rows)
    return total / len(labels)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to a tenth and shifted by up to a tenth."""

    def between(least: float, greatest: float) -> Tensor:
        return least + (greatest - least) * torch.rand(len(images), generator=generator)

    angle, scale = between(-0.21, 0.21), between(0.9, 1.1)
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = (cosine, -sine, between(-0.2, 0.2), sine, cosine, between(-0.2, 0.2))
    grid = functional.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    # Outside the image lies 0, and the background is -1.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


@torch.no_grad()
def top1(model: Any, images: Tensor, labels: Tensor) -> float:
    model.eval()
    guesses = torch.cat([model(pixel_values=batch).logits.argmax(dim=1) for batch in images.split(100)])
    return 100 * float((guesses == labels).float().mean())


def save(checkpoint: Path, model: Any, optimiser: Any, epoch: int) -> None:
    draft = checkpoint.with_suffix(".draft")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}, draft)
    draft.replace(checkpoint)


def resume(checkpoint: Path, model: Any, optimiser: Any) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["epoch"])


if __name__ == "__main__":
    main()
