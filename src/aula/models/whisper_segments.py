"""Timestamps to segments, and how far a window's text reaches: openai-whisper's way through a long sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from aula.core.types import SPEECH_RATE, Segment
from aula.models.whisper_tokenizer import WhisperTokenizer
from aula.models.whisper_tokens import TIMESTAMP_STEP


@dataclass(frozen=True, slots=True)
class Windowed:
    """The finished segments of one window, and the samples that are done with: what follows them is heard again."""

    segments: tuple[Segment, ...]
    samples: int


def window_segments(
    tokens: Sequence[int], tokenizer: WhisperTokenizer, *, offset: float, samples: int, last: bool
) -> Windowed:
    """`offset` is where the window begins, in seconds; `samples` is its sound. Times come in pairs, one segment each.
    What follows the last pair is left to the next window; a text behind it belongs to the `last` one."""
    begin = tokenizer.special.timestamps
    seconds = samples / SPEECH_RATE

    def moment(token: int) -> float:
        return min((token - begin) * TIMESTAMP_STEP, seconds)

    def segment(piece: Sequence[int], start: float, end: float) -> Segment | None:
        text = tokenizer.text(piece)
        return Segment(round(offset + start, 2), round(offset + max(start, end), 2), text) if text else None

    # 1. Cut between two times in a row.
    cuts = [place for place, (one, two) in enumerate(pairwise(tokens), 1) if one >= begin and two >= begin]
    pieces = [tokens[start:end] for start, end in pairwise([0, *cuts, len(tokens)]) if end > start]
    made: list[Segment | None] = []
    done = 0.0
    for piece in pieces:
        start = moment(piece[0]) if piece[0] >= begin else done
        closed = len(piece) > 1 and piece[-1] >= begin
        if not closed and made and (not last or len(piece) == 1):
            return Windowed(tuple(one for one in made if one), _progress(done, samples))
        done = moment(piece[-1]) if closed else seconds
        made.append(segment(piece, start, done))
    # 2. One closed segment at the end, and no other time after it: the model says that no more speech is here.
    return Windowed(tuple(one for one in made if one), samples)


def _progress(done: float, samples: int) -> int:
    """At least something, so that a window never comes again."""
    heard = round(done * SPEECH_RATE)
    return heard if 0 < heard < samples else samples
