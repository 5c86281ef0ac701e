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
from aula.models.whisper_decoding import SLOT_STEP
from aula.models.whisper_text import LANGUAGE, TEXT, Text


class Sound:
    """What the encoder made of one sound: cross keys and values by name, float32 [1, heads, positions, size]."""

    def __init__(self, encoded: Mapping[str, NDArray[Any]]) -> None:
        self.cross = {name: array for name, array in encoded.items() if name.startswith("cross_")}

    @property
    def positions(self) -> int:
        return int(self.cross["cross_k.0"].shape[2])

    def keep(self) -> None:
        """The arrays were the encoder's own memory, and are the sound's from now on."""
        self.cross = {name: array.copy() for name, array in self.cross.items()}


class HostEngine:
    """Implements `Engine` (`whisper_passes`) on an encoder and a decoder whose caches the host has."""

    def __init__(self, config: WhisperConfig, encoder: Session, decoder: Session, *, most: int) -> None:
        self._config, self._encoder, self._decoder, self._most = config, encoder, decoder, most

    def listen(self, mel: Float32) -> Sound:
        """float32 [bins, frames]; the sound lies in the encoder's own memory until it is kept or another is heard."""
        return Sound(self._encoder.borrow({"mel": mel[None]}))

    def rows(self) -> "WhisperRows":
        return WhisperRows(self._config, self._decoder, most=self._most)


