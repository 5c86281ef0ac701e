"""Many utterances in one decoder (continuous batching): a row joins when its prompt is read, and leaves at its end
while the others go on. What a row writes does not depend on who shares the batch.

A step of four rows reads the weights once, as a step of one does; that is what most of a step takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_decoding import SLOT_STEP, serves
from aula.models.whisper_text import TEXT, Text

Tensors = Mapping[str, NDArray[Any]]


class WhisperRows:
    """At most `most` rows. Not for two threads at once. `steps` as for `WhisperDecoding`.

    Rows lie one behind the other, so that a step takes the first so many of every array as they are; when one leaves,
    the last takes its place.
    """

    def __init__(self, config: WhisperConfig, decoder: Session, *, most: int, steps: Sequence[Session] = ()) -> None:
        self._config, self._decoder, self._steps, self._most = config, decoder, tuple(steps), most
        self._texts: list[Text] = []
        self._past = self._empty(1, SLOT_STEP)
        self._cross: dict[str, Float32] = {}
        self._position = np.zeros(most, dtype=np.int64)
        self._heard = np.zeros(most, dtype=np.int64)
        self._token = np.zeros((most, 1), dtype=np.int64)
        self._inputs: dict[str, NDArray[Any]] = {}
        self._stepping = decoder

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def is_full(self) -> bool:
        return len(self) >= self._most

    def join(self, encoded: Tensors, text: Text) -> bool:
        """Read the prompt; False for a text that is at its end with that, and needs no row. `encoded` is what the
        encoder made of the row's sound, alone.

        Raises EngineError where all rows are taken.
        """
        if self.is_full:
            raise EngineError(f"all {self._most} rows are taken", next_step="wait until step() gives one back")
        cross = {name: array for name, array in encoded.items() if name.startswith("cross_")}
        heard = cross["cross_k.0"].shape[2]
        # Alone, in as many slots as one utterance has: as if nobody else were there.
        slots = -(-len(text.read) // SLOT_STEP) * SLOT_STEP
        given = {"tokens": text.read, "places": text.places, "rule": text.rules}
        made = self._decoder.run(
            {
                **{name: np.array([array], dtype=np.int64) for name, array in given.items()},
                **self._named(np.zeros(1, np.int64), np.array([heard]), self._empty(1, slots)),
                **cross,
            }
        )
        text.begin(made["next"][0], made["logprob"][0], made["logits"][0])
        if text.done:
            return False
        row = len(self)
        self._reserve(row + 1, len(text.read) + 1, heard)
        self._past[:, row, :, : len(text.read)] = made["new"][:, 0]
        for name, array in cross.items():
            self._cross[name][row, :, :heard] = array[0]
        self._heard[row] = heard
        self._texts.append(text)
        self._inputs = {}
        return True

    def step(self) -> list[Text]:
        """One more token for every row. The texts that came to their end leave, and are returned."""
        if not self._texts:
            return []
        rows = len(self)
        for row, text in enumerate(self._texts):
            self._token[row, 0], self._position[row] = text.tokens[-1], text.position
        self._reserve(rows, int(self._position[:rows].max()) + 1, 1)
        if not self._inputs:
            self._bind(rows)
        made = self._stepping.run(self._inputs)
        for row, text in enumerate(self._texts):
            self._past[:, row, :, text.position] = made["new"][:, row, :, 0]
            text.add(made["next"][row, 0], made["logprob"][row, 0], made["logits"][row, 0])
        ended = [text for text in self._texts if text.done]
        for text in ended:
            self._leave(self._texts.index(text))
        return ended

    def write_all(self, jobs: Iterable[tuple[Tensors, Text]]) -> None:
        """Every text to its end; a job is taken when there is a row for it."""
        for encoded, text in jobs:
            while self.is_full:
                self.step()
            self.join(encoded, text)
        while self._texts:
            self.step()

    def _leave(self, row: int) -> None:
        last = len(self) - 1
        if row != last:
            self._past[:, row] = self._past[:, last]
            for array in self._cross.values():
                array[row] = array[last]
            self._heard[row] = self._heard[last]
            self._texts[row] = self._texts[last]
        self._texts.pop()
        self._inputs = {}

    def _reserve(self, rows: int, slots: int, heard: int) -> None:
        """Room for so many, keeping what is there."""
        slots = min(-(-slots // SLOT_STEP) * SLOT_STEP, self._config.max_target_positions)
        shape = self._past.shape
        if rows > shape[1] or slots > shape[3]:
            grown = [(0, 0), (0, max(0, rows - shape[1])), (0, 0), (0, max(0, slots - shape[3])), (0, 0)]
            self._past = np.pad(self._past, grown)
            self._inputs = {}
        most = self._cross["cross_k.0"].shape if self._cross else (0, 0, 0, 0)
        if rows > most[0] or heard > most[2]:
            size = (
                max(rows, most[0]),
                self._config.decoder_attention_heads,
                max(heard, most[2]),
                self._config.head_size,
            )
            for name in [f"cross_{part}.{layer}" for layer in range(self._config.decoder_layers) for part in "kv"]:
                fresh = np.zeros(size, dtype=np.float32)
                if name in self._cross:
                    fresh[: most[0], :, : most[2]] = self._cross[name]
                self._cross[name] = fresh
            self._inputs = {}

    def _bind(self, rows: int) -> None:
        self._inputs = {
            "tokens": self._token[:rows],
            "places": np.zeros((rows, 1), dtype=np.int64),
            "rule": np.full((rows, 1), TEXT, dtype=np.int64),
            **self._named(self._position[:rows], self._heard[:rows], self._past[:, :rows]),
            **{name: array[:rows] for name, array in self._cross.items()},
        }
        self._stepping = next((one for one in self._steps if serves(one, self._inputs)), self._decoder)

    def _named(self, position: NDArray[Any], heard: NDArray[Any], past: Float32) -> dict[str, NDArray[Any]]:
        caches = {
            f"past_{part}.{layer}": past[2 * layer + place]
            for layer in range(self._config.decoder_layers)
            for place, part in enumerate("kv")
        }
        return {"position": position, "heard": heard, **caches}

    def _empty(self, rows: int, slots: int) -> Float32:
        config = self._config
        shape = (2 * config.decoder_layers, rows, config.decoder_attention_heads, slots, config.head_size)
        return np.zeros(shape, dtype=np.float32)
