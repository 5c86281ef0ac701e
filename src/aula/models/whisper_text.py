"""One text while it is written: what the decoder is asked about it, and what becomes of the answers.

Loops differ in how many texts they write at once; this is what they share.
"""

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens after the prompt, the end token left out; `logprobs` are natural logarithms, that of the end included.

    `accepted` of the draft's tokens stood; `runs` is how often the decoder ran; `finished`: the end token came;
    `no_speech`: how likely nobody speaks, as the model told at the start token (0 for a model without such a token).
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
    """`begin` takes the answers to prompt and draft, `add` those to each later token.

    The text has at most `limit` tokens: the likeliest, or what `choose` makes of the logits. A draft never changes it:
    it only saves runs where it is right. `give_up` looks at the tokens after each, and ends the text where it is true.
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
        self._draft = list(draft)[: max(0, limit - 1)]
        self.read = [*prompt, *self._draft]
        """Tokens of the first run."""
        special = SpecialTokens.of(config.vocab_size)
        self._no_speech_token = special.no_speech if special is not None and special.start in prompt else None
        self._watched = [] if special is None or self._no_speech_token is None else [prompt.index(special.start)]
        first = len(prompt) - 1
        self.places = [*self._watched, *range(first, first + len(self._draft) + 1)]
        """Of these tokens the answers are wanted, by `rules`: the start token's, the prompt's last, the draft's."""
        self.rules = [ANY] * len(self._watched) + [FIRST] + [TEXT] * len(self._draft)
        self.tokens: list[int] = []
        self._likelihoods: list[float] = []
        self._accepted = self._runs = 0
        self._no_speech = 0.0

    @property
    def position(self) -> int:
        """Slots that hold what was read and stood: the next run begins there, with the last token."""
        return self._prompt + len(self.tokens) - 1

    @property
    def done(self) -> bool:
        over = self.tokens[-1] == self._end or len(self.tokens) >= self._limit
        return over or (self._give_up is not None and self._give_up(self.tokens))

    def begin(self, following: NDArray[Any], logprobs: Float32, logits: Float32) -> None:
        """Of one row: int32 [answers], float32 [answers] and float32 [answers, vocabulary] at `places`."""
        if self._watched:
            shares = np.exp(logits[0] - logits[0].max())
            self._no_speech = float(shares[self._no_speech_token] / shares.sum())
        passed = len(self._watched)
        while True:
            place = passed + self._accepted
            self.add(following[place], logprobs[place], logits[place])
            if self._accepted == len(self._draft) or self.tokens[-1] != self._draft[self._accepted] or self.done:
                break
            self._accepted += 1
        self._runs = 1

    def add(self, following: Any, logprob: Any, logits: Float32) -> None:
        """The answer after the last token."""
        if self._choose is not None:
            token, likelihood = self._choose(logits, self.tokens)
        else:
            token, likelihood = int(following), float(logprob)
        self.tokens.append(token)
        self._likelihoods.append(likelihood)
        self._runs += 1

    def written(self) -> Written:
        finished = self.tokens[-1] == self._end
        kept = tuple(self.tokens[:-1] if finished else self.tokens)
        return Written(kept, tuple(self._likelihoods), self._accepted, self._runs, finished, self._no_speech)
