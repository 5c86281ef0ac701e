"""Keeps an engine's process alive: a thread that starts it, hears at once when it ends, and starts it anew.

The thread waits on descriptors alone: it takes no processor time while nothing happens. The system ends the process
with the thread that started it, so this thread lives as long as its keeper.
"""

import contextlib
import os
import select
import threading
from collections import Counter, deque
from collections.abc import Callable

from aula.backends.hosting.backoff import Backoff
from aula.backends.hosting.line import Line
from aula.backends.hosting.process import EngineProcess
from aula.backends.hosting.records import HostChange, HostHealth, Hosting, HostState
from aula.backends.hosting.wire import Failure, Kind, Loaded, decode, encode
from aula.backends.session import BACKENDS
from aula.core.clock import Clock
from aula.core.errors import AulaError, BackendError, ProcessAwayError, ProcessHungError

_LAST_WORDS_SECONDS = 1.0
"""For a process that has hung up by itself to come to its end, before it is killed."""
_JOIN_SECONDS = 10.0
"""A killed process ends at once, unless a driver holds it."""
_SPARE_AFTER_SECONDS = 1.0
"""An engine that is back should have the processor to itself first."""


class Keeper:
    """`line` is entered by whoever speaks to the process, and by the keeper before it lets go of one that ended."""

    def __init__(self, order: bytes, hosting: Hosting, clock: Clock, line: Line) -> None:
        """`order` is what every process is told first (a pickled `wire.Order`)."""
        self.on_change: Callable[[HostChange], None] | None = None
        self.changes: deque[HostChange] = deque(maxlen=256)
        self.counts: Counter[str] = Counter()
        self._order, self._hosting, self._clock, self._line = order, hosting, clock, line
        self._news = threading.Condition()
        self._state, self._since = HostState.STARTING, clock.now()
        self._backoff = Backoff(clock, hosting)
        self._process: EngineProcess | None = None
        self._spare: EngineProcess | None = None
        self._loaded: Loaded | None = None
        self._refusal: AulaError | None = None
        self._last_death = ""
        self._closing = self._hurry = False
        self._owner = os.getpid()
        self._bell, self._rope = os.pipe()
        for descriptor in (self._bell, self._rope):
            os.set_blocking(descriptor, False)
        self._thread = threading.Thread(target=self._keep, name="aula-host", daemon=True)
        self._thread.start()

    # What others ask.

    def opened(self) -> Loaded:
        """Wait for the first load. Raises what the loader raised, or how the process ended."""
        with self._news:
            self._news.wait_for(lambda: self._loaded or self._state is HostState.CLOSED)
        if self._refusal is not None:
            raise self._refusal
        if self._loaded is None:
            raise _closed()
        return self._loaded

    def process(self) -> EngineProcess:
        """The process, if it is there and whole. Raises ProcessAwayError otherwise, BackendError after `close`."""
        process = self._process
        if self._state is HostState.READY and process is not None and not process.reason:
            return process
        if self._closing:
            raise _closed()
        left = max(0.0, self._backoff.moment - self._clock.now()) if self._state is HostState.WAITING else 0.0
        why = self._last_death or (process.reason if process is not None else "") or "it is loading"
        raise ProcessAwayError(
            f"the engine's process is not there ({why})",
            next_step=f"ask the next rung; it is started anew in {left:.1f} s"
            if left
            else "ask the next rung meanwhile",
            retry_after_s=left,
        )

    def wait(self, seconds: float | None) -> bool:
        """Until the process is ready; False where that takes longer, or never comes."""

        def settled() -> bool:
            return self._closing or self.health().state is HostState.READY

        with self._news:
            return self._news.wait_for(settled, seconds) and not self._closing

    def revive(self) -> None:
        """Start a process that is waited for now, whatever the backoff says."""
        self._hurry = True
        self.ring()

    def ring(self) -> None:
        """Let the thread look at everything anew."""
        with self._news, contextlib.suppress(BlockingIOError):  # full: it will look anyway
            if self._state is not HostState.CLOSED:
                os.write(self._rope, b"!")

    def health(self) -> HostHealth:
        state, process, moment = self._state, self._process, self._backoff.moment
        if state is HostState.READY and (process is None or process.reason):
            state = HostState.WAITING
        return HostHealth(
            state=state,
            since=self._since,
            pid=process.pid if process is not None and state in (HostState.READY, HostState.STARTING) else 0,
            retry_at=moment if state is HostState.WAITING else None,
            last_death=self._last_death,
        )

    @property
    def shared_bytes(self) -> int:
        process = self._process
        return process.shared_bytes if process is not None else 0

    def close(self) -> None:
        """End the process: politely, or at once where it is busy. Lawful twice, and from any thread."""
        if os.getpid() != self._owner:
            return  # a fork's copy ends nothing that is not its own
        self._closing = True
        self.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._hosting.close_s + _JOIN_SECONDS)

    # The thread.

    def _keep(self) -> None:
        try:
            while not self._closing:
                cause = self._one_life()
                if self._closing or self._refusal is not None:
                    break
                self.counts["deaths"] += 1
                self._last_death = cause
                self._backoff.died()
                self._tell(HostState.WAITING, cause)
                self._pause()
                self._tell(HostState.STARTING, "it is started anew")
        finally:
            self._closing = True
            if self._spare is not None:
                _end(self._spare)
            self._tell(HostState.CLOSED, str(self._refusal or "the session was closed"))
            os.close(self._rope)  # nobody rings once it is closed
            os.close(self._bell)

    def _one_life(self) -> str:
        """Start a process, load the engine, and attend to it until it ends; in words, how it ended."""
        try:
            process = self._taken_spare() or EngineProcess(self._bell)
        except AulaError as error:
            self._refuse(error)
            return str(error)
        self._process = process
        self.counts["starts"] += 1
        fault: AulaError | None = None
        try:
            fault = self._load(process)
            if fault is None and not self._closing:
                self._backoff.ready()
                self._tell(HostState.READY, "the engine is loaded")
                self._attend(process)
        finally:
            cause = self._bury(process)
        if self._loaded is None and not self._closing:
            self._refuse(fault or BackendError(f"the engine's process ended: {cause}", next_step="aula doctor"))
        return str(fault or cause)

    def _refuse(self, error: AulaError) -> None:
        """What the very first load came to is the caller's; later ones are tried again."""
        if self._loaded is None:
            self._refusal = error

    def _load(self, process: EngineProcess) -> AulaError | None:
        until = self._clock.now() + self._hosting.load_s
        with contextlib.suppress(OSError):
            process.send(Kind.ORDER, self._order)
        while not self._closing:
            in_time = process.watch(until - self._clock.now(), answers=True)
            self._hear_bell()
            if not in_time:
                reason = f"it did not load its engine within {self._hosting.load_s:g} s"
                self.counts["hung"] += 1
                process.end(reason)
                return ProcessHungError(
                    f"the engine's process was ended: {reason}", next_step="allow more (Hosting.load_s), or aula doctor"
                )
            try:
                answer = process.answer(lambda: 0.0)
            except TimeoutError:
                continue
            if answer is None:
                process.reason = process.reason or "it ended while it loaded"
                process.bury(_LAST_WORDS_SECONDS)
                return process.lost("while it loaded its engine")
            if answer.kind is Kind.ERROR:
                return decode(answer.body, Failure).error()
            self._loaded = decode(answer.body, Loaded)
            return None
        return None

    def _attend(self, process: EngineProcess) -> None:
        spare_at = self._clock.now() + _SPARE_AFTER_SECONDS if self._hosting.spare else None
        while not (process.reason or self._closing):
            owed = process.owed
            moments = [moment for moment in (owed, spare_at) if moment is not None]
            happened = process.watch(min(moments) - self._clock.now() if moments else None)
            self._hear_bell()
            if not happened and owed is not None and process.owed == owed and owed == min(moments):
                self.hung(process)
            if spare_at is not None and self._clock.now() >= spare_at:
                spare_at = None
                self._keep_spare()

    def _keep_spare(self) -> None:
        """Start the next process now, and let it import what takes longest."""
        if self._loaded is None or self._loaded.backend not in BACKENDS or self._spare is not None:
            return
        with contextlib.suppress(AulaError, OSError):  # without one it takes longer, no more
            spare = EngineProcess(self._bell)
            with self._news:
                self._spare = spare
                self._news.notify_all()
            spare.send(Kind.PREPARE, encode(self._loaded.backend))

    def _taken_spare(self) -> EngineProcess | None:
        spare, self._spare = self._spare, None
        if spare is None or spare.lives:
            return spare
        _end(spare)
        return None

    def hung(self, process: EngineProcess) -> None:
        """It gave no answer within the limit: end it."""
        with self._news:  # whoever waited and the keeper may both find out
            if not process.reason:
                self.counts["hung"] += 1
                process.hung = True
            process.end(f"it gave no answer for {self._hosting.hang_s:g} s")

    def _bury(self, process: EngineProcess) -> str:
        patience = _LAST_WORDS_SECONDS
        if self._closing and not process.reason:
            if self._line.taken or self._state is not HostState.READY:
                process.end("the session was closed")
            else:
                process.hang_up()
                patience = self._hosting.close_s
        obituary = process.bury(patience)
        self._process = None
        # Whoever still speaks to it has heard of its end, or hears of it now.
        process.hang_up()
        self._line.enter()
        try:
            process.release()
        finally:
            self._line.leave()
        return f"{process.reason or 'it was closed'} ({obituary})"

    def _pause(self) -> None:
        self._hurry = False
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        while not (self._closing or self._hurry) and (left := self._backoff.moment - self._clock.now()) > 0:
            poll.poll(1000 * left)
            self._hear_bell()

    def _hear_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 1 << 10)

    def _tell(self, state: HostState, cause: str) -> None:
        change = HostChange(self._clock.now(), state, cause)
        self.changes.append(change)
        with self._news:
            self._state, self._since = state, change.moment
            self._news.notify_all()
        if self.on_change is not None:
            with contextlib.suppress(Exception):  # what a listener does wrong must not keep the engine away
                self.on_change(change)


def _end(spare: EngineProcess) -> None:
    spare.end("it was a spare")
    spare.bury(_LAST_WORDS_SECONDS)
    spare.release()


def _closed() -> BackendError:
    return BackendError("this session is closed", next_step="open a new one with open_session()")
