"""How well PocketSphinx hears a course's questions, how fast, and how well it knows when it does not.

    python benchmarks/recognition.py DATA [--fit]

DATA is the folder of real clips. Limits first: no recordings of students asking about this course exist, so in-course
questions are spoken by eSpeak NG in eight voices with noise; accents of synthetic voices are not those of people. The
real clips show what happens outside the course, and ("own words") when a course's text does hold what is said.
`--fit` prints the constants of models/confidence.py, fitted on the development half only.
"""

import argparse
import csv
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from aula.core.clock import SystemClock
from aula.core.errors import NothingHeardError
from aula.core.settings import Settings
from aula.core.types import SPEECH_RATE, Context, Float32, SpeakRequest, TranscribeRequest
from aula.models import confidence as confidence_module
from aula.models import sphinx
from aula.models.confidence import Evidence, confidence, read_evidence
from aula.models.espeak import EspeakSpeaker
from aula.models.questions import words_of
from aula.models.word_errors import word_errors

VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-gb+m3", "en-us+f4", "en-gb-x-rp+f3", "en-us+m7")
PACES = (130, 150, 165, 180)
NOISE_DB = (30, 20, 15)
FRAME = SPEECH_RATE // 50
USABLE = 0.34
"""Word error rate up to which a transcript counts as right when the confidence is fitted: two words of three."""
SPOILT = 0.5

QUESTIONS = """
what makes a falling ball speed up
why doesn't the moon fall down to the earth
how do i change kilometres per hour into metres per second
is weight measured in newtons or in kilograms
why do passengers fall forward when the bus brakes
how can i work out the net force on a crate
what is inertia
what is kinetic energy
does a heavier stone fall faster than a light one
what is newton's third law
how do action and reaction forces differ from balanced forces
why is friction sometimes useful
what does the slope of a velocity time graph tell us
how long does it take a stone to fall twenty metres
what is the difference between speed and velocity
can an object have zero velocity and still accelerate
what happens to the momentum in a collision
why is momentum conserved
what is an elastic collision
how is power different from energy
what does the spring constant mean
explain hooke's law please
when does a seesaw balance
why is a long spanner easier to turn with
what is the centre of mass
why do we wear a seat belt
what keeps a satellite in its orbit
which way does the centripetal force point
how do you add two vectors at a right angle
what are significant figures
how do i reduce random errors
what is the unit of work
is work done when you carry a bag horizontally
where does the kinetic energy go when a car brakes
what is terminal velocity
why does a parachute slow you down
what is a free body diagram
how big is the acceleration of free fall
what is static friction
can you give me an example of a vector
how many joules does it take to lift one kilogram by one metre
what is meant by a closed system
i don't understand the law of conservation of energy
why does a spinning skater turn faster
how are mass and weight related
what is the turning effect of a force
please repeat that
could you speak more slowly please
when is the test
tell me about potential energy
does the distance depend on the direction
what is torque
what is the formula for kinetic energy
why do racing cars have wide tyres
is the earth pulled by a falling apple
what is displacement
how is acceleration calculated from a graph
who discovered the law of gravitation
what is an impulse
why does a rocket work in empty space
""".strip().splitlines()

OUTSIDE = """
what is photosynthesis
who was the first emperor of china
how do plants drink water
why did the roman empire fall
what is the capital of australia
how do i bake a chocolate cake
what is a prime number
who painted the mona lisa
why do cats purr at night
how many bones does a human body have
what is the largest ocean
when did the french revolution begin
can you recommend a good film for tonight
what does the heart do with blood
how do volcanoes erupt
which language do people speak in brazil
what is a metaphor in poetry
how is bread made
why is the sky blue
what did shakespeare write
who won the football match yesterday
how do computers store pictures
what is a noun
play some music please
what will the weather be like tomorrow
my brother bought a new guitar on saturday
where can i buy cheap shoes
what is dna made of
how do bees find flowers
order two pizzas with mushrooms
""".strip().splitlines()


@dataclass(frozen=True)
class Clip:
    text: str
    samples: Float32


@dataclass
class Outcome:
    reference: list[str]
    heard: list[str]
    errors: int
    evidence: Evidence | None

    @property
    def rate(self) -> float:
        return self.errors / max(len(self.reference), 1)

    @property
    def confidence(self) -> float:
        return 0.0 if self.evidence is None else confidence(self.evidence)


