"""Many utterances on a GPU: the same texts as on a CPU (`whisper_rows`), whose caches the host never sees.

While nobody looks at a text's logits it is the device that goes on: some steps are started at once, and what they wrote
is taken token by token, as if each had been waited for. What lies behind a text's end is left alone.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_device import ASK, LINE, LISTEN, LOOK, SPARE, STEP
from aula.models.whisper_reader import ROWS
from aula.models.whisper_text import ANY, LANGUAGE, Text

AHEAD = 4
"""Steps between two looks. One more costs its own time where a text ends there, one less a wait of the host."""


class DeviceSound:
    """What the encoder made of one sound lies on the device, at a number that is free again when nobody has it."""

    def __init__(self, number: int, positions: int, free: list[int]) -> None:
        self.number, self.positions = number, positions
        weakref.finalize(self, free.append, number)

    def keep(self) -> None:
        """It lies where no other sound will."""


class DeviceEngine:
    """Implements `Engine` on a session that is a `WhisperDevice`, here or in a process of its own."""

    def __init__(self, config: WhisperConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._free: list[int] = []
        self._numbers = 0
        self._silence = np.zeros((config.num_mel_bins, 1), dtype=np.float32)
        self._nothing = np.zeros((1, LINE), dtype=np.int32)

    def listen(self, mel: Float32) -> DeviceSound:
        """float32 [bins, frames]"""
        if not self._free:
            self._free.append(self._numbers)
            self._numbers += 1
        sound = DeviceSound(self._free.pop(), mel.shape[1] // 2, self._free)
        self._session.run({"ask": _ask(LISTEN, sound.number), "lines": self._nothing, "mel": mel})
        return sound

    def rows(self) -> "DeviceRows":
        return DeviceRows(self)

    def look(
        self, sound: DeviceSound, row: int, position: int, lines: list[tuple[int, int, bool]]
    ) -> dict[str, NDArray[Any]]:
        """Of one row: tokens, rules, and whether their logits are wanted."""
        return self._run(_ask(LOOK, sound.number, row, position), [(*line, 0) for line in lines])

    def step(self, count: int, lines: list[tuple[int, int, int, bool]]) -> dict[str, NDArray[Any]]:
        """Of several rows: their numbers, the tokens that they read, their places, and whether logits are wanted."""
        return self._run(_ask(STEP, count), lines)

    def _run(self, ask: NDArray[np.int32], lines: list[Any]) -> dict[str, NDArray[Any]]:
        return self._session.run({"ask": ask, "lines": np.array(lines, dtype=np.int32), "mel": self._silence})


class DeviceRows:
    """Implements `Rows`. Not for two threads at once. A text keeps the row that it was given, to its end."""

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._at: dict[int, tuple[DeviceSound, Text]] = {}

    def __len__(self) -> int:
        return len(self._at)

    @property
    def is_full(self) -> bool:
        return len(self) >= ROWS

    def language(self, sound: DeviceSound, start: int) -> tuple[int, float]:
        """The likeliest language token and its probability among the languages."""
        made = self._engine.look(sound, SPARE, 0, [(start, LANGUAGE, False)])
        return int(made["next"][0]), float(np.exp(made["logprob"][0]))

    def join(self, sound: DeviceSound, text: Text) -> bool:
        """Read the prompt, and of the draft what stands; False for a text that is at its end with that, and needs no
        row.

        Raises EngineError where all rows are taken.
        """
        if self.is_full:
            raise EngineError(f"all {ROWS} rows are taken", next_step="wait until step() gives one back")
        row = next(row for row in range(ROWS) if row not in self._at)
        while not (text.done or (text.tokens and text.steps)):
            self._read_on(row, sound, text)
        if text.done:
            return False
        self._at[row] = (sound, text)
        return True

    def step(self) -> list[Text]:
        """More tokens for every row. The texts that came to their end leave, and are returned."""
        for row, (sound, text) in self._at.items():
            while not (text.steps or text.done):
                self._read_on(row, sound, text)
        ended = self._leave_done()
        if self._at:
            self._step_all()
        return ended + self._leave_done()

    def leave(self, text: Text) -> None:
        """Its row is free, whether or not it came to its end."""
        self._at = {row: (sound, known) for row, (sound, known) in self._at.items() if known is not text}

    def look_again(self) -> None:
        """Sounds lie where they lay."""

    def _leave_done(self) -> list[Text]:
        ended = [text for _, text in self._at.values() if text.done]
        for text in ended:
            self.leave(text)
        return ended

    def _read_on(self, row: int, sound: DeviceSound, text: Text) -> None:
        """The next run of a text alone."""
        rules = dict(zip(text.places, text.rules, strict=True))
        seen = {text.places[answer] for answer in text.looks}
        lines = [(token, rules.get(place, ANY), place in seen) for place, token in enumerate(text.read)]
        made = self._engine.look(sound, row, text.position, lines)
        order = sorted(seen)
        logits = {answer: made["logits"][order.index(text.places[answer])] for answer in text.looks}
        text.take(made["next"][text.places], made["logprob"][text.places], logits)

    def _step_all(self) -> None:
        texts = [(row, text, bool(text.looks)) for row, (_, text) in self._at.items()]
        looked = any(looks for *_, looks in texts)
        count = 1 if looked else min(AHEAD, max(text.left for _, text, _ in texts))
        made = self._engine.step(count, [(row, text.read[0], text.position, looks) for row, text, looks in texts])
        lines = iter(made["logits"])
        for place, (_, text, looks) in enumerate(texts):
            logits: Mapping[int, Float32] = {0: next(lines)} if looks else {}
            for answer in range(place * count, (place + 1) * count):
                if text.done or not text.steps:
                    break
                text.take(made["next"][answer : answer + 1], made["logprob"][answer : answer + 1], logits)


def _ask(*words: int) -> NDArray[np.int32]:
    ask = np.zeros(ASK, dtype=np.int32)
    ask[: len(words)] = words
    return ask
