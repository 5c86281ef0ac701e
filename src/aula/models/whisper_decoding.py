"""The greedy loop over Whisper's two engines: listen once, then write tokens, from a draft if there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import RULES

SLOT_STEP = 64
"""Slots grow by this many; a graph compiled for few shapes serves them all."""

_ANY, _TEXT, _FIRST, _LANGUAGE = range(len(RULES))


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens after the prompt, the end token left out; `logprobs` are natural logarithms, that of the end included.

    `accepted` of the draft's tokens stood; `runs` is how often the decoder ran; `finished`: the end token came.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    accepted: int
    runs: int
    finished: bool


class WhisperDecoding:
    """One utterance at a time on an encoder and a decoder session. Not for two threads at once."""

    def __init__(self, config: WhisperConfig, encoder: Session, decoder: Session) -> None:
        self._config = config
        self._encoder, self._decoder = encoder, decoder
        self._cross: dict[str, NDArray[Any]] = {}
        self._heard = 0
        self._past: dict[str, Float32] = {}
        self._names = [f"{part}.{layer}" for part in "kv" for layer in range(config.decoder_layers)]
        self._slots = 0
        self._position = 0

    def listen(self, mel: Float32) -> None:
        """float32 [bins, frames]: encode, and forget what was written for an earlier sound."""
        self._cross = self._encoder.run({"mel": mel[None]})
        self._heard = self._cross.pop("hidden").shape[1]
        self._position = 0

    def language(self, start: int) -> tuple[int, float]:
        """The likeliest language token and its probability among the languages."""
        self._position = 0
        following, logprobs = self._run([start], [_LANGUAGE])
        self._position = 0
        return int(following[0]), float(np.exp(logprobs[0]))

    def write(self, prompt: Sequence[int], end: int, *, limit: int, draft: Sequence[int] = ()) -> Written:
        """The greedy text of at most `limit` tokens. A draft never changes it: it only saves runs where it is right."""
        if not prompt:
            raise EngineError("Whisper needs a prompt", next_step="begin with the start token")
        limit = min(limit, self._config.max_target_positions - len(prompt))
        draft = list(draft)[: max(0, limit - 1)]
        # 1. Prompt and draft in one run.
        rules = [_ANY] * (len(prompt) - 1) + [_FIRST] + [_TEXT] * len(draft)
        self._position = 0
        following, logprobs = self._run([*prompt, *draft], rules)
        following, logprobs = following[len(prompt) - 1 :], logprobs[len(prompt) - 1 :]
        accepted = 0
        while accepted < len(draft) and following[accepted] == draft[accepted] != end:
            accepted += 1
        tokens = [int(token) for token in following[: accepted + 1]]
        likelihoods = [float(value) for value in logprobs[: accepted + 1]]
        # 2. Slots beyond what was accepted are overwritten.
        self._position = len(prompt) + accepted
        runs = 1
        # 3. One token at a time.
        while tokens[-1] != end and len(tokens) < limit:
            following, logprobs = self._run(tokens[-1:], [_TEXT])
            tokens.append(int(following[0]))
            likelihoods.append(float(logprobs[0]))
            runs += 1
        finished = tokens[-1] == end
        return Written(tuple(tokens[:-1] if finished else tokens), tuple(likelihoods), accepted, runs, finished)

    def _run(self, tokens: Sequence[int], rules: Sequence[int]) -> tuple[NDArray[np.int32], Float32]:
        if not self._cross:
            raise EngineError("nothing was listened to", next_step="call listen() first")
        count = len(tokens)
        self._reserve(self._position + count)
        made = self._decoder.run(
            {
                "tokens": np.array([tokens], dtype=np.int64),
                "position": np.array([self._position], dtype=np.int64),
                "heard": np.array([self._heard], dtype=np.int64),
                "rule": np.array([rules], dtype=np.int64),
                **self._cross,
                **self._past,
            }
        )
        for name in self._names:
            self._past[f"past_{name}"][:, :, self._position : self._position + count] = made[f"new_{name}"]
        self._position += count
        return made["next"][0], made["logprob"][0]

    def _reserve(self, needed: int) -> None:
        """Make room for `needed` slots, keeping what is written."""
        if needed <= self._slots:
            return
        slots = min(-(-needed // SLOT_STEP) * SLOT_STEP, self._config.max_target_positions)
        shape = (1, self._config.decoder_attention_heads, slots, self._config.head_size)
        for name in self._names:
            grown = np.zeros(shape, dtype=np.float32)
            if self._slots:
                grown[:, :, : self._slots] = self._past[f"past_{name}"]
            self._past[f"past_{name}"] = grown
        self._slots = slots
