"""Everything at once, again and again: `python -m tests.soak --minutes 10`, or `make soak`; a seed replays it.

Two halves take turns. *By hand*: threads run when the dice say so, under a fake clock, so that a seed gives the same
story to the letter. *Live*: real threads and the machine's clock, so that what is really concurrent is met; a
seed gives the same requests, the machine the order. In both, models fail, forget to load, lose their process, give NaN
and wrong shapes; callers cancel, streams are left half way, rungs are overridden and swapped. After each: every request
ended once, the books equal what callers saw, nothing is left open, and over all of them memory does not grow.
"""

import argparse
import asyncio
import gc
import sys
import threading
import time
from collections import Counter
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np

from aula.backends.hosting.records import HostState
from aula.core.clock import FakeClock, SystemClock
from aula.core.errors import AulaError, BackendError, ProcessAwayError, ProcessLostError, SettingsError
from aula.core.types import Capability, Context, DetectRequest, SpeakRequest
from aula.runtime import LiveDetection, LiveSpeech, Rules, Rung, Runtime
from aula.scheduling.admission import Quota
from aula.scheduling.ladder import Policy
from aula.serving import group
from aula.serving.memory import resident_bytes
from tests.serving.hand import HandThread, Host, House, by_hand, rung, settle, work

CAPABILITIES = (Capability.EMBED, Capability.UNDERSTAND, Capability.DETECT, Capability.SPEAK)
TIERS = ("question", "question", "caption", "vision", "batch", "exam")
RETURN_S = 0.2
"""How long a live request waits for a process that took it along: in a story every rung may be gone for good."""
SILENT_S = 30.0
"""A live story takes about a second; one that takes so long has lost somebody."""
MOST_GROWTH = 64 * 2**20
"""Bytes after the first tenth: allocators and caches settle within this; a leak of one stream a turn is far more."""


def broken() -> BackendError:
    """A new one each time: one that is raised again and again keeps every frame that it went through."""
    return BackendError("out of order", next_step="mend it")


def lost() -> ProcessLostError:
    return ProcessLostError("the process was killed", next_step="ask the next rung")


class Moody(House):
    """Fails as its dice say, and takes the time that it is told."""

    def __init__(self, clock: Any, seed: int, pause_s: float = 0.0) -> None:
        super().__init__(FakeClock())
        self.dice = Random(seed)
        self.mood = 0.0
        self.pause_s = pause_s
        self.sessions = [Host()]

    def load(self) -> "Moody":
        if self.dice.random() < self.mood:
            raise broken()
        super().load()
        return self

    def meet(self) -> None:
        if self.pause_s:
            time.sleep(self.dice.random() * self.pause_s)
        host = self.sessions[0]
        if host.state is not HostState.READY:
            if self.dice.random() < 0.5:
                raise ProcessAwayError("the process is not there", next_step="ask the next rung")
            host.becomes(HostState.READY)
        if self.dice.random() < self.mood:
            failure = self.dice.choice([broken(), ValueError("bad"), MemoryError(), lost()])
            if isinstance(failure, ProcessLostError):
                host.becomes(HostState.WAITING)
            raise failure


class Story:
    """One runtime with two rungs for everything, on two workers, and what its callers saw."""

    def __init__(self, seed: int, clock: Any, pause_s: float = 0.0) -> None:
        self.dice = Random(seed)
        self.clock = clock
        self.pause_s = pause_s
        self.models: list[Moody] = []
        self.rungs = [
            self.rung(capability, name, self.model()) for capability in CAPABILITIES for name in ("best", "second")
        ]
        rules = Rules(
            {"class-1": Quota(concurrency=3), "class-2": Quota(rate=50.0, burst=5)},
            policy=Policy(wait_s=0.02, canaries=2, canary_every_s=0.005, longest_wait_s=0.1),
        )
        self.runtime = Runtime(self.rungs, clock, rules=rules)
        self.seen: Counter[str] = Counter()

    def model(self) -> Moody:
        model = Moody(self.clock, self.dice.randrange(2**32), self.pause_s)
        self.models.append(model)
        return model

    def rung(self, capability: Capability, name: str, model: Moody) -> Rung:
        return rung(name, model, capability, worker={"best": "card", "second": "processor"}[name])

    def payload(self, capability: Capability) -> Any:
        words = ["a", "b" * 300, "raise", "nan", "shape", "c" * 2000]
        match capability:
            case Capability.EMBED:
                return [self.dice.choice(words) for _ in range(self.dice.randrange(5))]
            case Capability.UNDERSTAND:
                return self.dice.choice(words)
            case Capability.DETECT:
                return DetectRequest()
        return SpeakRequest("words"[: self.dice.randrange(6)])

    def context(self) -> Context:
        within = self.dice.choice([None, None, 0.0, 0.001, 0.05, 1.0, 3e7])
        deadline = None if within is None else self.clock.now() + within
        language = "zh" if self.dice.random() < 0.05 else "en"
        return Context(language, f"class-{self.dice.randrange(6)}", self.dice.choice(TIERS), deadline)

    async def ask(self) -> None:
        """One request from end to end; a stream is fed a little, and closed or left to the caller's cancellation."""
        capability = self.dice.choice(CAPABILITIES)
        chunks = self.dice.randrange(4)
        try:
            outcome = await self.runtime.submit(capability, self.payload(capability), self.context())
        except asyncio.CancelledError:
            self.seen["cancelled"] += 1
            raise
        except AulaError as error:
            self.seen["failed" if error.reason is None else "refused"] += 1
            return
        except Exception:
            self.seen["failed"] += 1
            return
        self.seen["answered"] += 1
        if isinstance(outcome.value, LiveDetection | LiveSpeech):
            try:
                await self._use(outcome.value, chunks)
            except Exception:
                self.seen["stream failed"] += 1
            finally:
                await asyncio.shield(asyncio.ensure_future(outcome.value.close()))

    async def _use(self, stream: Any, chunks: int) -> None:
        for _ in range(chunks):
            if isinstance(stream, LiveDetection):
                await stream.feed(np.zeros(320, np.float32))
            else:
                await anext(stream, None)

    def disturb(self) -> None:
        """Something that an operator, a bug or a card does."""
        match self.dice.randrange(5):
            case 0:
                self.dice.choice(self.models).mood = self.dice.choice([0.0, 0.0, 0.1, 1.0])
            case 1:
                name = self.dice.choice([None, None, "best", "second"])
                self.runtime.override(self.dice.choice(CAPABILITIES), name)
            case 2:
                state = self.dice.choice([HostState.READY, HostState.READY, HostState.WAITING])
                self.dice.choice(self.models).sessions[0].becomes(state)
            case _:
                pass

    async def swap(self) -> None:
        try:
            name = self.dice.choice(["best", "second"])
            await self.runtime.swap(self.rung(self.dice.choice(CAPABILITIES), name, self.model()))
            self.seen["swaps"] += 1
        except SettingsError:
            self.seen["swaps refused"] += 1

    def check(self, *, hung: bool = False) -> None:
        told = self.runtime.statistics()
        assert told.submitted == told.answered + told.refused + told.failed + told.cancelled + told.in_flight
        assert told.in_flight == 0, told
        for kind in ("answered", "refused", "failed"):
            assert getattr(told, kind) == self.seen[kind], (kind, told, self.seen)
        for one in told.schedulers:
            assert one.waiting == one.running == 0, one
        # What hung is left behind with all that was open there.
        if not hung:
            assert sum(model.open_streams for model in self.models) == 0, "a stream was left open"


