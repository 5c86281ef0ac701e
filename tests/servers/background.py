"""A door in a thread of its own, for clients that wait where they stand."""

import asyncio
import threading
from pathlib import Path
from typing import Any, Self

from tests.servers.doors import Served, served


class InBackground:
    """`with InBackground(home) as door:` serves every door until the block ends."""

    def __init__(self, home: Path, **options: Any) -> None:
        self._home = home
        self._options = options
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="test-doors")
        self._failure: BaseException | None = None
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.door: Served

    @property
    def url(self) -> str:
        return self.door.url

    async def _serve(self) -> None:
        try:
            async with served(self._home, **self._options) as self.door:
                end = asyncio.Event()
                self._end = (asyncio.get_running_loop(), end)
                self._begun.set()
                await end.wait()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._begun.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        if self._end is not None:
            loop, end = self._end
            loop.call_soon_threadsafe(end.set)
        self._thread.join()
