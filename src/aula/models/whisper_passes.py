"""Many streams on one encoder and one decoder: each asks for passes, and those who write share the decoder's.

What a stream does is a generator: it yields what it asks for, and is sent the answer. So the same lines serve a stream
that is alone (`alone`) and many that take turns (`WhisperPasses`): between two encodings everybody who writes gets a
token, and whoever comes joins while the others go on. A question's final text goes before a caption's hypothesis, but
nobody is passed over for ever.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aula.core.clock import Clock
from aula.core.types import Float32
from aula.models.whisper_choice import Choose
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_text import Text

HANDICAP = 4
"""Passes of others, asked for later, that go before one, for each rank."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class Listen:
    """Encode float32 [bins, frames]; what is asked next is about this sound. The answer is None."""

    mel: Float32


@dataclass(frozen=True, slots=True)
class FindLanguage:
    """The answer is the likeliest language token, and its probability among the languages."""

    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A text of at most `limit` tokens (see `Text`). The answer is `Written`."""

    prompt: Sequence[int]
    end: int
    limit: int
    draft: Sequence[int] = ()
    sure: int = 0
    choose: Choose | None = None
    give_up: Callable[[Sequence[int]], bool] | None = None

    @property
    def options(self) -> dict[str, Any]:
        named = ("limit", "draft", "sure", "choose", "give_up")
        return {name: getattr(self, name) for name in named}


Ask = Listen | FindLanguage | Write
Work = Generator[Ask, Any, Value]

Ended = Callable[[Any, float], None]
"""Told what a work came to, a value or an exception, and the seconds that the passes took: its part of shared ones."""


class Sound(Protocol):
    """What an engine made of one sound."""

    def keep(self) -> None:
        """It is needed beyond the next time that the engine listens."""


class Rows(Protocol):
    """Texts that are written side by side: see `WhisperRows`."""

    @property
    def is_full(self) -> bool: ...

    def language(self, sound: Any, start: int) -> tuple[int, float]: ...

    def join(self, sound: Any, text: Text) -> bool: ...

    def step(self) -> list[Text]: ...

    def leave(self, text: Text) -> None: ...

    def look_again(self) -> None: ...


class Engine(Protocol):
    """Where Whisper runs: the host's sessions (`HostEngine`), or a GPU that keeps what it makes (`DeviceEngine`)."""

    def listen(self, mel: Float32) -> Sound: ...

    def rows(self) -> Rows:
        """Without a text in them."""


def alone(work: Work[Value], decoding: WhisperDecoding) -> Value:
    answer: Any = None
    while True:
        try:
            ask = work.send(answer)
        except StopIteration as end:
            value: Value = end.value
            return value
        match ask:
            case Listen(mel):
                decoding.listen(mel)
                answer = None
            case FindLanguage(start):
                answer = decoding.language(start)
            case Write():
                answer = decoding.write(ask.prompt, ask.end, **ask.options)


class _Job:
    def __init__(self, owner: object, work: Work[Any], ended: Ended, rank: int) -> None:
        self.owner, self.work, self.ended, self.rank = owner, work, ended, rank
        self.turn = 0
        self.ask: Ask | None = None
        self.sound: Sound | None = None
        self.text: Text | None = None
        self.took = 0.0


