"""What each row cannot do without, and how long that takes at best: the theoretical floor beside the measurement.

Half precision is assumed, weights are read once a pass, activations stay on the chip.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import FRAMES, TOKENS

HALF = 2.0
"""Bytes of a number."""
B0_MULTIPLY_ADDS = 0.39e9
"""Of EfficientNet-B0 at 224x224 (Tan & Le 2019, arXiv:1905.11946, table 2); they grow with the area."""

Load = dict[str, float]
"""`bytes` to read and `operations` to compute, a multiply-add being two."""


def floor_ms(load: Load | None, limits: Mapping[str, Any]) -> float | None:
    """Bytes over the bandwidth of a large copy, operations over the rate of a large product, whichever is longer. None
    where the load or a limit is unknown."""
    bandwidth = float(limits.get("bytes_per_second") or 0)
    rate = float(limits.get("operations_per_second") or 0)
    if load is None or not bandwidth or not rate:
        return None
    return 1000 * max(load["bytes"] / bandwidth, load["operations"] / rate)


def load_of(row: str, work: Path) -> Load | None:
    """From the sizes of the checkpoint in `work`; None for a row without one, or a checkpoint that is not there."""
    family, _, size = row.partition("-")
    folder = work / {"bert": "bert-base", "whisper": "whisper-small", "efficientnet": "efficientnet-b0"}.get(family, "")
    if family not in LOADS or not (folder / "config.json").exists():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return LOADS[family](config, size)


def _bert(config: Mapping[str, Any], size: str) -> Load:
    """Two operations for each number of the layers' matrices and each token, and attention's two products."""
    rows, length = (int(part) for part in size.split("x"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    numbers = layers * (4 * hidden**2 + 2 * hidden * config["intermediate_size"])
    attention = layers * 4 * rows * length**2 * hidden
    return {"bytes": HALF * numbers, "operations": 2.0 * numbers * rows * length + attention}


def _whisper(config: Mapping[str, Any], size: str) -> Load:
    """The encoder once; for every token the decoder, the vocabulary and each row's keys and values of the sound. The
    prompt is read with the first token."""
    rows, hidden, positions = int(size), config["d_model"], FRAMES // 2
    encoder = config["encoder_layers"] * (4 * hidden**2 + 2 * hidden * config["encoder_ffn_dim"])
    layers = config["decoder_layers"]
    # Self-attention's four matrices and two of cross-attention, whose keys and values are made with the sound.
    decoder = layers * (6 * hidden**2 + 2 * hidden * config["decoder_ffn_dim"]) + config["vocab_size"] * hidden
    cross = layers * 2 * hidden**2
    heard = 2 * layers * positions * hidden * rows
    convolutions = rows * (FRAMES * 3 * config["num_mel_bins"] * hidden + positions * 3 * hidden**2)
    attention = config["encoder_layers"] * 2 * rows * positions**2 * hidden
    listening = rows * positions * (encoder + cross) + convolutions + attention
    return {
        "bytes": HALF * (encoder + cross + TOKENS * (decoder + heard)),
        "operations": 2.0 * (listening + TOKENS * (rows * decoder + heard)),
    }


def _efficientnet(config: Mapping[str, Any], size: str) -> Load:
    """Pictures come as float32, and are what must be read: int8 weights are four megabytes."""
    rows, side = int(size), config["image_size"]
    return {
        "bytes": 4.0e6 + 4.0 * rows * 3 * side**2,
        "operations": 2 * B0_MULTIPLY_ADDS * (side / 224) ** 2 * rows,
    }


LOADS: dict[str, Callable[[Mapping[str, Any], str], Load]] = {
    "bert": _bert,
    "whisper": _whisper,
    "efficientnet": _efficientnet,
}
