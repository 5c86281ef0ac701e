"""Whisper's special tokens, and which tokens may follow which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig

ENGLISH_VOCABULARY = 51_864
"""Entries of the English-only vocabulary; the multilingual ones have one more, and one for each later language."""

NEVER = -1e4
"""Added to what must not be chosen or seen: far below any score, yet finite in half precision too."""

RULES = ("any", "text", "first", "language")
"""What may follow a token: anything; no suppressed token; the same at the start of a text; a language."""

TIMESTAMPS = 1501
TIMESTAMP_STEP = 0.02
"""Seconds from one timestamp to the next; the last is that of 30 s."""

LATEST_FIRST = 1.0
"""Seconds: where the first segment of a window begins at the latest (openai-whisper's max_initial_timestamp)."""

# In the order of Whisper's tokeniser; large-v3 added the last.
_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
LANGUAGES = tuple(_CODES.split())


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Identifiers after the text's, in the order of Whisper's tokeniser: end, start, one for each language,
    translate, transcribe, start of a language-model text, start of the previous text, no speech, no timestamps, then
    timestamps in steps of 0.02 s. `multilingual`: languages and tasks are told to the model."""

    end: int
    start: int
    languages: range
    translate: int
    transcribe: int
    previous: int
    no_speech: int
    no_timestamps: int
    multilingual: bool

    @classmethod
    def of(cls, vocab_size: int) -> "SpecialTokens | None":
        """None for a vocabulary that is not one of Whisper's (small models of tests)."""
        if vocab_size < ENGLISH_VOCABULARY:
            return None
        multilingual = vocab_size > ENGLISH_VOCABULARY
        end = 50_257 if multilingual else 50_256
        # Eight named tokens and the timestamps stand beside the languages; the English vocabulary carries
        # the languages too, without use.
        languages = vocab_size - end - 8 - TIMESTAMPS
        after = end + 2 + languages
        return cls(
            end=end,
            start=end + 1,
            languages=range(end + 2, after),
            translate=after,
            transcribe=after + 1,
            previous=after + 3,
            no_speech=after + 4,
            no_timestamps=after + 5,
            multilingual=multilingual,
        )

    @property
    def timestamps(self) -> int:
        """The token of 0 s; all from it on are times."""
        return self.no_timestamps + 1

    @property
    def codes(self) -> tuple[str, ...]:
        """Of the languages that the model hears, in the order of their tokens."""
        return LANGUAGES[: len(self.languages)] if self.multilingual else ("en",)

    def prompt(
        self, language: int | None, *, translate: bool = False, timestamps: bool = False, before: Sequence[int] = ()
    ) -> list[int]:
        """What a text begins with; `language` is a token, None for an English-only model, which has no tasks either.
        `translate`: into English. `before` is text that a previous window ended with, or words that are likely."""
        task = self.translate if translate else self.transcribe
        start = [self.start] if language is None else [self.start, language, task]
        return [
            *([self.previous, *before] if before else []),
            *start,
            *([] if timestamps else [self.no_timestamps]),
        ]


def suppression(config: WhisperConfig) -> Float32:
    """float32 [len(RULES), vocab_size], added to the logits: 0 or NEVER."""
    table = np.zeros((len(RULES), config.vocab_size), dtype=np.float32)
    table[1:3, list(config.suppressed)] = NEVER
    table[2, list(config.suppressed_first)] = NEVER
    special = SpecialTokens.of(config.vocab_size)
    if special is not None:
        table[3] = NEVER
        table[3, list(special.languages)] = 0
    return table
