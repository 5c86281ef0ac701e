"""What int8 of a recogniser is judged by: clips with their texts, one minus the word error rate.

Where nobody gives clips, eSpeak NG reads this project's own example questions: that is no measure of how well people
are heard, but it shows what rounding breaks.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aula.backends.session import Session
from aula.core.settings import load_settings
from aula.core.types import SPEECH_RATE, Context, Float32, Intent, SpeakRequest
from aula.engine.recipe import Task
from aula.models.ctc_beam import Alphabet, best_path
from aula.models.labels import task_digest
from aula.models.whisper_clips import digest, read_clips
from aula.models.whisper_task import METRIC, enough
from aula.models.word_errors import word_error_rate

VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb+m3", "en-us+f4", "en-gb-x-rp+f3")
PACES = (130, 150, 170)
SPOKEN = 48
"""Questions that are read aloud: some three hundred words."""

Sounds = Sequence[tuple[Float32, str]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Sounds and what is said in them. `digest` is of what they were made from."""

    sounds: Callable[[], Sounds]
    count: int
    digest: str


def listed(path: Path) -> Labelled:
    """Clips of a list. Raises CalibrationError for too few, or a list that cannot be read."""
    clips = enough(read_clips(path), path)
    return Labelled(lambda: [(clip.samples(), clip.text or "") for clip in clips], len(clips), digest(clips))


def spoken() -> Labelled:
    """This project's own questions in eSpeak NG's voices."""
    from aula.models.intents import load_examples

    texts = load_examples()["en"][Intent.CONTENT]
    texts = texts[:: max(1, len(texts) // SPOKEN)][:SPOKEN]
    read = "\n".join((*VOICES, *map(str, PACES), *texts))
    return Labelled(lambda: list(_read_aloud(texts)), len(texts), hashlib.sha256(read.encode()).hexdigest())


def _read_aloud(texts: Sequence[str]) -> Iterator[tuple[Float32, str]]:
    import soxr

    from aula.models.espeak import EspeakSpeaker
    from aula.models.questions import words_of

    speaker = EspeakSpeaker(load_settings())
    for place, text in enumerate(texts):
        request = SpeakRequest(text, VOICES[place % len(VOICES)], PACES[place % len(PACES)])
        chunks = list(speaker.speak(request, Context("en")))
        sound = soxr.resample(np.concatenate(chunks).astype(np.float32) / 32768, speaker.rate, SPEECH_RATE)
        yield np.asarray(sound, np.float32), " ".join(words_of(text))


def task(hear: Callable[[Session], Callable[[Float32], Float32]], alphabet: Alphabet, labelled: Labelled) -> Task:
    """`hear` gives what makes a whole sound's logarithms with a session."""

    def evaluate(session: Session) -> float:
        heard = hear(session)
        pairs = [(text, alphabet.text(best_path(heard(sound), alphabet))) for sound, text in labelled.sounds()]
        return 1 - word_error_rate(pairs)

    spelled = hashlib.sha256("\n".join(alphabet.tokens).encode()).hexdigest()
    return Task(METRIC, labelled.count, task_digest(METRIC, labelled.digest, spelled), evaluate)
