"""Whisper whole on a GPU, as one session: what a sound was encoded to, texts and caches stay there, and asks go in.

One session, so that it may live in a process of its own (`HostedSession`): no part is of use without the others.
An ask is whole numbers, and the answer is what a CPU's decoder answers: next tokens, their log probabilities, and the
logits of the lines that are looked at. Who asks for what is decided elsewhere (`whisper_device_rows`).
"""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from aula.backends.device_memory import Mirror
from aula.backends.device_session import DeviceSession
from aula.backends.device_tensor import DeviceTensor
from aula.backends.session import Session, SessionOptions, Tensors
from aula.core.errors import BundleError, EngineError
from aula.core.types import TensorSpec
from aula.engine.bundle import Bundle
from aula.models.whisper_reader import READ, READ_PROFILE, ROWS, ROWS_PROFILE, STEP_PROFILE
from aula.models.whisper_text import TEXT

LISTEN, LOOK, STEP = range(3)
"""First of an `ask`: the sound `ask[1]` is what `mel` encodes to. The row `ask[2]` hears the sound `ask[1]`, and reads
from its place `ask[3]` on: `lines` are tokens, rules, and whether their logits are looked at. Rows go `ask[1]` tokens
on: `lines` are rows, the tokens that they read first, their places, and whether logits are looked at."""
ASK, LINE = 4, 4
SPARE = ROWS
"""A row beside those that write: what is read there is forgotten."""
_CACHES = ("self_kv", "cross_k", "cross_v")


