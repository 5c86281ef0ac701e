"""Choices among a step's logits that the graph does not make itself: with timestamps, and by chance.

The rules of timestamps are those of openai-whisper (ApplyTimestampRules): times come in pairs, rise, and are written
as soon as all of them together are likelier than any word.
"""

from collections.abc import Callable, Sequence

import numpy as np

from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import LATEST_FIRST, NEVER, TIMESTAMP_STEP, SpecialTokens, suppression

Choose = Callable[[Float32, Sequence[int]], tuple[int, float]]
"""The next token, and its natural logarithmic probability among what may follow, from logits, float32 [vocab_size],
and the tokens that were written before."""

_TEXT, _FIRST = 1, 2


class HostChoice:
    """Suppression and, with `timestamps`, their rules; at `temperature` 0 the likeliest, else one drawn by `seed`."""

    def __init__(
        self, config: WhisperConfig, *, timestamps: bool = False, temperature: float = 0.0, seed: int = 0
    ) -> None:
        self._special = SpecialTokens.of(config.vocab_size) if timestamps else None
        self._table = suppression(config)
        self._temperature = temperature
        self._generator = np.random.default_rng(seed)

    def __call__(self, logits: Float32, tokens: Sequence[int]) -> tuple[int, float]:
        scores = logits + self._table[_TEXT if tokens else _FIRST]
        if self._special is not None:
            keep_time(scores, tokens, self._special)
        highest = scores.max()
        total = np.log(np.exp(scores - highest).sum()) + highest
        if self._temperature:
            # The largest of the scores, each with Gumbel noise, is a draw from their softmax.
            token = int((scores / self._temperature + self._generator.gumbel(size=len(scores))).argmax())
        else:
            token = int(scores.argmax())
        return token, float(scores[token] - total)


def keep_time(scores: Float32, tokens: Sequence[int], special: SpecialTokens) -> None:
    """Forbid, in `scores`, what the rules of timestamps do not let follow `tokens`."""
    begin = special.timestamps
    scores[special.no_timestamps] = NEVER
    if not tokens:
        scores[:begin] = NEVER
        scores[begin + round(LATEST_FIRST / TIMESTAMP_STEP) + 1 :] = NEVER
        return
    times = [token for token in tokens if token >= begin]
    if tokens[-1] >= begin:
        if len(tokens) < 2 or tokens[-2] >= begin:
            scores[begin:] = NEVER  # a segment has begun: its text comes
        else:
            scores[: special.end] = NEVER  # a segment has ended: the next begins, or nothing comes
    if times:
        # A segment is longer than nothing; one that follows may begin where the last ended.
        ended = tokens[-1] >= begin and not (len(tokens) < 2 or tokens[-2] >= begin)
        scores[begin : times[-1] + (0 if ended else 1)] = NEVER
    words, stamps = scores[:begin], scores[begin:]
    highest = stamps.max()
    if highest + np.log(np.exp(stamps - highest).sum()) > words.max():
        scores[:begin] = NEVER