@dataclass
class Measurement:
    name: str
    inside: bool
    adapted: bool = True
    outcomes: list[Outcome] = field(default_factory=list)
    audio_seconds: float = 0.0
    feed_seconds: float = 0.0
    commits_ms: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        words = sum(len(outcome.reference) for outcome in self.outcomes)
        errors = sum(outcome.errors for outcome in self.outcomes)
        # The general model has no posteriors and therefore no confidence.
        sure = [outcome.confidence for outcome in self.outcomes] if self.adapted else []
        return {
            "set": self.name,
            "clips": len(self.outcomes),
            "wer_percent": round(100 * errors / words, 1) if words else None,
            "real_time_factor": round(self.feed_seconds / self.audio_seconds, 3),
            "commit_ms_p50": round(float(np.quantile(self.commits_ms, 0.5)), 1),
            "commit_ms_p95": round(float(np.quantile(self.commits_ms, 0.95)), 1),
            "confidence": [round(float(np.quantile(sure, part)), 2) for part in (0.1, 0.5, 0.9)] if sure else None,
            "sure_percent": round(100 * float(np.mean(np.array(sure) >= 0.5))) if sure else None,
        }


def measure(
    name: str, clips: Sequence[Clip], transcriber: sphinx.SphinxTranscriber, course: tuple[str, ...], inside: bool
) -> Measurement:
    """Feed every clip in 20 ms frames as fast as they are taken."""
    clock = SystemClock()
    result = Measurement(name, inside, adapted=bool(course))
    seen: list[Evidence] = []

    def spy(decoder: Any) -> Evidence:
        seen.append(read_evidence(decoder))
        return seen[-1]

    with mock.patch.object(sphinx, "read_evidence", spy):
        for clip in clips:
            stream = transcriber.start(TranscribeRequest(course, "benchmark"), Context("en"))
            seen.clear()
            started = clock.now()
            for place in range(0, len(clip.samples), FRAME):
                stream.feed(clip.samples[place : place + FRAME])
            fed = clock.now()
            try:
                heard = stream.commit().text.split()
            except NothingHeardError:
                heard = []
            ended = clock.now()
            result.audio_seconds += len(clip.samples) / SPEECH_RATE
            result.feed_seconds += fed - started
            result.commits_ms.append(1000 * (ended - fed))
            reference = words_of(clip.text)
            outcome = Outcome(reference, heard, word_errors(reference, heard), seen[0] if seen else None)
            result.outcomes.append(outcome)
    return result


