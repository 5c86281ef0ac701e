"""A hundred questions on the project's course, and voices never trained on that ask them.

python -m training.recogniser.questions OUT      leaves them as shards, for machines without these voices
"""

import argparse
import csv
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aula.core.types import Float32
from training.recogniser import shards
from training.recogniser.voices import HELD_OUT, trimmed, voice

COURSES = Path(__file__).parents[2] / "courses"
QUESTIONS = Path(__file__).parents[2] / "benchmarks" / "spoken_questions.tsv"
"""Each with the document and the heading of the passage that answers it."""


@dataclass(frozen=True)
class Spoken:
    """`sound` is float32 at 16 kHz; `group` is a corpus or a voice, with age and gender where they are known."""

    text: str
    sound: Float32
    groups: tuple[str, ...]


def questions() -> list[dict[str, str]]:
    with QUESTIONS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read_aloud(texts: Sequence[str], voices: Sequence[str] = HELD_OUT) -> list[Spoken]:
    """Each text in one of the voices in turn; those that are not installed are left out aloud, and none is an error."""
    speaking = []
    for name in voices:
        try:
            speaker = voice(name)
            speaker.speak("hello", random.Random(0))
            speaking.append((name, speaker))
        except Exception as error:  # whatever a program that is not there gives
            print(f"without {name}: {error}", file=sys.stderr)
    if not speaking:
        raise SystemExit(f"none of {', '.join(voices)} speaks here: install flite, RHVoice or festival")
    rng = random.Random(8)
    spoken = []
    for place, text in enumerate(texts):
        name, speaker = speaking[place % len(speaking)]
        sound = trimmed(speaker.speak(text, rng), keep=0.25)
        spoken.append(Spoken(text, (0.3 / max(1e-3, np.abs(sound).max()) * sound).astype(np.float32), (name,)))
    return spoken


def spoken_before(folder: Path) -> list[Spoken]:
    """What `main` left, in the order of the questions; sounds are told apart by their texts."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        clips, flat = shards.read(file)
        start = 0
        for clip in clips:
            sound = flat[start : start + clip.samples].astype(np.float32) / np.float32(32768)
            found[clip.text] = Spoken(clip.text, sound, (clip.source,))
            start += clip.samples
    missing = [row["question"] for row in questions() if row["question"] not in found]
    if missing:
        raise SystemExit(f"{folder} lacks {len(missing)} questions, {missing[0]!r} among them: make it anew")
    return [found[row["question"]] for row in questions()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    spoken = read_aloud([row["question"] for row in questions()])
    clips = [shards.Clip(one.text, one.groups[0], len(one.sound)) for one in spoken]
    shards.write(options.out, "questions", clips, [(one.sound * 32767).astype(np.int16) for one in spoken], opus=True)
    print(f"{len(clips)} questions, {sum(clip.samples for clip in clips) / 16000:.0f} s")


if __name__ == "__main__":
    main()
