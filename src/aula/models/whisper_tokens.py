"""Whisper's special tokens, and which tokens may follow which."""

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


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Identifiers after the text's, in the order of Whisper's tokeniser: end, start, one for each language,
    translate, transcribe, start of a language-model text, start of the previous text, no speech, no timestamps, then
    timestamps in steps of 0.02 s."""

    end: int
    start: int
    languages: range
    translate: int
    transcribe: int
    previous: int
    no_speech: int
    no_timestamps: int

    @classmethod
    def of(cls, vocab_size: int) -> "SpecialTokens | None":
        """None for a vocabulary that is not one of Whisper's (small models of tests)."""
        if vocab_size < ENGLISH_VOCABULARY:
            return None
        end = 50_257 if vocab_size > ENGLISH_VOCABULARY else 50_256
        # Eight named tokens and 1 501 timestamps stand beside the languages; the English vocabulary carries
        # the languages too, without use.
        languages = vocab_size - end - 8 - 1501
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
        )


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
