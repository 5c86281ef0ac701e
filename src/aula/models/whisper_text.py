"""One text while it is written: what the decoder is asked about it, and what becomes of the answers.

Loops differ in how many texts they write at once; this is what they share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_choice import Choose
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import RULES, SpecialTokens

ANY, TEXT, FIRST, LANGUAGE = range(len(RULES))

PROBE = 4
"""Tokens of a draft that nobody is sure of, tried first: beside a prompt they take no time that could be measured."""

ALIKE = 2
"""Tokens in a row that say that text and draft are together again."""

TRIES = 3
"""How often nothing of a draft's piece may stand."""


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens after the prompt, the end token left out; `logprobs` are natural logarithms, that of the end included.

    `accepted` of the draft's tokens were read and stood, each of which saved a run; `runs` is how often the decoder
    ran; `finished`: the end token came; `no_speech`: how likely nobody speaks, as the model told at the start token (0
    for a model without such a token).
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    accepted: int
    runs: int
    finished: bool
    no_speech: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """Over the tokens and the end."""
        return sum(self.logprobs) / (len(self.tokens) + 1)


class Text:
    """What the next run of the decoder is to `read`, and of which of these tokens (`places`, by `rules`) the answers
    are wanted; `take` takes them. The slots before `position` hold what was read and stood.

    The text has at most `limit` tokens: the likeliest, or what `choose` makes of the logits. `give_up` looks at the
    tokens after each, and ends the text where it is true.

    A draft never changes the text: it only saves runs where it is right. Its tokens are read behind those that must be
    read in any case, and stand as far as the answers are the same. So that a draft that is wrong costs nothing, PROBE
    of them are tried first, beside the `sure` ones at its start, and the rest when these stood. Where it goes wrong the
    text goes on token by token until it says again what the draft says (ALIKE tokens in a row), and what follows there
    is tried; a draft that was TRIES times of no use is left alone.

    Raises EngineError for a prompt that is empty or leaves no room.
    """

    def __init__(
        self,
        config: WhisperConfig,
        prompt: Sequence[int],
        end: int,
        *,
        limit: int,
        draft: Sequence[int] = (),
        sure: int = 0,
        choose: Choose | None = None,
        give_up: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        if not prompt:
            raise EngineError("Whisper needs a prompt", next_step="begin with the start token")
        limit = min(limit, config.max_target_positions - len(prompt))
        if limit < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room among {config.max_target_positions}",
                next_step="shorten the prompt, or ask for at least one token",
            )
        self._end, self._limit, self._choose, self._give_up = end, limit, choose, give_up
        self._prompt = len(prompt)
        self._draft = tuple(draft)
        self._tried = 0
        """Place in the draft: what is tried next begins here."""
        self._tries = TRIES
        special = SpecialTokens.of(config.vocab_size)
        self._no_speech_token = special.no_speech if special is not None and special.start in prompt else None
        watched = [] if special is None or self._no_speech_token is None else [prompt.index(special.start)]
        self.position = 0
        self.tokens: list[int] = []
        self._ahead: tuple[int, ...] = self._piece(sure + PROBE)
        first = len(prompt) - 1
        self.read = [*prompt, *self._ahead]
        self.places = [*watched, *range(first, first + len(self._ahead) + 1)]
        self.rules = [ANY] * len(watched) + [FIRST] + [TEXT] * len(self._ahead)
        self._watched = bool(watched)
        self._likelihoods: list[float] = []
        self._accepted = self._runs = 0
        self._no_speech = 0.0

    @property
    def done(self) -> bool:
        if not self.tokens:
            return False
        over = self.tokens[-1] == self._end or len(self.tokens) >= self._limit
        return over or (self._give_up is not None and self._give_up(self.tokens))

    @property
    def steps(self) -> bool:
        """Whether the next run reads one token alone, as those of other rows may."""
        return len(self.read) == 1

    @property
    def looks(self) -> Sequence[int]:
        """The answers of the next run whose logits are looked at, by their places in `places`."""
        return range(len(self.places)) if self._choose is not None else [0] if self._watched else []

    @property
    def left(self) -> int:
        """Tokens that it may still have."""
        return self._limit - len(self.tokens)

    def take(self, following: NDArray[Any], logprobs: Float32, logits: Float32 | Mapping[int, Float32]) -> None:
        """Of one row: int32 [answers], float32 [answers] and float32 [answers, vocabulary] at `places`; of the logits
        those that are looked at suffice."""
        place = 0
        if self._watched:
            shares = np.exp(logits[0] - logits[0].max())
            self._no_speech = float(shares[self._no_speech_token] / shares.sum())
            self._watched, place = False, 1
        stood = 0
        while True:
            self._add(following[place + stood], logprobs[place + stood], logits, place + stood)
            if self.done or stood == len(self._ahead) or self.tokens[-1] != self._ahead[stood]:
                break
            stood += 1
        self._runs += 1
        self._accepted += stood
        self.position = self._prompt + len(self.tokens) - 1
        self._look_ahead(stood)
        self.read = [self.tokens[-1], *self._ahead]
        self.places = list(range(len(self.read)))
        self.rules = [TEXT] * len(self.read)

    def _add(self, following: Any, logprob: Any, logits: Float32 | Mapping[int, Float32], place: int) -> None:
        if self._choose is not None:
            token, likelihood = self._choose(logits[place], self.tokens)
        else:
            token, likelihood = int(following), float(logprob)
        self.tokens.append(token)
        self._likelihoods.append(likelihood)

    def _look_ahead(self, stood: int) -> None:
        """Choose what of the draft the next run tries, where `stood` of `_ahead` did."""
        tried, self._ahead = self._ahead, ()
        self._tried += stood
        if tried and stood == len(tried) and self._follows(self._tried + 1):
            # The answer after the piece is what the draft says too.
            self._tried += 1
            self._ahead = self._piece(self._limit)
            return
        if tried and not stood:
            self._tries -= 1
        if self._tries > 0 and self._tried < len(self._draft):
            again = next(filter(self._follows, self._nearby()), None)
            if again is not None:
                self._tried = again
                self._ahead = self._piece(PROBE)

    def _nearby(self) -> list[int]:
        """Places in the draft after what was tried, those first where the text would be had it as many tokens."""
        places = range(self._tried + ALIKE, len(self._draft) + 1)
        return sorted(places, key=lambda place: abs(place - len(self.tokens)))

    def _follows(self, place: int) -> bool:
        """Whether the text ends as the draft does before `place`."""
        alike = min(ALIKE, place)
        return place <= len(self._draft) and self._draft[place - alike : place] == tuple(self.tokens[-alike:])

    def _piece(self, most: int) -> tuple[int, ...]:
        """Of the draft from `_tried` on. The last token of a text need not be read."""
        room = self._limit - len(self.tokens) - 1
        return self._draft[self._tried : self._tried + max(0, min(most, room))]

    def written(self) -> Written:
        finished = self.tokens[-1] == self._end
        kept = tuple(self.tokens[:-1] if finished else self.tokens)
        return Written(kept, tuple(self._likelihoods), self._accepted, self._runs, finished, self._no_speech)
