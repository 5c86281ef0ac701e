"""Word errors of a model on shards, by source, age group and gender.

    python -m training.recogniser.evaluate WEIGHTS_FOLDER --tokens tokens.json --data FOLDER [FOLDER ...]

Greedy decoding, in chunks as in a stream. Prints one JSON line a group, then one with examples.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.recogniser import shards, tokens, weights
from training.recogniser.bank import Bank
from training.recogniser.features import RATE, log_mel, mel_filters
from training.recogniser.model import Recogniser
from training.recogniser.plans import in_order


@dataclass(frozen=True)
class Heard:
    clip: shards.Clip
    text: str

    @property
    def errors(self) -> int:
        return distance(self.clip.text.split(), self.text.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--chunk", type=int, nargs="+", default=[8])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    tokenizer, device = tokens.load(options.tokens), torch.device(options.device)
    model = weights.load(options.weights).to(device).eval()
    for chunk in options.chunk:
        heard = list(hear(model, tokenizer, options.data, device, chunk))
        for group, (wer, words, clips) in groups(heard).items():
            print(json.dumps({"chunk": chunk, "group": group, "wer": round(wer, 4), "words": words, "clips": clips}))
        print(json.dumps({"examples": [[one.clip.text, one.text] for one in heard[:: max(1, len(heard) // 20)]]}))


@torch.no_grad()
def hear(
    model: Recogniser, tokenizer: Tokenizer, folders: list[Path], device: torch.device, chunk: int, most: int = 10**9
) -> Iterator[Heard]:
    """What the model hears in the clips of some folders, each clip padded as a stream pads it."""
    files = sorted(file for folder in folders for file in folder.glob("*.json"))
    samples = sum(clip.samples for file in files for clip in shards.clips(file))
    bank = Bank(tokenizer, device, 0.01 + samples / RATE / 3600)
    kept = [clip for file in files for clip in bank.take_whole(file)]
    filters = mel_filters().to(device)
    for plan in in_order(bank, min(most, len(kept)), 240):
        batch = bank.batch(plan)
        # As in the training, the front end is not rounded to sixteen bits: outside of the context.
        mel = log_mel(batch.sound, filters)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            said = model(mel, chunk)[-1]
        for row, clip in enumerate(plan.clips):
            best = said[row, : batch.frame_counts[row]].argmax(-1).tolist()
            yield Heard(kept[clip], tokens.greedy(tokenizer, best))


def groups(heard: list[Heard]) -> dict[str, tuple[float, int, int]]:
    """Group to word error rate, words and clips."""
    errors: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in heard:
        names = [one.clip.source]
        if one.clip.age.isdigit():
            child = "children" if int(one.clip.age) < 16 else "adults"
            names += [f"{one.clip.source}, {child}", f"{one.clip.source}, {child}, {one.clip.gender}"]
            if one.clip.text.split()[0] in _ASKING:
                names.append(f"{one.clip.source}, questions")
        for name in names:
            counts = errors[name]
            counts[0] += one.errors
            counts[1] += len(one.clip.text.split())
            counts[2] += 1
    return {name: (wrong / max(1, words), words, clips) for name, (wrong, words, clips) in sorted(errors.items())}


_ASKING = frozenset((
    "what", "who", "whom", "whose", "which", "when", "where", "why", "how", "is", "are", "was", "were", "am", "do",
    "does", "did", "can", "could", "will", "would", "shall", "should", "may", "might", "must", "has", "have", "had",
))  # fmt: skip


def distance(reference: list[str], heard: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for place, word in enumerate(reference, 1):
        above, row = row, [place]
        for column, other in enumerate(heard, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (word != other)))
    return row[-1]


if __name__ == "__main__":
    main()
