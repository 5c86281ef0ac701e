"""One worker that reads sentences aloud with one kind of voice, and leaves shards until told enough.

    python -m training.recogniser.synthesise OUT --texts texts.tsv --voices espeak flite:awb --hours 2 --worker 3

Runs of the same seed and worker give the same speech. Workers need not know of each other; training takes up new
shards while it runs.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

from training.recogniser import shards
from training.recogniser.voices import RATE, trimmed, voice

WEIGHTS = {
    "wordnet": 25, "everyday": 18, "questions": 12, "learners": 10, "requests": 8, "physics": 9, "bible": 7, "words": 5,
    "digits": 4, "course": 4, "xquad": 2,
}  # fmt: skip
"""How often each category of sentence is read, in a hundred or so."""

LONGEST_SECONDS = 12.0
SHARD_SECONDS = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--voices", nargs="+", required=True)
    parser.add_argument("--categories", nargs="+", help="only these categories of sentence")
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--minutes", type=float, default=600, help="stop after this long, whatever is done")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--opus", action="store_true", help="write small files, to be carried")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    began = time.monotonic()
    rng = random.Random(f"{options.seed} {options.worker} {options.voices}")
    sentences = by_category(options.texts, options.categories)
    weights = [WEIGHTS[category] for category in sentences]
    voices = [voice(name) for name in options.voices]
    total = failures = number = 0.0
    clips: list[shards.Clip] = []
    sound: list[shards.Int16] = []
    held = 0
    while total < options.hours * 3600 and time.monotonic() - began < options.minutes * 60:
        text = rng.choice(sentences[rng.choices(list(sentences), weights)[0]])
        which = rng.randrange(len(voices))
        try:
            samples = trimmed(voices[which].speak(text, rng))
        except Exception as error:  # a sentence that one synthesiser cannot say must not end the others
            failures += 1
            if failures < 4 or failures % 1000 == 0:
                print(f"{options.voices[which]} did not say {text!r}: {error}", file=sys.stderr, flush=True)
            if failures > 100 and not clips and not number:
                raise SystemExit(f"{options.voices} say nothing here") from error
            continue
        if not 0.2 * RATE < len(samples) < LONGEST_SECONDS * RATE:
            continue
        level = 0.3 / max(1e-3, float(np.abs(samples).max()))
        sound.append((samples * level * 32767).astype(np.int16))
        clips.append(shards.Clip(text, options.voices[which], len(samples)))
        total += len(samples) / RATE
        held += len(samples)
        # The first shards are short, so that training finds something at once.
        if held > min(SHARD_SECONDS, 20 * 2**number) * RATE:
            shards.write(options.out, shard_name(options, int(number)), clips, sound, opus=options.opus)
            clips, sound, held, number = [], [], 0, number + 1
    if clips:
        shards.write(options.out, shard_name(options, int(number)), clips, sound, opus=options.opus)
    seconds = time.monotonic() - began
    print(json.dumps({"voices": options.voices, "hours": round(total / 3600, 3), "seconds": round(seconds, 1),
                      "failures": int(failures)}), flush=True)  # fmt: skip


def shard_name(options: argparse.Namespace, number: int) -> str:
    family = options.voices[0].replace(":", "-")
    return f"{family}-{options.seed}-{options.worker:03}-{number:04}"


def by_category(texts: Path, only: list[str] | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with texts.open(encoding="utf-8") as lines:
        for line in lines:
            category, _, text = line.rstrip("\n").partition("\t")
            if not only or category in only:
                found.setdefault(category, []).append(text)
    return found


if __name__ == "__main__":
    main()
