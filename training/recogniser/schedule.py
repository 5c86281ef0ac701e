"""Everything that changes as training goes on, as functions of progress from 0 to 1.

What is heard (`longest_clip`, `strength`, `shares`) is a function of the progress since CTC found its alignments.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Progress is counted in steps, or in seconds of training where how fast the machine is is not known before."""

    peak: float
    warm_steps: int
    steps: int | None
    seconds: float | None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(
                "how long to train is said in steps or in minutes: give --steps or --total-minutes, one of them"
            )

    def progress(self, step: int, seconds: float) -> float:
        done = step / self.steps if self.steps else seconds / (self.seconds or 1)
        return min(1.0, done)

    def rate(self, step: int, progress: float) -> float:
        """Linear warm-up, then half a cosine to a fiftieth of the peak."""
        warm = min(1.0, (step + 1) / self.warm_steps)
        return self.peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def guidance(step: int, steps: int) -> float:
    """How much of the loss is a guess at where the units are said: most at first, nothing after so many steps."""
    return 0.8 * max(0.0, 1 - step / steps) if steps else 0.0


FOUND = 3.0
"""Nats a unit. All blanks, which CTC learns first, cost about 5; under this it has found where units are said."""

MOST_HELD = 0.25
"""Of the training: what does not get there by then goes on without waiting."""


class Lessons:
    """How far what is heard has got, from 0 to 1: short, clear and clean until CTC has found its alignments, however
    long that takes; from there on as the training goes on."""

    def __init__(self) -> None:
        self.began: float | None = None

    def heed(self, loss: float, progress: float) -> None:
        if self.began is None and (loss < FOUND or progress >= MOST_HELD):
            self.began = progress

    def at(self, progress: float) -> float:
        return 0.0 if self.began is None else progress - self.began


def longest_clip(progress: float) -> float:
    """Seconds: CTC finds its alignments on short clips first."""
    return 3.0 + min(1.0, progress / 0.12) * 9.0


def strength(progress: float) -> float:
    """How much clips are spoilt, from 0 to 1: clean at first."""
    return min(1.0, max(0.0, (progress - 0.03) / 0.15))


def agreement(progress: float) -> float:
    """How much it weighs that two views of a clip are understood in the same way: nothing before they are at all."""
    return 0.2 * min(1.0, progress / 0.05)


PEOPLE = (0.08, 0.28)
"""Share of people's speech up to the last third of the training, and at its end."""


def shares(progress: float) -> dict[str, float]:
    """How much of a batch each kind of speech is: clear synthetic voices first, people in the last third above all.

    There are two and a half hours of people. A training that heard them some 170 times learned their sentences by heart
    (10 words of a hundred wrong, 47 for speakers it had never heard), while it got through its synthetic speech so
    seldom that it never learned all of that. So people are heard no more often than then, over twice as many hours (175
    times in 4,000), and most of that at the end, when the rate falls and what was heard last counts most in the moving
    average. Formants of eSpeak are easily understood, but nobody speaks like them: they make room for recorded voices
    and models, late most of all.
    """
    late = max(0.0, (progress - 2 / 3) * 3)
    people = PEOPLE[0] + (PEOPLE[1] - PEOPLE[0]) * late
    recorded = 0.40 + 0.10 * progress + 0.08 * late
    return {"people": people, "recorded": recorded, "formant": 1 - people - recorded}


ENOUGH_HOURS = 1.5
"""A kind of which less is there gets a smaller share, so that a few clips are not heard over and over."""

KINDS = {
    "speechocean762": "people", "fsdd": "people", "librivox": "people", "flite": "recorded",
    "rhvoice": "recorded", "pico": "recorded", "festival": "recorded", "espeak": "formant",
}  # fmt: skip
"""Of which kind a clip is, by the part of its source before the colon."""