class WhisperRows:
    """At most `most` rows. Not for two threads at once.

    Rows lie one behind the other, so that a step takes the first so many of every array as they are; when one leaves,
    the last takes its place. A row that is alone is read where its sound lies; only several are put beside each other.
    """

    def __init__(self, config: WhisperConfig, decoder: Session, *, most: int) -> None:
        self._config, self._decoder, self._most = config, decoder, most
        self._texts: list[Text] = []
        self._sounds: list[Sound] = []
        self._lies: list[bool] = []
        """Whether the row's sound lies at its place in `_cross`."""
        self._past = self._empty(1, SLOT_STEP)
        self._cross: dict[str, Float32] = {}
        self._position = np.zeros(most, dtype=np.int64)
        self._heard = np.zeros(most, dtype=np.int64)
        self._token = np.zeros((most, 1), dtype=np.int64)
        self._inputs: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def is_full(self) -> bool:
        return len(self) >= self._most

    def language(self, sound: Sound, start: int) -> tuple[int, float]:
        """The likeliest language token and its probability among the languages."""
        made = self._read(sound, [start], [0], [LANGUAGE], 0, self._empty(1, SLOT_STEP))
        return int(made["next"][0, 0]), float(np.exp(made["logprob"][0, 0]))

    def join(self, sound: Sound, text: Text) -> bool:
        """Read the prompt, and of the draft what stands; False for a text that is at its end with that, and needs no
        row.

        Raises EngineError where all rows are taken.
        """
        if self.is_full:
            raise EngineError(f"all {self._most} rows are taken", next_step="wait until step() gives one back")
        past = self._empty(1, SLOT_STEP)
        while not (text.done or (text.tokens and text.steps)):
            past = self._read_on(sound, text, past)
        if text.done:
            return False
        row = len(self)
        self._reserve(row + 1, text.position + 1)
        self._past[:, row, :, : text.position] = past[:, 0, :, : text.position]
        self._heard[row] = sound.positions
        self._texts.append(text)
        self._sounds.append(sound)
        self._lies.append(False)
        self._inputs = {}
        return True

    def step(self) -> list[Text]:
        """One more token for every row. The texts that came to their end leave, and are returned."""
        for row, text in enumerate(self._texts):
            while not (text.steps or text.done):
                self._check_ahead(row, text)
        ended = [text for text in self._texts if text.done]
        for text in ended:
            self.leave(text)
        return ended + self._step_all() if self._texts else ended

    def _check_ahead(self, row: int, text: Text) -> None:
        """What of its draft may stand, in a run of its own."""
        past = self._read_on(self._sounds[row], text, self._past[:, row : row + 1])
        self._reserve(len(self), text.position + 1)
        self._past[:, row, :, : text.position] = past[:, 0, :, : text.position]

    def _step_all(self) -> list[Text]:
        rows = len(self)
        for row, text in enumerate(self._texts):
            self._token[row, 0], self._position[row] = text.read[0], text.position
        self._reserve(rows, int(self._position[:rows].max()) + 1)
        if not self._inputs:
            self._bind(rows)
        made = self._decoder.borrow(self._inputs)
        for row, text in enumerate(self._texts):
            self._past[:, row, :, text.position] = made["new"][:, row, :, 0]
            text.take(made["next"][row], made["logprob"][row], made["logits"][row])
        ended = [text for text in self._texts if text.done]
        for text in ended:
            self.leave(text)
        return ended

    def write_all(self, jobs: Iterable[tuple[Sound, Text]]) -> None:
        """Every text to its end; a job is taken when there is a row for it."""
        for sound, text in jobs:
            while self.is_full:
                self.step()
            self.join(sound, text)
        while self._texts:
            self.step()

    def leave(self, text: Text) -> None:
        """Its row is free, whether or not it came to its end. With the last row goes the memory of several."""
        row, last = self._texts.index(text), len(self) - 1
        if row != last:
            self._past[:, row] = self._past[:, last]
            self._heard[row] = self._heard[last]
            self._texts[row], self._sounds[row], self._lies[row] = self._texts[last], self._sounds[last], False
        for rows in (self._texts, self._sounds, self._lies):
            rows.pop()
        self._inputs = {}
        if not self._texts:
            self._cross = {}

    def look_again(self) -> None:
        """A sound lies elsewhere now (`Sound.keep`)."""
        self._inputs = {}

    def _read_on(self, sound: Sound, text: Text, past: Float32) -> Float32:
        """The next run of a text alone, as if nobody else were there; its slots with what that wrote into them."""
        begin, end = text.position, text.position + len(text.read)
        slots = -(-end // SLOT_STEP) * SLOT_STEP
        room = self._empty(1, slots)
        room[:, :, :, :begin] = past[:, :, :, :begin]
        made = self._read(sound, text.read, text.places, text.rules, begin, room)
        room[:, :, :, begin:end] = made["new"]
        text.take(made["next"][0], made["logprob"][0], made["logits"][0])
        return room

    def _read(
        self,
        sound: Sound,
        tokens: Sequence[int],
        places: Sequence[int],
        rules: Sequence[int],
        position: int,
        past: Float32,
    ) -> dict[str, NDArray[Any]]:
        given = {"tokens": tokens, "places": places, "rule": rules}
        return self._decoder.borrow(
            {
                **{name: np.array([array], dtype=np.int64) for name, array in given.items()},
                **self._named(np.array([position]), np.array([sound.positions]), past),
                **sound.cross,
            }
        )

    def _reserve(self, rows: int, slots: int) -> None:
        """Room for what is written, keeping what is there."""
        slots = min(-(-slots // SLOT_STEP) * SLOT_STEP, self._config.max_target_positions)
        shape = self._past.shape
        if rows > shape[1] or slots > shape[3]:
            grown = [(0, 0), (0, max(0, rows - shape[1])), (0, 0), (0, max(0, slots - shape[3])), (0, 0)]
            self._past = np.pad(self._past, grown)
            self._inputs = {}

    def _bind(self, rows: int) -> None:
        cross = self._sounds[0].cross if rows == 1 else self._side_by_side(rows)
        self._inputs = {
            "tokens": self._token[:rows],
            "places": np.zeros((rows, 1), dtype=np.int64),
            "rule": np.full((rows, 1), TEXT, dtype=np.int64),
            **self._named(self._position[:rows], self._heard[:rows], self._past[:, :rows]),
            **cross,
        }

    def _side_by_side(self, rows: int) -> dict[str, Float32]:
        """The sounds of so many rows; beyond what a row heard anything may stand."""
        heard = int(self._heard[:rows].max())
        room = next(iter(self._cross.values())).shape if self._cross else (0, 0, 0, 0)
        if rows > room[0] or heard > room[2]:
            shape = (
                max(rows, room[0]),
                self._config.decoder_attention_heads,
                max(heard, room[2]),
                self._config.head_size,
            )
            self._cross = {name: np.zeros(shape, dtype=np.float32) for name in self._sounds[0].cross}
            self._lies = [False] * len(self)
        for row in range(rows):
            if not self._lies[row]:
                for name, array in self._sounds[row].cross.items():
                    self._cross[name][row, :, : array.shape[2]] = array[0]
                self._lies[row] = True
        return {name: array[:rows] for name, array in self._cross.items()}

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
