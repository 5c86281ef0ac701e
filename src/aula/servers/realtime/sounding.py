"""The sound of one answer on its way to the ear: in its format, and no further ahead than is useful."""

from collections.abc import AsyncIterator, Awaitable, Callable

from aula.core.clock import Clock
from aula.core.types import Int16
from aula.servers.realtime.formats import Format, SoundOut


class Sounding:
    """Several pieces may be played after each other: to the ear they are one."""

    def __init__(
        self,
        form: Format,
        clock: Clock,
        ahead_s: float,
        outgoing: Callable[[], Awaitable[None]],
        send: Callable[[bytes], None],
    ) -> None:
        """`outgoing` returns when there is room for more; `send` takes bytes in that format."""
        self._form = form
        self._clock = clock
        self._ahead_s = ahead_s
        self._outgoing = outgoing
        self._send = send
        self._ends_at: float | None = None

    @property
    def ends_at(self) -> float:
        """When all that was sent has sounded, at a client who plays it at once."""
        return self._clock.now() if self._ends_at is None else self._ends_at

    async def play(self, chunks: AsyncIterator[Int16], rate: int) -> None:
        """The first sound at once; later ones no further ahead of the ear than they should be."""
        out = SoundOut(self._form, rate)
        ends_at = max(self.ends_at, self._clock.now())
        async for chunk in chunks:
            await self._clock.sleep_until(ends_at - self._ahead_s)
            await self._outgoing()
            ends_at += len(chunk) / rate
            self._ends_at = ends_at
            self._sent(out.feed(chunk))
        self._sent(out.flush())

    def _sent(self, sound: bytes) -> None:
        if sound:
            self._send(sound)
