"""One thread that runs what it is given, in turn: a model is never entered twice."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from aula.core.errors import BackendError

T = TypeVar("T")


class WorkerThread:
    """Starts with its first job. A daemon, since one that hangs for good must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_lost = False
        self.is_ending = False
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting: set[asyncio.Future[Any]] = set()

    def post(self, job: Callable[[], None]) -> None:
        """Run it when its turn comes; it must not raise. Raises RuntimeError once the thread was told to end."""
        if self.is_ending:
            raise RuntimeError(f"the worker {self.name!r} has ended")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"aula-{self.name}", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives, once it has had its turn. Raises BackendError where the thread was lost."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if self.is_lost:
            raise self._gone()

        def work() -> None:
            if done.cancelled():
                return
            try:
                result = function(*arguments)
            except BaseException as error:
                tell(loop, _fail, done, error)
            else:
                tell(loop, _settle, done, result)

        self._waiting.add(done)
        try:
            self.post(work)
            return await done
        finally:
            self._waiting.discard(done)

    async def drained(self) -> None:
        """Return when it has nothing left to do."""
        if self._thread is not None and not self.is_ending:
            await self.call(lambda: None)

    def lose(self) -> None:
        """Its job hangs: whoever waits for another one of this thread is told so, and it ends if it ever comes back."""
        self.is_lost = True
        for done in tuple(self._waiting):
            _fail(done, self._gone())
        self.stop()

    def stop(self) -> None:
        """End it after the jobs that it has."""
        if self._thread is not None and not self.is_ending:
            self._jobs.put(None)
        self.is_ending = True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self.is_lost:
                job()

    def _gone(self) -> BackendError:
        return BackendError(f"the worker {self.name!r} hangs and was given up", next_step="run: aula doctor")


def tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call it in the loop's own thread; a loop that has ended hears nothing."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _settle(done: "asyncio.Future[T]", result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: "asyncio.Future[Any]", error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