def spoken(questions: Sequence[str], turn: int, speaker: EspeakSpeaker) -> list[Clip]:
    """Questions in rotating voices, paces and noise; `turn` moves the rotation on."""
    random = np.random.default_rng(turn)
    clips = []
    for place, question in enumerate(questions):
        request = SpeakRequest(question, VOICES[(place + turn) % len(VOICES)], PACES[(place // 2 + turn) % len(PACES)])
        sound = np.concatenate(list(speaker.speak(request, Context("en")))).astype(np.float32) / 32768
        sound = np.pad(soxr.resample(sound, speaker.rate, SPEECH_RATE), int(0.3 * SPEECH_RATE))
        noise = random.standard_normal(len(sound)).astype(np.float32)
        level = np.sqrt(np.mean(sound**2) / np.mean(noise**2)) * 10 ** (-NOISE_DB[(place + turn) % 3] / 20)
        mixed = sound + noise * level
        clips.append(Clip(question, (0.6 * mixed / np.abs(mixed).max()).astype(np.float32)))
    return clips


def noises(count: int, seed: int) -> list[Clip]:
    """White noise, chords that beat like music, rumble, and clicks like chalk or keys."""
    random = np.random.default_rng(seed)
    clips = []
    for place in range(count):
        time = np.arange(int(SPEECH_RATE * random.uniform(1.0, 4.0))) / SPEECH_RATE
        sound: NDArray[np.float64] = random.standard_normal(len(time))
        if place % 4 == 0:
            sound *= 10 ** random.uniform(-2.5, -0.7)
        elif place % 4 == 1:
            tones = random.choice([220, 262, 330, 392, 440, 523, 659], 3)
            beats = random.uniform(0.5, 3.0, 3)
            sound = 0.15 * sum(
                np.sin(2 * np.pi * tone * time) * (np.sin(2 * np.pi * beat * time) > 0)
                for tone, beat in zip(tones, beats, strict=True)
            )
        elif place % 4 == 2:
            sound = np.convolve(sound, np.ones(30) / 30, "same")
            sound *= 0.3 / np.abs(sound).max()
        else:
            sound = np.zeros(len(time))
            for start in random.integers(0, len(time) - 800, 12):
                sound[start : start + 800] += random.standard_normal(800) * np.exp(-np.arange(800) / 150) * 0.5
        clips.append(Clip("", np.clip(sound, -1, 1).astype(np.float32)))
    return clips


def read_wave(path: Path) -> Float32:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono: Float32 = soxr.resample(samples.mean(axis=1), rate, SPEECH_RATE).astype(np.float32)
    return mono


def speechocean(data: Path) -> list[Clip]:
    folder = data / "speech_en_speechocean762"
    with (folder / "manifest.tsv").open(encoding="utf-8") as file:
        return [
            Clip(row["text"].lower(), read_wave(folder / "wav" / f"{row['utt']}.wav"))
            for row in csv.DictReader(file, delimiter="\t")
        ]


def ljspeech(data: Path) -> list[Clip]:
    folder = data / "speech_en_ljspeech"
    clips = []
    for line in (folder / "metadata_wav.csv").read_text(encoding="utf-8").splitlines()[1:]:
        name, text, *_ = line.split("|")
        if (path := folder / "wav" / Path(name).name).is_file():
            clips.append(Clip(text.replace("-", " "), read_wave(path)))
    return clips


def aishell(data: Path) -> list[Clip]:
    return [Clip("", read_wave(path)) for path in sorted((data / "speech_zh_aishell" / "wav").rglob("*.wav"))]


def course_sentences(folder: Path) -> tuple[str, ...]:
    """Sentences of Markdown files, headings too, without their front matter."""
    sentences: list[str] = []
    for path in sorted(folder.glob("*.md")):
        for line in path.read_text(encoding="utf-8").split("---", 2)[-1].splitlines():
            sentences += [part for part in re.split(r"(?<=[.!?])\s+", line.lstrip("# ").strip()) if part]
    return tuple(sentences)


def fit(measurements: Sequence[Measurement], penalty: float = 0.01) -> tuple[list[float], float]:
    """Logistic regression (Newton's method) on standardised evidence; weights and bias for raw evidence.

    Right: in-course questions with at most USABLE errors. Wrong: those with more than SPOILT, and all that was said
    or sounded outside the course. The two classes weigh the same.
    """
    rows, labels = [], []
    for measurement in measurements:
        for outcome in measurement.outcomes:
            right = measurement.inside and outcome.rate <= USABLE
            if outcome.evidence and (right or not measurement.inside or outcome.rate > SPOILT):
                rows.append(astuple(outcome.evidence))
                labels.append(float(right))
    values, targets = np.array(rows), np.array(labels)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    inputs = np.c_[(values - mean) / spread, np.ones(len(values))]
    shares = np.where(targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())
    weights = np.zeros(inputs.shape[1])
    ridge = penalty * np.r_[np.ones(inputs.shape[1] - 1), 0]
    for _ in range(50):
        guess = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (shares * (guess - targets)) + ridge * weights
        curvature = (inputs.T * (shares * guess * (1 - guess))) @ inputs + np.diag(ridge)
        weights -= np.linalg.solve(curvature, gradient)
    raw = weights[:-1] / spread
    return [round(float(weight), 3) for weight in raw], round(float(weights[-1] - raw @ mean), 3)


def separation(measurements: Sequence[Measurement]) -> float:
    """Chance that a usable in-course transcript is surer than something from outside (area under the ROC curve)."""
    right = [o.confidence for m in measurements if m.inside for o in m.outcomes if o.rate <= USABLE]
    wrong = [o.confidence for m in measurements if not m.inside for o in m.outcomes]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of real clips")
    parser.add_argument("--course", type=Path, default=Path(__file__).parent.parent / "courses" / "mechanics-en")
    parser.add_argument("--fit", action="store_true", help="fit the confidence on the development half")
    options = parser.parse_args()
    course = course_sentences(options.course)
    speaker = EspeakSpeaker(Settings())
    ocean, chinese, read = speechocean(options.data), aishell(options.data), ljspeech(options.data)
    # Half of the real clips teach the confidence, the other half judge it; so do questions, voices turned on.
    development: list[tuple[str, bool, Callable[[], list[Clip]]]] = [
        ("in course", True, lambda: [clip for turn in range(4) for clip in spoken(QUESTIONS[::2], turn, speaker)]),
        ("other subjects", False, lambda: [clip for turn in range(2) for clip in spoken(OUTSIDE[::2], turn, speaker)]),
        ("speechocean762", False, lambda: ocean[::2]),
        ("Mandarin (AISHELL)", False, lambda: chinese[::2]),
        ("noise, tones, clicks", False, lambda: noises(80, 5)),
    ]
    judged: list[tuple[str, bool, Callable[[], list[Clip]]]] = [
        ("in course", True, lambda: [clip for turn in (4, 5) for clip in spoken(QUESTIONS[1::2], turn, speaker)]),
        ("other subjects", False, lambda: spoken(OUTSIDE[1::2], 2, speaker)),
        ("speechocean762", False, lambda: ocean[1::2]),
        ("LJ Speech", False, lambda: read),
        ("Mandarin (AISHELL)", False, lambda: chinese[1::2]),
        ("noise, tones, clicks", False, lambda: noises(40, 6)),
    ]
    with tempfile.TemporaryDirectory() as home:
        transcriber = sphinx.SphinxTranscriber(Settings({"home": home}))
        clock = SystemClock()
        began = clock.now()
        transcriber.start(TranscribeRequest(course, "benchmark"), Context("en")).close()
        cold = clock.now() - began
        fresh = sphinx.SphinxTranscriber(Settings({"home": home}))
        began = clock.now()
        fresh.start(TranscribeRequest(course, "benchmark"), Context("en")).close()
        warm = clock.now() - began
        if options.fit:
            taught = [measure(name, make(), transcriber, course, inside) for name, inside, make in development]
            weights, bias = fit(taught)
            confidence_module.WEIGHTS, confidence_module.BIAS = tuple(weights), bias
            print(f"WEIGHTS = {tuple(weights)}\nBIAS = {bias}")
        held_out = [measure(name, make(), transcriber, course, inside) for name, inside, make in judged]
        mixed = (*course, *(clip.text for clip in ocean), *(clip.text for clip in read))
        own = [
            measure("speechocean762, own words", ocean[1::2], transcriber, mixed, True),
            measure("LJ Speech, own words", read, transcriber, mixed, True),
        ]
        plain = [measure("in course, no adaptation", judged[0][2]()[:30], transcriber, (), True)]
    rows = [result.row() for result in (*held_out, *own, *plain)]
    print(f"pocketsphinx {version('pocketsphinx')}, held-out half; adaptation {cold:.1f} s, from disk {warm:.2f} s")
    print(
        f"{'set':28}{'clips':>6}{'WER %':>7}{'RTF':>7}{'commit ms p50/p95':>19}"
        f"{'confidence p10/50/90':>22}{'sure %':>8}"
    )
    for row in rows:
        wer = "-" if row["wer_percent"] is None else f"{row['wer_percent']:.1f}"
        commit = f"{row['commit_ms_p50']:.1f} / {row['commit_ms_p95']:.1f}"
        sure = "-" if row["confidence"] is None else " / ".join(f"{part:.2f}" for part in row["confidence"])
        share = "-" if row["sure_percent"] is None else row["sure_percent"]
        print(
            f"{row['set']:28}{row['clips']:>6}{wer:>7}{row['real_time_factor']:>7.3f}{commit:>19}{sure:>22}{share:>8}"
        )
    usable = [o.confidence for o in held_out[0].outcomes if o.rate <= USABLE]
    spoilt = [o.confidence for o in held_out[0].outcomes if o.rate > SPOILT]
    summary = {
        "benchmark": "recognition",
        "adaptation_seconds": round(cold, 2),
        "from_disk_seconds": round(warm, 3),
        "separation_auc": round(separation(held_out), 3),
        "in_course_usable_sure_percent": round(100 * float(np.mean(np.array(usable) >= 0.5))),
        "in_course_spoilt_sure_percent": round(100 * float(np.mean(np.array(spoilt) >= 0.5))),
        "sets": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
