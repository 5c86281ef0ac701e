"""A runtime whose threads run when the test says so: no thread, no wait, and every order can be replayed."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from aula.backends.hosting.records import HostChange, HostHealth, HostState
from aula.core.clock import FakeClock
from aula.core.types import (
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Intent,
    RungInfo,
    SpeakRequest,
    Understanding,
)
from aula.runtime import Rules, Rung, Runtime
from aula.serving.threads import WorkerThread


class HandThread(WorkerThread):
    """Jobs lie here until `run` is called."""

    all: "list[HandThread]"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.jobs: deque[Callable[[], None]] = deque()
        HandThread.all.append(self)

    def post(self, job: Callable[[], None]) -> None:
        assert not self.is_ending, "posted to a thread that ends"
        self.jobs.append(job)

    def run(self) -> bool:
        """The next job, if there is one."""
        if self.jobs:
            self.jobs.popleft()()
            return True
        return False

    async def drained(self) -> None:
        if not self.is_ending:
            await self.call(lambda: None)

    def stop(self) -> None:
        self.is_ending = True


@contextmanager
def by_hand() -> Iterator[None]:
    """Runtimes that are made inside have such threads."""
    HandThread.all = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aula.runtime.WorkerThread", HandThread)
        patch.setattr("aula.serving.group.WorkerThread", HandThread)
        yield


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(12):
        await asyncio.sleep(0)


async def work(most: int = 1000) -> None:
    """Run jobs until there are none."""
    await settle()
    while most and any(thread.run() for thread in HandThread.all):
        most -= 1
        await settle()


class Stream:
    def __init__(self, owner: "House") -> None:
        self.owner = owner
        self.fed = 0
        self.is_open = True
        owner.open_streams += 1

    def feed(self, samples: Float32) -> list[float]:
        self.owner.meet()
        self.fed += len(samples)
        return [0.5]

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False
        self.owner.open_streams -= 1


class Host:
    """The process of a hosted session, as the test says it is."""

    def __init__(self) -> None:
        self.on_change: Callable[[HostChange], None] | None = None
        self.state = HostState.READY

    def health(self) -> HostHealth:
        return HostHealth(self.state, 0.0, 1, None, "")

    def becomes(self, state: HostState, *, silently: bool = False) -> None:
        self.state = state
        if self.on_change is not None and not silently:
            self.on_change(HostChange(0.0, state, "the test says so"))


class House:
    """One model that can do everything, and be told how to fail. Its runs take `takes_s` of the fake clock."""

    rate = 10
    dimensions = 1

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.failure: Exception | None = None
        self.takes_s = 0.0
        self.batches: list[int] = []
        self.open_streams = 0
        self.loads = 0
        self.load_failure: Exception | None = None
        self.is_closed = False

    def load(self) -> "House":
        self.loads += 1
        if self.load_failure is not None:
            raise self.load_failure
        return self

    def meet(self) -> None:
        self.clock.advance(self.takes_s)
        if self.failure is not None:
            raise self.failure

    def embed(self, texts: Sequence[str]) -> Float32:
        self.batches.append(len(texts))
        self.meet()
        if "raise" in texts:
            raise ValueError("one of these texts is bad")
        if "shape" in texts:
            return np.zeros((len(texts) + 1, 1), np.float32)
        vectors = np.array([[len(text)] for text in texts], dtype=np.float32).reshape(len(texts), 1)
        vectors[[text == "nan" for text in texts]] = np.nan
        return vectors

    def understand(self, text: str, context: Context) -> Understanding:
        self.meet()
        return Understanding(Intent.CONTENT, 1.0, np.ones(1, np.float32))

    def start(self, request: DetectRequest, context: Context) -> Stream:
        self.meet()
        return Stream(self)

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        for letter in request.text:
            self.meet()
            yield np.array([ord(letter)], dtype=np.int16)

    def close(self) -> None:
        self.is_closed = True


def rung(
    name: str, house: House, capability: Capability = Capability.EMBED, worker: str | None = None, language: str = "en"
) -> Rung:
    return Rung(RungInfo(name, capability, frozenset({language})), worker or name, house.load)


def runtime(*rungs: Rung, clock: FakeClock, rules: Rules | None = None) -> Runtime:
    return Runtime(rungs, clock, rules=rules)


def start(running: Runtime, capability: Capability, payload: Any, context: Context) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(running.submit(capability, payload, context))
