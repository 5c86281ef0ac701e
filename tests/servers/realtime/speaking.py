"""What the tests of this door share: a house on honest fakes, sound, and a served door on a free port.

Loud samples are speech, the recogniser hears a word of WORDS every 100 ms of it, and every text is understood as
content. The voice says one chunk of 50 ms a word.
"""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvicorn

from aula.core.clock import Clock
from aula.core.errors import NothingHeardError
from aula.core.settings import Settings
from aula.core.types import (
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Intent,
    Partial,
    RungInfo,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
    Understanding,
)
from aula.runtime import Rules, Rung, Runtime
from aula.servers.callers import Doorman, EveryoneIsLocal
from aula.servers.house import House
from aula.servers.realtime.door import WEBSOCKET_OPTIONS, Door
from aula.servers.wire import listen

WORDS = ["what", "is", "inertia", "and", "what", "is", "momentum", "in", "mechanics"]
RATE = 24_000
VOICE_RATE = 22_050
ENGLISH = frozenset({"en"})


class LoudIsSpeech:
    def start(self, request: DetectRequest, context: Context) -> "LoudIsSpeech":
        return type(self)()

    def __init__(self) -> None:
        self.pending = np.zeros(0, np.float32)

    def feed(self, samples: Float32) -> list[float]:
        joined = np.concatenate([self.pending, samples])
        whole = len(joined) // 512
        self.pending = joined[whole * 512 :]
        return [float(np.abs(chunk).max() > 0.1) for chunk in joined[: whole * 512].reshape(whole, 512)]

    def close(self) -> None:
        pass


@dataclass
class WordByWord:
    """`opened` and `closed` count streams."""

    opened: int = 0
    closed: int = 0

    def start(self, request: TranscribeRequest, context: Context) -> "_Words":
        self.opened += 1
        return _Words(self)


@dataclass
class _Words:
    owner: WordByWord
    heard: int = 0
    is_open: bool = True

    def feed(self, samples: Float32) -> Partial:
        self.heard += int((np.abs(samples) > 0.1).sum())
        return Partial(self.text)

    @property
    def text(self) -> str:
        return " ".join(WORDS[: self.heard // 1600])

    def commit(self) -> Transcript:
        if not self.text:
            raise NothingHeardError("no words", next_step="speak up")
        return Transcript(self.text, "en")

    def close(self) -> None:
        self.owner.closed += self.is_open
        self.is_open = False


class AllIsContent:
    def understand(self, text: str, context: Context) -> Understanding:
        return Understanding(Intent.CONTENT, 1.0, _vector())

    def understand_many(self, texts: list[str], contexts: list[Context]) -> list[Understanding]:
        return [self.understand(text, context) for text, context in zip(texts, contexts, strict=True)]


class OneVector:
    dimensions = 4

    def embed(self, texts: list[str]) -> Float32:
        return np.stack([_vector() for _ in texts])


def _vector() -> Float32:
    return np.full(4, 0.5, np.float32)


@dataclass
class ChunkAWord:
    rate: int = VOICE_RATE
    said: list[SpeakRequest] = field(default_factory=list)

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        self.said.append(request)
        for number, _ in enumerate(request.text.split()):
            yield np.full(VOICE_RATE // 20, 100 * (number + 1), np.int16)


@dataclass(eq=False)
class Served:
    house: House
    door: Door
    port: int
    transcriber: WordByWord
    speaker: ChunkAWord

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1"


def fake_runtime(
    transcriber: WordByWord, speaker: ChunkAWord, clock: Clock | None = None, rules: Rules | None = None
) -> Runtime:
    return Runtime(
        [
            Rung(RungInfo("loud", Capability.DETECT, ENGLISH), "detect", LoudIsSpeech),
            Rung(RungInfo("words", Capability.TRANSCRIBE, ENGLISH), "transcribe", lambda: transcriber),
            Rung(RungInfo("content", Capability.UNDERSTAND, ENGLISH), "encode", AllIsContent),
            Rung(RungInfo("vector", Capability.EMBED, ENGLISH), "encode", OneVector),
            Rung(RungInfo("chunks", Capability.SPEAK, ENGLISH), "speak", lambda: speaker),
        ],
        clock,
        rules=rules,
    )


@asynccontextmanager
async def served(
    home: Path,
    *,
    doorman: Doorman | None = None,
    rules: Rules | None = None,
    clock: Clock | None = None,
    ping_s: float = 20.0,
    **changes: str | int | float | bool,
) -> AsyncIterator[Served]:
    """The door alone, on a free port of the loopback, answering from the small course below."""
    from starlette.applications import Starlette

    settings = Settings({"home": str(home), "course": "small", "speech.cache_mb": 0}).replaced(**changes)
    transcriber, speaker = WordByWord(), ChunkAWord()
    async with fake_runtime(WordByWord(), ChunkAWord()) as unruled:
        await add_small_course(unruled, settings)
    async with fake_runtime(transcriber, speaker, clock, rules) as runtime:
        house = House(runtime, settings, doorman or EveryoneIsLocal())
        door = Door(house)
        async with listening(Starlette(routes=door.routes()), ping_s) as port:
            yield Served(house, door, port, transcriber, speaker)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def listening(app: object, ping_s: float = 20.0) -> AsyncIterator[int]:
    """The port on which uvicorn serves `app`."""
    bound = listen("127.0.0.1", 0, 60.0)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="error",
        lifespan="off",
        ws_ping_interval=ping_s,
        ws_ping_timeout=ping_s,
        **WEBSOCKET_OPTIONS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await server.ready.wait()
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        bound.close()


async def add_small_course(runtime: Runtime, settings: Settings) -> None:
    from aula.assistant.packs import add_course, open_library

    library = open_library(settings)
    if any(info.name == "small" for info in library.list()):
        return
    folder = settings.home / "source"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "motion.md").write_text(
        "---\ntitle: Motion\nlanguage: en\n---\n# Inertia\n\nInertia is the tendency of every object to keep its "
        "velocity unchanged.\n\n# Momentum\n\nMomentum is the product of mass and velocity.\n",
        encoding="utf-8",
    )
    await add_course(runtime, library, folder, "small", language="en")


def loud(milliseconds: int) -> bytes:
    """PCM16 at 24 kHz that counts as speech."""
    return _tone(milliseconds, 0.5)


def quiet(milliseconds: int) -> bytes:
    return _tone(milliseconds, 0.0)


def _tone(milliseconds: int, level: float) -> bytes:
    return np.full(RATE * milliseconds // 1000, int(level * 32767), "<i2").tobytes()


def text_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
