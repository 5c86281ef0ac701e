"""What the tests of the doors share: tiny honest models, a small course, and every door served on a free port.

Loud sound is heard as a word of WORDS each 100 ms, a text is understood by its first word, and the voice says 50 ms a
word.
"""

import io
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aula.assistant.packs import add_course, open_library
from aula.core.clock import Clock
from aula.core.errors import AulaError, NothingHeardError
from aula.core.settings import Settings, Value
from aula.core.types import (
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Intent,
    Partial,
    RungInfo,
    Segment,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
    Understanding,
)
from aula.runtime import Rules, Rung, Runtime
from aula.servers.callers import Doorman, EveryoneIsLocal
from aula.servers.house import House
from aula.servers.serving import Address, open_doors

WORDS = ("what", "is", "inertia", "and", "what", "is", "momentum")
VOICE_RATE = 22_050
ENGLISH = frozenset({"en"})
CAPABILITIES = (
    Capability.DETECT,
    Capability.TRANSCRIBE,
    Capability.UNDERSTAND,
    Capability.EMBED,
    Capability.SPEAK,
)
INERTIA = "Inertia is the tendency of every object to keep its velocity unchanged."
COURSE = f"""---
title: Motion
language: en
---
# Inertia

{INERTIA}

# Momentum

Momentum is the product of mass and velocity.
"""


@dataclass
class Models:
    """Everything at once; `failure` is what each of them raises, `open` counts streams."""

    failure: AulaError | None = None
    open: int = 0
    closed: int = 0
    said: list[SpeakRequest] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    rate: int = VOICE_RATE
    dimensions: int = 4

    def meet(self, context: Context | None = None) -> None:
        if context is not None:
            self.contexts.append(context)
        if self.failure is not None:
            raise self.failure

    def start(self, request: TranscribeRequest | DetectRequest, context: Context) -> "_Stream":
        self.meet(context)
        self.open += 1
        return _Stream(self, request)

    def understand(self, text: str, context: Context) -> Understanding:
        self.meet(context)
        self.understood.append(text)
        greets = text.lower().startswith("hello")
        intent = Intent.GREETING if greets else Intent.REPEAT if text.lower().startswith("again") else Intent.CONTENT
        return Understanding(intent, 1.0, _vector(text))

    def understand_many(self, texts: Sequence[str], contexts: Sequence[Context]) -> list[Understanding]:
        return [self.understand(text, context) for text, context in zip(texts, contexts, strict=True)]

    def embed(self, texts: Sequence[str]) -> Float32:
        self.meet()
        return np.stack([_vector(text) for text in texts])

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        self.meet(context)
        self.said.append(request)
        self.open += 1
        try:
            for number, _ in enumerate(request.text.split()):
                yield np.full(VOICE_RATE // 20, 1000 + number, np.int16)
        finally:
            self.closed += 1


class _Stream:
    def __init__(self, owner: Models, request: TranscribeRequest | DetectRequest) -> None:
        self._owner = owner
        self._request = request
        self._heard = 0
        self._told = 0
        self._is_open = True

    def feed(self, samples: Float32) -> Any:
        self._owner.meet()
        if isinstance(self._request, DetectRequest):
            return [float(np.abs(samples).max() > 0.1)] * (len(samples) // 512)
        loud = int((np.abs(samples) > 0.1).sum())
        self._heard += loud
        finished = self._segments() if self._request.early else ()
        return Partial(" ".join(self._words()), finished=finished)

    def _words(self) -> Sequence[str]:
        return WORDS[: self._heard // 1600]

    def _segments(self) -> tuple[Segment, ...]:
        words = self._words()
        new = tuple(Segment(0.1 * place, 0.1 * (place + 1), words[place]) for place in range(self._told, len(words)))
        self._told = len(words)
        return new

    def commit(self) -> Transcript:
        self._owner.meet()
        if not self._words():
            raise NothingHeardError("nobody speaks", next_step="say it again")
        words = self._words()
        segments = tuple(Segment(0.1 * place, 0.1 * (place + 1), word) for place, word in enumerate(words))
        wants_times = isinstance(self._request, TranscribeRequest) and self._request.timestamps
        return Transcript(" ".join(words), "en", 0.9, segments if wants_times else ())

    def close(self) -> None:
        assert self._is_open, "closed twice"
        self._is_open = False
        self._owner.closed += 1


def _vector(text: str) -> Float32:
    vector = np.array([1.0, len(text) % 7, len(text) % 5, len(text) % 3], np.float32)
    return vector / np.linalg.norm(vector).astype(np.float32)


def runtime_of(
    models: Models, clock: Clock | None = None, rules: Rules | None = None, engines: Sequence[Rung] = ()
) -> Runtime:
    def rung(name: str, capability: Capability) -> Rung:
        return Rung(RungInfo(name, capability, ENGLISH), str(capability), lambda: models)

    return Runtime([*(rung(f"tiny-{one}", one) for one in CAPABILITIES), *engines], clock, rules=rules)


@dataclass(eq=False)
class Served:
    house: House
    address: Address
    models: Models

    @property
    def url(self) -> str:
        return self.address.http

    @property
    def openai(self) -> str:
        return f"{self.address.http}/v1"


@asynccontextmanager
async def small_house(
    home: Path,
    *,
    doorman: Doorman | None = None,
    rules: Rules | None = None,
    clock: Clock | None = None,
    engines: Sequence[Rung] = (),
    **changes: Value,
) -> AsyncIterator[tuple[House, Models]]:
    """A house with the small course, nothing listening."""
    usual: dict[str, Value] = {
        "home": str(home),
        "course": "small",
        "speech.cache_mb": 0,
        "serve.port": 0,
        "serve.grpc_port": -1,
    }
    settings = Settings(usual).replaced(**changes)
    models = Models()
    async with runtime_of(models, clock, rules, engines) as runtime:
        library = open_library(settings)
        if not any(info.name == "small" for info in library.list()):
            folder = home / "source"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "motion.md").write_text(COURSE, encoding="utf-8")
            await add_course(runtime, library, folder, "small", language="en")
        yield House(runtime, settings, doorman or EveryoneIsLocal()), models


@asynccontextmanager
async def served(home: Path, **options: Any) -> AsyncIterator[Served]:
    """Every door on a free port of the loopback."""
    async with small_house(home, **options) as (house, models), open_doors(house) as address:
        yield Served(house, address, models)


def recording(seconds: float, level: float = 0.5, rate: int = 16_000) -> bytes:
    """A WAV file of that loudness."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes(np.full(int(rate * seconds), int(level * 32767), "<i2").tobytes())
    return file.getvalue()