class WhisperPasses:
    """Not for two threads at once. The works of one owner are done one after the other, as they came.

    `begin`, then `advance` until it is False; whoever calls it may do other things between two passes.
    """

    def __init__(self, config: WhisperConfig, engine: Engine, clock: Clock) -> None:
        self._config, self._engine, self._clock = config, engine, clock
        self._rows = engine.rows()
        self._waiting: dict[object, deque[_Job]] = {}
        """By owner: the first is under way."""
        self._ready: list[_Job] = []
        self._asked = 0
        self._writing: list[_Job] = []
        self._lent: Sound | None = None
        """It lies in the encoder's own memory, until the encoder runs again."""

    def begin(self, owner: object, work: Work[Any], ended: Ended, rank: int = 0) -> bool:
        """Whether nothing was under way, so that somebody must begin to call `advance`. The lower the `rank`, the
        sooner it has its passes."""
        was_idle = not self._waiting
        job = _Job(owner, work, ended, rank)
        queue = self._waiting.setdefault(owner, deque())
        queue.append(job)
        if len(queue) == 1:
            self._asks(job)
        return was_idle

    def advance(self) -> bool:
        """One pass for somebody who waits for it, and one token for all who write; False when nothing is left."""
        while self._ready and not self._passes(min(self._ready, key=lambda job: job.turn)):
            pass
        if self._writing:
            self._step()
        return bool(self._waiting)

    def alone(self, work: Work[Value]) -> Value:
        """At once, beside whatever is under way. Raises what the work raises."""
        came: list[Any] = []
        self.begin(object(), work, lambda value, _took: came.append(value))
        while not came:
            self.advance()
        if isinstance(came[0], Exception):
            raise came[0]
        value: Value = came[0]
        return value

    def drop(self, owner: object) -> None:
        """Its client has gone: nothing of it goes on, and nobody is told."""
        for job in self._waiting.pop(owner, ()):
            job.work.close()
            if job in self._ready:
                self._ready.remove(job)
            if job in self._writing:
                self._writing.remove(job)
                assert job.text is not None
                self._rows.leave(job.text)

    def close(self, error: Exception) -> None:
        """Whoever waits is told so."""
        for job in [job for queue in self._waiting.values() for job in queue]:
            job.work.close()
            job.ended(error, job.took)
        self._waiting, self._ready, self._writing = {}, [], []
        self._rows = self._engine.rows()

    def _asks(self, job: _Job) -> None:
        self._asked += 1
        job.turn = self._asked + HANDICAP * job.rank
        self._ready.append(job)

    def _passes(self, job: _Job) -> bool:
        """Let it have what it asked for, up to its next ask. Whether that took a pass."""
        if isinstance(job.ask, Write) and self._rows.is_full:
            return True
        self._ready.remove(job)
        asked, began = job.ask, self._clock.now()
        try:
            answer = self._answered(job)
            if job.text is None:
                job.ask = job.work.send(answer)
                self._asks(job)
        except StopIteration as end:
            self._end(job, end.value, self._clock.now() - began)
        except Exception as error:
            self._end(job, error, self._clock.now() - began)
        else:
            job.took += self._clock.now() - began
        return asked is not None

    def _answered(self, job: _Job) -> Any:
        """None too while it writes: its text says so."""
        match job.ask:
            case Listen(mel):
                self._keep_lent()
                self._lent = job.sound = self._engine.listen(mel)
            case FindLanguage(start):
                return self._rows.language(_sound(job), start)
            case Write() as ask:
                text = Text(self._config, ask.prompt, ask.end, **ask.options)
                if not self._rows.join(_sound(job), text):
                    return text.written()
                job.text = text
                self._writing.append(job)
        return None

    def _keep_lent(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None and any(queue[0].sound is lent for queue in self._waiting.values()):
            lent.keep()
            self._rows.look_again()

    def _step(self) -> None:
        began = self._clock.now()
        try:
            ended = self._rows.step()
        except Exception as error:
            jobs, self._writing = self._writing, []
            self._rows = self._engine.rows()
            for job in jobs:
                self._end(job, error, (self._clock.now() - began) / len(jobs))
            return
        part = (self._clock.now() - began) / len(self._writing)
        for job in self._writing:
            job.took += part
        for job in [job for job in self._writing if job.text in ended]:
            self._writing.remove(job)
            self._resume(job)

    def _resume(self, job: _Job) -> None:
        """Its text is written."""
        assert job.text is not None
        written, job.text = job.text.written(), None
        try:
            job.ask = job.work.send(written)
            self._asks(job)
        except StopIteration as end:
            self._end(job, end.value)
        except Exception as error:
            self._end(job, error)

    def _end(self, job: _Job, value: Any, took: float = 0.0) -> None:
        queue = self._waiting[job.owner]
        queue.popleft()
        if queue:
            self._asks(queue[0])
        else:
            del self._waiting[job.owner]
        job.work.close()
        job.ended(value, job.took + took)


def _sound(job: _Job) -> Sound:
    assert job.sound is not None, "a work listens before it asks about a sound"
    return job.sound
