"""The greedy loop over Whisper's engines: listen once, then write tokens, from a draft if there is one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_choice import Choose
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_text import LANGUAGE, TEXT, Text, Written

__all__ = ["WhisperDecoding", "Written"]

SLOT_STEP = 64
"""Slots grow by this many; a graph compiled for few shapes serves them all."""


class WhisperDecoding:
    """One utterance at a time. Not for two threads at once.

    From step to step the inputs are the same arrays, of which only the contents change: a session that knows an array
    again need not bind it again.
    """

    def __init__(self, config: WhisperConfig, encoder: Session, decoder: Session) -> None:
        self._config = config
        self._encoder, self._decoder = encoder, decoder
        self._cross: dict[str, NDArray[Any]] = {}
        self._heard = np.zeros(1, dtype=np.int64)
        shape = (2 * config.decoder_layers, 1, config.decoder_attention_heads, 0, config.head_size)
        self._past: Float32 = np.zeros(shape, dtype=np.float32)
        self._position = np.zeros(1, dtype=np.int64)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._place = np.zeros((1, 1), dtype=np.int64)
        self._rule = np.full((1, 1), TEXT, dtype=np.int64)
        self._inputs: dict[str, NDArray[Any]] = {}

    def listen(self, mel: Float32) -> None:
        """float32 [bins, frames]: encode, and forget what was written for an earlier sound."""
        self._cross = self._encoder.borrow({"mel": mel[None]})
        self._heard[0] = self._cross.pop("hidden").shape[1]
        self._position[0] = 0
        self._bind()

    def language(self, start: int) -> tuple[int, float]:
        """The likeliest language token and its probability among the languages."""
        self._position[0] = 0
        made = self._read([start], [0], [LANGUAGE])
        self._position[0] = 0
        return int(made["next"][0, 0]), float(np.exp(made["logprob"][0, 0]))

    def write(
        self,
        prompt: Sequence[int],
        end: int,
        *,
        limit: int,
        draft: Sequence[int] = (),
        sure: int = 0,
        choose: Choose | None = None,
        give_up: Callable[[Sequence[int]], bool] | None = None,
    ) -> Written:
        """The text of at most `limit` tokens; see `Text`."""
        text = Text(self._config, prompt, end, limit=limit, draft=draft, sure=sure, choose=choose, give_up=give_up)
        while not text.done:
            # Slots beyond what stood are overwritten.
            self._position[0] = text.position
            made = self._step(text.read[0]) if text.steps else self._read(text.read, text.places, text.rules)
            text.take(made["next"][0], made["logprob"][0], made["logits"][0])
        return text.written()

    def _read(self, tokens: Sequence[int], places: Sequence[int], rules: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Several tokens at once, and what follows those at `places`."""
        if not self._cross:
            raise EngineError("nothing was listened to", next_step="call listen() first")
        self._reserve(len(tokens))
        given = {"tokens": tokens, "places": places, "rule": rules}
        made = self._decoder.borrow(
            {**self._inputs, **{name: np.array([array], dtype=np.int64) for name, array in given.items()}}
        )
        self._keep(made["new"])
        return made

    def _step(self, token: int) -> dict[str, NDArray[Any]]:
        self._reserve(1)
        self._token[0, 0] = token
        made = self._decoder.borrow(self._inputs)
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
        """The inputs of a step."""
        past = {
            f"past_{part}.{layer}": self._past[2 * layer + place]
            for layer in range(self._config.decoder_layers)
            for place, part in enumerate("kv")
        }
        named = {"tokens": self._token, "places": self._place, "position": self._position, "heard": self._heard}
        self._inputs = {**named, "rule": self._rule, **self._cross, **past}
