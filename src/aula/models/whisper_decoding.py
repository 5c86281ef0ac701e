"""The greedy loop over Whisper's engines: listen once, then write tokens, from a draft if there is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_choice import Choose
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import RULES, SpecialTokens

SLOT_STEP = 64
"""Slots grow by this many; a graph compiled for few shapes serves them all."""

_ANY, _TEXT, _FIRST, _LANGUAGE = range(len(RULES))


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


class WhisperDecoding:
    """One utterance at a time. Not for two threads at once.

    `decoder` serves every shape; `steps` are sessions on the same engine that were opened for one token of one row,
    and are faster at that: the first whose bounds hold a step takes it, and `decoder` takes what none does. Each
    session holds its own copy of the weights.

    From step to step the inputs are the same arrays, of which only the contents change: a session that knows an array
    again need not bind it again.
    """

    def __init__(
        self, config: WhisperConfig, encoder: Session, decoder: Session, *, steps: Sequence[Session] = ()
    ) -> None:
        self._config = config
        self._special = SpecialTokens.of(config.vocab_size)
        self._encoder, self._decoder = encoder, decoder
        self._steps = tuple(steps)
        self._stepping = decoder
        self._cross: dict[str, NDArray[Any]] = {}
        self._heard = np.zeros(1, dtype=np.int64)
        shape = (2 * config.decoder_layers, 1, config.decoder_attention_heads, 0, config.head_size)
        self._past: Float32 = np.zeros(shape, dtype=np.float32)
        self._position = np.zeros(1, dtype=np.int64)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._place = np.zeros((1, 1), dtype=np.int64)
        self._rule = np.full((1, 1), _TEXT, dtype=np.int64)
        self._inputs: dict[str, NDArray[Any]] = {}

    def listen(self, mel: Float32) -> None:
        """float32 [bins, frames]: encode, and forget what was written for an earlier sound."""
        self._cross = self._encoder.run({"mel": mel[None]})
        self._heard[0] = self._cross.pop("hidden").shape[1]
        self._position[0] = 0
        self._bind()

    def language(self, start: int) -> tuple[int, float]:
        """The likeliest language token and its probability among the languages."""
        self._position[0] = 0
        made = self._read([start], [0], [_LANGUAGE])
        self._position[0] = 0
        return int(made["next"][0, 0]), float(np.exp(made["logprob"][0, 0]))

    def write(
        self,
        prompt: Sequence[int],
        end: int,
        *,
        limit: int,
        draft: Sequence[int] = (),
        choose: Choose | None = None,
        give_up: Callable[[Sequence[int]], bool] | None = None,
    ) -> Written:
        """The text of at most `limit` tokens: the greedy one, or what `choose` makes of the logits. A draft never
        changes it: it only saves runs where it is right. `give_up` looks at the tokens after each step, and ends the
        text where it is true."""
        if not prompt:
            raise EngineError("Whisper needs a prompt", next_step="begin with the start token")
        limit = min(limit, self._config.max_target_positions - len(prompt))
        if limit < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room among {self._config.max_target_positions}",
                next_step="shorten the prompt, or ask for at least one token",
            )
        draft = list(draft)[: max(0, limit - 1)]
        # 1. Prompt and draft in one run; what follows the start token tells whether anybody speaks.
        first = len(prompt) - 1
        start = self._special.start if self._special is not None else -1
        watched = [prompt.index(start)] if start in prompt else []
        places = [*watched, *range(first, first + len(draft) + 1)]
        rules = [_ANY] * len(watched) + [_FIRST] + [_TEXT] * len(draft)
        self._position[0] = 0
        made = self._read([*prompt, *draft], places, rules)
        no_speech = self._no_speech(made["logits"][0, 0]) if watched else 0.0
        answers = _Answers(made, len(watched), choose)
        tokens: list[int] = []
        likelihoods: list[float] = []
        accepted = 0
        while True:
            token, likelihood = answers.choice(accepted, tokens)
            tokens.append(token)
            likelihoods.append(likelihood)
            right = accepted < len(draft) and token == draft[accepted] != end
            if not right or (give_up and give_up(tokens)):
                break
            accepted += 1
        # 2. Slots beyond what was accepted are overwritten.
        self._position[0] = len(prompt) + accepted
        runs = 1
        # 3. One token at a time.
        while tokens[-1] != end and len(tokens) < limit and not (give_up and give_up(tokens)):
            token, likelihood = _Answers(self._step(tokens[-1]), 0, choose).choice(0, tokens)
            tokens.append(token)
            likelihoods.append(likelihood)
            runs += 1
        finished = tokens[-1] == end
        kept = tuple(tokens[:-1] if finished else tokens)
        return Written(kept, tuple(likelihoods), accepted, runs, finished, no_speech)

    def _no_speech(self, logits: Float32) -> float:
        assert self._special is not None
        shares = np.exp(logits - logits.max())
        return float(shares[self._special.no_speech] / shares.sum())

    def _read(self, tokens: Sequence[int], places: Sequence[int], rules: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Several tokens at once, and what follows those at `places`."""
        if not self._cross:
            raise EngineError("nothing was listened to", next_step="call listen() first")
        self._reserve(len(tokens))
        given = {"tokens": tokens, "places": places, "rule": rules}
        made = self._decoder.run(
            {**self._inputs, **{name: np.array([array], dtype=np.int64) for name, array in given.items()}}
        )
        self._keep(made["new"])
        return made

    def _step(self, token: int) -> dict[str, NDArray[Any]]:
        self._reserve(1)
        self._token[0, 0] = token
        made = self._stepping.run(self._inputs)
        self._keep(made["new"])
        return made

    def _keep(self, new: Float32) -> None:
        """Into the slots, all layers in one assignment."""
        position, count = int(self._position[0]), new.shape[3]
        self._past[:, :, :, position : position + count] = new
        self._position[0] = position + count

    def _reserve(self, count: int) -> None:
        """Make room for `count` more tokens, keeping what is written."""
        slots, needed = self._past.shape[3], int(self._position[0]) + count
        if needed <= slots:
            return
        grown = min(-(-needed // SLOT_STEP) * SLOT_STEP, self._config.max_target_positions)
        self._past = np.pad(self._past, ((0, 0), (0, 0), (0, 0), (0, grown - slots), (0, 0)))
        self._bind()

    def _bind(self) -> None:
        """The inputs of a step, and the session that takes them."""
        past = {
            f"past_{part}.{layer}": self._past[2 * layer + place]
            for layer in range(self._config.decoder_layers)
            for place, part in enumerate("kv")
        }
        named = {"tokens": self._token, "places": self._place, "position": self._position, "heard": self._heard}
        self._inputs = {**named, "rule": self._rule, **self._cross, **past}
        self._stepping = next((session for session in self._steps if _serves(session, self._inputs)), self._decoder)


class _Answers:
    """What one run of the decoder says after each place, the first `passed` left out."""

    def __init__(self, made: dict[str, NDArray[Any]], passed: int, choose: Choose | None) -> None:
        self._following, self._logprobs = made["next"][0, passed:], made["logprob"][0, passed:]
        self._logits = made["logits"][0, passed:]
        self._choose = choose

    def choice(self, place: int, tokens: Sequence[int]) -> tuple[int, float]:
        if self._choose is not None:
            return self._choose(self._logits[place], tokens)
        return int(self._following[place]), float(self._logprobs[place])


def _serves(session: Session, inputs: dict[str, NDArray[Any]]) -> bool:
    return all(
        least <= size <= greatest
        for name, limits in session.options.bounds.items()
        for size, (least, greatest) in zip(inputs[name].shape, limits, strict=True)
    )