async def by_hand_once(seed: int, steps: int = 150) -> Counter[str]:
    """The same story for the same seed."""
    clock = FakeClock()
    story = Story(seed, clock)
    dice = story.dice
    tasks: list[asyncio.Task[None]] = []
    for _ in range(steps):
        action = dice.random()
        if action < 0.45:
            tasks.append(asyncio.ensure_future(story.ask()))
        elif action < 0.8:
            dice.choice(HandThread.all).run()
        elif action < 0.85 and tasks:
            dice.choice(tasks).cancel()
        elif action < 0.9:
            clock.advance(dice.choice([0.001, 0.03, 1.0, 61.0]))
        elif action < 0.92:
            tasks.append(asyncio.ensure_future(story.swap()))
        else:
            story.disturb()
        await settle()
    for model in story.models:
        model.mood = 0.0
    while not all(task.done() for task in tasks):
        await work()
        clock.advance(1.0)
        await settle()
    await asyncio.gather(*tasks, return_exceptions=True)
    await work()
    story.check(hung=any(thread.is_lost for thread in HandThread.all))
    closing = asyncio.ensure_future(story.runtime.close())
    await work()
    await closing
    return story.seen


async def live_once(seed: int, requests: int = 200, at_once: int = 40, pause_s: float = 0.0) -> Counter[str]:
    story = Story(seed, SystemClock(), pause_s)
    gate = asyncio.Semaphore(at_once)
    tasks: list[asyncio.Task[None]] = []

    async def one(number: int) -> None:
        async with gate:
            await (story.swap() if number % 50 == 49 else story.ask())

    async with story.runtime:
        for number in range(requests):
            tasks.append(asyncio.ensure_future(one(number)))
            story.disturb()
            if story.dice.random() < 0.1:
                story.dice.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        for thread in {place.thread for place in story.runtime._budget.places}:
            await thread.drained()  # what callers left behind comes to its end
        story.check()
    return story.seen


def soak(minutes: float, first_seed: int) -> int:
    until = time.monotonic() + 60.0 * minutes
    settled_at = time.monotonic() + 6.0 * minutes
    seed, seen, base = first_seed, Counter[str](), 0
    while time.monotonic() < until:
        try:
            with by_hand():
                seen += asyncio.run(by_hand_once(seed))
            with patch.object(group, "RETURN_S", RETURN_S):
                seen += asyncio.run(asyncio.wait_for(live_once(seed, requests=400, pause_s=0.002), SILENT_S))
        except BaseException:
            print(f"broken by seed {seed}; replay it: python -m tests.soak --seed {seed} --once", file=sys.stderr)
            raise
        seed += 1
        if not base and time.monotonic() > settled_at:
            gc.collect()
            base = resident_bytes()
    gc.collect()
    grown = resident_bytes() - base if base else 0
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("aula-")]
    growth = f"memory grew by {grown / 2**20:.1f} MiB, threads left: {len(left)}"
    print(f"{seed - first_seed} stories, {dict(seen)}, {growth}")
    return int(grown > MOST_GROWTH or len(left) > 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    sys.exit(soak(0.001 if options.once else options.minutes, options.seed))


if __name__ == "__main__":
    main()
