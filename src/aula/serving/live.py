"""Streams. Opening one was let in; every later chunk waits its turn, is billed to its tenant and meets its deadline."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import BackendError, DeadlineError
from aula.core.types import Context, Float32, Int16, Partial, Transcript
from aula.scheduling.tickets import State, Ticket
from aula.serving.group import Group
from aula.serving.places import Place
from aula.serving.tasks import (
    DETECT_CHUNK,
    SPEAK_CHUNK,
    TRANSCRIBE_CHUNK,
    TRANSCRIBE_COMMIT,
    TRANSCRIBE_PAUSE,
    Task,
    checked_samples,
)


class _Live:
    """A stream in the thread of the place that opened it. `close` is lawful at any time, twice too."""

    def __init__(self, group: Group, clock: Clock, place: Place, stream: Any, context: Context) -> None:
        self.context = context
        """Whoever has it may set another deadline: a turn's begins at its commit."""
        self._group = group
        self._clock = clock
        self._place = place
        self._thread = place.thread
        self._stream = stream
        self._is_open = True

    @property
    def rung(self) -> str:
        return self._place.name

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._thread.is_lost or not hasattr(self._stream, "close"):
            return
        try:
            # A server cancels whoever served a client that went away; the stream must be closed all the same.
            await asyncio.shield(asyncio.ensure_future(self._thread.call(self._stream.close)))
        except BackendError:
            if not self._thread.is_lost:
                raise
        finally:
            if not self._thread.is_lost:
                self._group.residence.stream_closed(self._place)

    async def _do(self, task: Task, size: int, payload: Any) -> Any:
        """Raises DeadlineError past the deadline, OverloadError where the turn did not come in time, and what the
        stream raises."""
        if not self._is_open:
            raise RuntimeError("this stream was closed; open a new one")
        if self._thread.is_lost:
            raise BackendError(f"{self.rung} hung, and this stream with it", next_step="open a new stream")
        route = self._group.ways.route(task, self._place.ladder, frozenset({self.rung}), pinned=True)
        if self.context.deadline is not None and self._clock.now() >= self.context.deadline:
            raise DeadlineError(
                "the deadline of the stream has passed", next_step="open a new one, or allow more time"
            ).refused("deadline")
        (ticket,) = await self._group.serve(route, [(size, payload)], self.context, self._place)
        return value_of(ticket)


class LiveTranscription(_Live):
    """A transcription stream whose work is done in the rung's thread."""

    async def feed(self, samples: Float32) -> Partial:
        samples = checked_samples(samples)
        partial: Partial = await self._do(TRANSCRIBE_CHUNK, max(1, len(samples)), (self._stream, samples))
        return partial

    @property
    def takes_pauses(self) -> bool:
        """Whether the rung makes use of pauses, and sound may be held back from it while speech pauses."""
        return hasattr(self._stream, "pause")

    async def pause(self, seconds: float) -> Partial:
        """Speech has paused for so long. Only where `takes_pauses`."""
        partial: Partial = await self._do(TRANSCRIBE_PAUSE, 1, (self._stream, seconds))
        return partial

    def hurry(self) -> None:
        """The commit comes next. What is under way for a partial is given up, if the rung can."""
        if self._is_open and hasattr(self._stream, "hurry"):
            self._stream.hurry()

    async def commit(self) -> Transcript:
        transcript: Transcript = await self._do(TRANSCRIBE_COMMIT, 1, self._stream)
        return transcript


class LiveDetection(_Live):
    """A detection stream whose work is done in the rung's thread."""

    async def feed(self, samples: Float32) -> list[float]:
        samples = checked_samples(samples)
        probabilities: list[float] = await self._do(DETECT_CHUNK, max(1, len(samples)), (self._stream, samples))
        return probabilities


class LiveSpeech(_Live):
    """Async iterator of int16 chunks made in the rung's thread, with their `rate`; `aclose` stops the voice."""

    def __init__(self, group: Group, clock: Clock, place: Place, sound: tuple[Any, int], context: Context) -> None:
        chunks, self.rate = sound
        super().__init__(group, clock, place, chunks, context)

    def __aiter__(self) -> AsyncIterator[Int16]:
        return self

    async def __anext__(self) -> Int16:
        if not self._is_open:
            raise StopAsyncIteration
        chunk: Int16 | None = await self._do(SPEAK_CHUNK, 1, self._stream)
        if chunk is None:
            await self.close()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        await self.close()


def value_of(ticket: Ticket) -> Any:
    """What the ticket came to; raises why it came to nothing."""
    if ticket.state is State.ANSWERED:
        return ticket.value
    if ticket.refusal is not None:
        raise ticket.refusal.error(ticket.tenant)
    if ticket.error is not None:
        raise ticket.error
    raise DeadlineError(
        "the work was left behind: its deadline passed, or the runtime closed",
        next_step="ask again, or allow more time",
    )
