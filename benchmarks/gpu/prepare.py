"""Seeded checkpoints and inputs that every competitor reads, written once. Needs no torch and no GPU."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.types import SPEECH_RATE, Float32
from aula.models import bert_seeded, efficientnet_seeded, whisper
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_mel import HOP, log_mel

SEED = 0
QUESTION_SECONDS = 5
WINDOW_FRAMES = 3000
CHECKPOINTS = ("bert-base", "whisper-small", "efficientnet-b0")

Arrays = Mapping[str, Any]


def prepare(work: Path, *, tiny: bool = False) -> None:
    """Write what is missing. A file that is there already is believed; a half-written one never gets its name."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoints(work, tiny=tiny)
    rows, pixels = (4, 64) if tiny else (64, 224)
    sources: dict[str, Callable[[], Arrays]] = {
        "bert-1x32": lambda: sentences(1, 32),
        "bert-64x32": lambda: sentences(rows, 32),
        "whisper": lambda: questions(rows),
        "efficientnet-32": lambda: pictures(2 if tiny else 32, pixels),
    }
    for name, make in sources.items():
        path = work / f"{name}.npz"
        if not path.exists():
            partial = work / f"{name}.partial.npz"
            np.savez(partial, **make())
            partial.replace(path)


def checkpoints(work: Path, *, tiny: bool) -> None:
    """In the layout of Hugging Face, by the project's own seeded weights."""
    bert: dict[str, Any] = dict(bert_seeded.ARCHITECTURES["bert-base"])
    speech = whisper.architecture("whisper-small")
    if tiny:
        bert |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        speech = speech | {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128}
        speech |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 128}
    writers: dict[str, Callable[[Path], Checkpoint]] = {
        "bert-base": lambda folder: bert_seeded.random_checkpoint(bert, folder, SEED),
        "whisper-small": lambda folder: whisper.random_checkpoint(speech, folder, SEED),
        "efficientnet-b0": lambda folder: efficientnet_seeded.random_checkpoint("efficientnet-b0", folder, SEED),
    }
    for name, write in writers.items():
        folder = work / name
        if not folder.exists():
            partial = work / f"{name}.partial"
            write(partial)
            partial.rename(folder)


def sentences(rows: int, tokens: int) -> Arrays:
    generator = np.random.default_rng(SEED)
    shape = (rows, tokens)
    return {
        "input_ids": generator.integers(1000, 20_000, shape, dtype=np.int64),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }


def questions(rows: int) -> Arrays:
    """`mel`, float32 [rows, 80, 500]: five seconds of made-up sound; `floor`, float32 [rows]: what every frame of the
    silence up to 30 s holds. The frames at the border hear the end of the sound in either case."""
    frames = QUESTION_SECONDS * SPEECH_RATE // HOP
    mel = np.zeros((rows, 80, frames), dtype=np.float32)
    floor = np.zeros(rows, dtype=np.float32)
    for row in range(rows):
        whole = log_mel(made_up_sound(np.random.default_rng(SEED + row)), 80, WINDOW_FRAMES)
        mel[row], floor[row] = whole[:, :frames], whole[0, -1]
    return {"mel": mel, "floor": floor}


def made_up_sound(generator: np.random.Generator) -> Float32:
    """A voice-like sound: a wandering tone with overtones, loud and soft like syllables, and a little noise."""
    time = np.arange(QUESTION_SECONDS * SPEECH_RATE) / SPEECH_RATE
    pitch = generator.uniform(90, 240) * (1 + 0.2 * np.sin(2 * np.pi * generator.uniform(0.3, 1.5) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SPEECH_RATE
    tone = sum(generator.uniform(0.1, 1) * np.sin(number * phase) / number for number in range(1, 16))
    syllables = 0.5 * (1 + np.sin(2 * np.pi * generator.uniform(2, 5) * time + generator.uniform(0, 6)))
    sound = 0.2 * syllables * tone + 0.01 * generator.standard_normal(len(time))
    return np.asarray(sound, dtype=np.float32)


def pictures(rows: int, pixels: int) -> Arrays:
    generator = np.random.default_rng(SEED)
    return {"pixel_values": generator.standard_normal((rows, 3, pixels, pixels), dtype=np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    prepare(options.work, tiny=options.tiny)


if __name__ == "__main__":
    main()