class WhisperDevice(Session):
    """Inputs: ask, int32 [ASK]; lines, int32 [lines, LINE]; mel, float32 [bins, frames], of any length where nothing is
    listened to. Outputs: next, int32, and logprob, float32, each of all tokens one after the other, row by row; logits,
    float32 [lines that are looked at, vocabulary]. An ask to listen has no outputs.

    Not for two threads at once. The sessions are closed with it.
    """

    backend = "kernels"
    keeps_states = True

    def __init__(
        self, encoders: Sequence[DeviceSession], step: DeviceSession, rows: DeviceSession, read: DeviceSession
    ) -> None:
        self._step, self._rows, self._read = step, rows, read
        self._sessions = (*encoders, step, rows, read)
        for session in self._sessions[:-1]:
            session.follow(read)
        # 1. Each row's caches: those of several rows are theirs, the spare row's are the one's that reads.
        self._caches = [{name: rows.device_tensor(name).part(row, 1) for name in _CACHES} for row in range(ROWS)]
        self._caches.append({name: read.device_tensor(name) for name in _CACHES})
        self._memory = memory = read.memory_beside()
        for name in _CACHES:
            memory.clear(rows.device_tensor(name))
            memory.clear(read.device_tensor(name))
        # 2. What the host tells and is told.
        self._slots = self._length(rows, "text", 1)
        vocabulary = self._length(rows, "logits", 2)
        self._text = memory.mirror((ROWS + 1, self._slots), "int32")
        self._likely = memory.mirror((ROWS + 1, self._slots), "float32")
        self._position = memory.mirror((ROWS + 1,), "int32")
        self._heard = memory.mirror((ROWS + 1,), "int32")
        self._heard.array[:] = 1
        self._rule = memory.mirror((READ,), "int32")
        self._plain = memory.mirror((ROWS,), "int32")
        self._plain.array[:] = TEXT
        self._plain.up()
        self._heard.up()
        self._next = memory.mirror((max(ROWS, READ),), "int32")
        self._logprob = memory.mirror((max(ROWS, READ),), "float32")
        self._logits = memory.mirror((max(ROWS, READ), vocabulary), "float32")
        for session, rule in ((step, self._plain), (rows, self._plain), (read, self._rule)):
            session.attach("rule", rule.tensor)
            for name, mirror in (("next", self._next), ("logprob", self._logprob), ("logits", self._logits)):
                session.attach(name, mirror.tensor)
        self._at: dict[int, int] = {}
        for name in _CACHES:
            rows.attach(name, rows.device_tensor(name))
        for name, mirror in self._mirrors.items():
            rows.attach(name, mirror.tensor.part(0, ROWS))
        # 3. What was heard.
        self._encoders: dict[int, DeviceSession] = {}
        for encoder in encoders:
            for name in ("hidden", "cross_k", "cross_v"):
                encoder.attach(name, encoder.device_tensor(name))
            self._encoders[encoder.device_tensor("mel").shape[-1]] = encoder
        self._sounds: dict[int, Mapping[str, DeviceTensor]] = {}
        self._room: dict[int, Mapping[str, DeviceTensor]] = {}
        self._hears: dict[int, int] = {}
        """By row the sound whose keys and values it has."""
        memory.wait()
        bins = encoders[0].device_tensor("mel").shape[1]
        super().__init__(
            [
                TensorSpec("ask", "int32", (ASK,)),
                TensorSpec("lines", "int32", ("lines", LINE)),
                TensorSpec("mel", "float32", (bins, "frames")),
            ],
            [
                TensorSpec("next", "int32", ("answers",)),
                TensorSpec("logprob", "float32", ("answers",)),
                TensorSpec("logits", "float32", ("looks", vocabulary)),
            ],
            SessionOptions(),
        )

    @property
    def _mirrors(self) -> dict[str, Mirror]:
        return {"text": self._text, "likely": self._likely, "position": self._position, "heard": self._heard}

    def _run(self, tensors: Tensors) -> dict[str, NDArray[np.generic]]:
        self._memory.use()
        ask = [int(word) for word in tensors["ask"]]
        lines = tensors["lines"]
        if ask[0] == LISTEN:
            self._listen(ask[1], tensors["mel"])
            return {}
        if ask[0] == LOOK:
            self._check_ask(ask[2:3], SPARE, lines[:, 0], ask[3] + len(lines))
            self._hear(ask[2], ask[1])
            return self._look(ask[2], ask[3], lines)
        self._check_ask(lines[:, 0].tolist(), ROWS - 1, lines[:, 1], int(lines[:, 2].max(initial=0)) + 1)
        return self._go(lines, ask[1])

    def _listen(self, sound: int, mel: NDArray[np.float32]) -> None:
        """It is not waited for: what is asked next comes behind it on the stream."""
        encoder = self._encoders.get(mel.shape[1])
        if encoder is None:
            raise EngineError(
                f"no encoder is for {mel.shape[1]} frames",
                available=[str(frames) for frames in self._encoders],
                next_step="pad the sound to one of these",
            )
        encoder.enqueue({"mel": np.ascontiguousarray(mel[None])})
        made = {name: encoder.device_tensor(name) for name in ("cross_k", "cross_v")}
        if sound not in self._room:
            # Room for the longest: [layers, 1, heads, positions, size].
            most = self._length(self._rows, "cross_k", 3)
            shapes = {name: (*one.shape[:-2], most, one.shape[-1]) for name, one in made.items()}
            self._room[sound] = {name: self._memory.tensor(shapes[name], one.dtype) for name, one in made.items()}
        kept = {name: DeviceTensor(self._room[sound][name].address, one.shape, one.dtype) for name, one in made.items()}
        for name, one in made.items():
            self._memory.copy(kept[name], one)
        self._sounds[sound] = kept
        self._hears = {row: known for row, known in self._hears.items() if known != sound}

    def _hear(self, row: int, sound: int) -> None:
        if self._hears.get(row) == sound:
            return
        if sound not in self._sounds:
            raise EngineError(f"sound {sound} was not listened to here", next_step="listen to it, and begin anew")
        for name, heard in self._sounds[sound].items():
            self._memory.copy(self._caches[row][name], heard)
        self._heard.array[row] = self._sounds[sound]["cross_k"].shape[-2]
        self._heard.up()
        self._hears[row] = sound

    def _look(self, row: int, position: int, lines: NDArray[np.int32]) -> dict[str, NDArray[np.generic]]:
        """READ tokens at a time; what stands behind the last is read too, and forgotten."""
        tokens, rules, looks = lines[:, 0], lines[:, 1], lines[:, 2] > 0
        self._text.array[row, position : position + len(lines)] = tokens
        self._go_to(self._read, row)
        following, logprobs, logits = [], [], []
        for begin in range(0, len(lines), READ):
            some = slice(begin, min(begin + READ, len(lines)))
            count = some.stop - begin
            self._position.array[row] = position + begin
            self._rule.array[:count] = rules[some]
            for mirror in (self._text, self._position, self._rule):
                mirror.up()
            self._read.enqueue({})
            self._next.down()
            self._logprob.down()
            seen = np.flatnonzero(looks[some])
            for line in seen:
                self._logits.down(int(line), 1)
            self._memory.wait()
            following.append(self._next.array[:count].copy())
            logprobs.append(self._logprob.array[:count].copy())
            logits.append(self._logits.array[seen])
        return {
            "next": np.concatenate(following),
            "logprob": np.concatenate(logprobs),
            "logits": np.concatenate(logits),
        }

    def _go(self, lines: NDArray[np.int32], count: int) -> dict[str, NDArray[np.generic]]:
        new = sorted({int(row) for row in lines[:, 0]} - self._hears.keys())
        if new:
            # The process may be another than the one in which they began.
            raise EngineError(f"rows {new} hear nothing here", next_step="listen to their sounds, and begin anew")
        places = lines[:, 2]
        # Other rows read what lies at their beginning, and nobody looks at what they say.
        self._position.array[:] = 0
        self._text.array[lines[:, 0], places] = lines[:, 1]
        self._position.array[lines[:, 0]] = places
        self._text.up()
        self._position.up()
        session = self._rows if len(lines) > 1 else self._step
        if session is self._step:
            self._go_to(session, int(lines[0, 0]))
        for _ in range(count):
            session.enqueue({})
        self._text.down()
        self._likely.down()
        looks = np.flatnonzero(lines[:, 3])
        at = [int(lines[line, 0]) if session is self._rows else 0 for line in looks]
        for line in at:
            self._logits.down(line, 1)
        self._memory.wait()
        written = np.minimum(places[:, None] + 1 + np.arange(count), self._slots - 1)
        rows = lines[:, :1]
        return {
            "next": self._text.array[rows, written].reshape(-1),
            "logprob": self._likely.array[rows, written].reshape(-1),
            "logits": self._logits.array[at],
        }

    def _go_to(self, session: DeviceSession, row: int) -> None:
        """One row's session, to the memory of a row."""
        if self._at.get(id(session)) == row:
            return
        for name, tensor in self._caches[row].items():
            session.attach(name, tensor)
        for name, mirror in self._mirrors.items():
            session.attach(name, mirror.tensor.part(row, 1))
        self._at[id(session)] = row

    def _check_ask(self, rows: Sequence[int], last: int, tokens: NDArray[np.int32], end: int) -> None:
        """Whoever reads elsewhere spoils the whole device."""
        vocabulary = self._logits.array.shape[1]
        within = all(0 <= row <= last for row in rows) and 0 < end <= self._slots
        if not within or not len(tokens) or tokens.min() < 0 or tokens.max() >= vocabulary:
            raise EngineError(
                f"rows {list(rows)} up to place {end} with {len(tokens)} tokens: there are {ROWS} rows of "
                f"{self._slots} places, and {vocabulary} tokens",
                next_step="correct the ask",
            )

    def _length(self, session: DeviceSession, name: str, axis: int) -> int:
        return int(session.shape_of(name)[axis])

    def _close(self) -> None:
        with contextlib.ExitStack() as closing:  # in reverse: memory, then those that follow, then whom they follow
            for session in reversed(self._sessions):
                closing.callback(session.close)
            closing.callback(self._memory.close)


def open_device(bundle: Bundle, target: str, device: int) -> WhisperDevice:
    """Raises what opening a bundle raises, and BundleError for one whose decoder is no reader."""
    frames = encoder_frames(bundle, target)
    with contextlib.ExitStack() as undo:

        def opened(part: str, profile: str) -> DeviceSession:
            session = bundle.open(part, profile, target=target, device=device)
            undo.callback(session.close)
            if not isinstance(session, DeviceSession):
                raise BundleError(
                    f"{part} of {bundle.manifest.key} is no engine for a GPU",
                    next_step=f"build it: aula build {bundle.manifest.name} --target {target}",
                )
            return session

        encoders = [opened("encoder", profile) for profile in dict(frames).values()]
        readers = [opened("decoder", profile) for profile in (STEP_PROFILE, ROWS_PROFILE, READ_PROFILE)]
        whole = WhisperDevice(encoders, *readers)
        undo.pop_all()
    return whole


def encoder_frames(bundle: Bundle, target: str) -> dict[int, str]:
    """The profile of each length that the bundle's encoder is built for, in frames, the shortest first."""
    profiles = bundle.engine("encoder", target).profiles
    return dict(sorted((sizes["frames"][2], name) for name, sizes in profiles.items()))
