"""How long a question takes from samples to text where Whisper is whole on a GPU (`whisper_whole`)."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aula.backends.hosting.records import Hosting
from aula.core.types import Float32
from aula.models.whisper_hearing import Heard, WhisperHearing
from aula.models.whisper_mel import MelStream
from aula.models.whisper_passes import WhisperPasses
from aula.models.whisper_reader import ROWS
from tests.gpu.whisper_whole import PLAIN, SECONDS, Whole, mel_of, sound_of


def timings(whole: Whole, repetitions: int = 30) -> dict[str, tuple[float, float]]:
    """Milliseconds, median and 95th percentile, from samples to text, what the host does included: a question of
    SECONDS, with TOKENS tokens. After a commit the spectrum of all but the last tenth of a second is there already."""
    told: dict[str, tuple[float, float]] = {}
    for part in ("encoder", "decoder"):
        chosen = whole.on_gpu.engine(part, whole.target).chosen
        told |= {f"device: {part}, {profile}": (took, took) for profile, took in chosen.milliseconds.items()}
    for name, hosting in (("here", None), ("in its own process", Hosting())):
        with whole.gpu(hosting) as side:
            for what, work in _works(whole, side.hearing(PLAIN), side.passes).items():
                told[f"{name}: {what}"] = _spread(work, repetitions)
    return told


def _works(whole: Whole, hearing: WhisperHearing, passes: WhisperPasses) -> dict[str, Callable[[], Callable[[], Any]]]:
    """By what is timed: what prepares it, and gives what is timed."""
    sound = sound_of(1, SECONDS)
    first = _heard(whole, hearing, sound)
    language, right = first.language, first.tokens
    wrong = tuple(token + 1 for token in right)

    def scratch(**more: Any) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: _heard(whole, hearing, sound, language, **more)

    def committed(short: bool = False, **more: Any) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            mel = MelStream(whole.config.num_mel_bins)
            mel.feed(sound[:-1600])

            def commit() -> Any:
                mel.feed(sound[-1600:])
                return (hearing.draft if short else hearing.final)(mel, language, **more)

            return commit

        return prepare

    def together() -> Any:
        came: list[Any] = []
        for seed in range(ROWS):
            mel = mel_of(whole, seed, SECONDS)
            passes.begin(seed, hearing.finalising(mel, language), lambda value, _took: came.append(value))
        while passes.advance():
            pass
        failed = [value for value in came if isinstance(value, Exception)]
        if failed:
            raise failed[0]

    return {
        f"{SECONDS} s from scratch, window": scratch(),
        f"{SECONDS} s from scratch, language found too": lambda: lambda: _heard(whole, hearing, sound),
        "after commit, no draft": committed(),
        "after commit, a right draft": committed(draft=right, sure=len(right)),
        "after commit, a wrong draft": committed(draft=wrong),
        "a hypothesis, short context": committed(short=True),
        f"{ROWS} questions at once, from scratch": lambda: together,
        "the spectrum alone": lambda: lambda: mel_of(whole, 1, SECONDS).features(whole.config.max_source_positions * 2),
    }


def _spread(prepare: Callable[[], Callable[[], Any]], repetitions: int) -> tuple[float, float]:
    taken = []
    for place in range(repetitions + 5):
        work = prepare()
        began = time.perf_counter()
        work()
        if place >= 5:
            taken.append(1000 * (time.perf_counter() - began))
    return round(float(np.percentile(taken, 50)), 3), round(float(np.percentile(taken, 95)), 3)


def _heard(whole: Whole, hearing: WhisperHearing, sound: Float32, language: int | None = None, **more: Any) -> Heard:
    mel = MelStream(whole.config.num_mel_bins)
    mel.feed(sound)
    return hearing.final(mel, language, **more)
