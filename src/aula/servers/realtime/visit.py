"""One connection from its first event to its last: a socket's texts through the conversation, and time passing."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from aula.core.errors import AulaError
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.realtime.attendant import Attendant
from aula.servers.realtime.conversation import Conversation
from aula.servers.realtime.dialogues import Dialogues
from aula.servers.realtime.errors import ClientError, JsonObject
from aula.servers.realtime.events import Out
from aula.servers.realtime.messages import ChangeCourse, CourseChanged, Happening, Ids
from aula.servers.realtime.options import Options
from aula.servers.realtime.outbox import Outbox, OutboxFullError
from aula.servers.realtime.wire import Wire

NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008
"""Close codes (RFC 6455, 7.4.1)."""
_CLOSING_SECONDS = 2.0


class _OverError(Exception):
    """The visit ends; the client is told with this code, and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Visit:
    def __init__(
        self, house: House, dialogues: Dialogues, caller: Caller, wire: Wire, options: Options, socket: WebSocket
    ) -> None:
        self._house = house
        self._dialogues = dialogues
        self._caller = caller
        self._wire = wire
        self._options = options
        self._socket = socket
        self._clock = house.runtime.clock
        self._ids = Ids()
        self._conversation = Conversation(options, self._clock, self._ids, self._limits)
        self._outbox = Outbox(house.settings.whole("realtime.outbox_kb") * 1024)
        self._attendant: Attendant | None = None
        self._changing: ChangeCourse | None = None
        self._last_event = self._clock.now()
        self._stirred = asyncio.Event()
        self._rested = asyncio.Event()
        """Set whenever no turn is under way; looked at only when the server ends."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until either side has enough. The socket is accepted already, and closed here."""
        with self._house.traffic.guest():
            await self._run()

    async def _run(self) -> None:
        end = _OverError(NORMAL, "")
        try:
            dialogue = await self._dialogues.open(self._options.course)
        except AulaError as error:
            self._perform(self._conversation.refuse(error))
            await self._say_goodbye(_OverError(POLICY, "the course cannot be opened"))
            return
        self._attendant = Attendant(self._house, dialogue, self._caller, self._ids, self._told, self._outbox.room)
        tasks: list[asyncio.Future[None]] = [
            asyncio.create_task(self._read(self._attendant)),
            asyncio.create_task(self._outbox.send_all(self._socket.send_text)),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._leave()),
            self._over,
        ]
        try:
            self._perform(self._conversation.opened())
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            end = _ending(done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._attendant.close()
        await self._say_goodbye(end)

    def _perform(self, outs: Sequence[Out]) -> None:
        for out in outs:
            if isinstance(out, dict):
                if (text := self._wire.write(out)) is not None:
                    self._outbox.put(text)
            elif isinstance(out, ChangeCourse):
                self._changing = out
            elif self._attendant is not None:
                self._attendant.do(out)
        self._stirred.set()
        if self._house.traffic.is_closing and not self._conversation.is_under_way:
            self._rested.set()

    def _told(self, happening: Happening) -> None:
        try:
            self._perform(self._conversation.told(happening))
        except OutboxFullError:
            if not self._over.done():
                self._over.set_exception(_OverError(POLICY, "the client does not read"))

    async def _read(self, attendant: Attendant) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._last_event = self._clock.now()
            self._perform(self._answer_to(message.get("text")))
            if self._changing is not None:
                await self._change_course(attendant)
            await attendant.room()

    def _answer_to(self, text: str | None) -> list[Out]:
        if text is None:
            return self._conversation.refuse(
                ClientError("Events are texts; this frame is binary. Next: send sound as base64", code="invalid_event")
            )
        try:
            return self._conversation.receive(self._wire.read(text))
        except ClientError as error:
            return self._conversation.refuse(error)

    async def _change_course(self, attendant: Attendant) -> None:
        assert self._changing is not None
        (name, self._changing), error = (self._changing.name, None), None
        try:
            attendant.dialogue = await self._dialogues.open(name)
        except AulaError as failure:
            error = failure
        self._perform(self._conversation.told(CourseChanged(error)))

    async def _watch(self) -> None:
        """Silence that is too long within the conversation, and a client that says nothing any more."""
        idle = self._house.settings.number("realtime.idle_seconds")
        while True:
            answering = self._conversation.response is not None
            moments = [None if answering else self._last_event + idle, self._conversation.next_moment()]
            await self._until(min((moment for moment in moments if moment is not None), default=None))
            if outs := self._conversation.passed():
                self._perform(outs)
            if self._clock.now() >= self._last_event + idle and self._conversation.response is None:
                self._perform(
                    self._conversation.refuse(
                        ClientError(f"The client sent nothing for {idle:g} seconds.", code="session_idle_timeout")
                    )
                )
                raise _OverError(NORMAL, "idle")

    async def _leave(self) -> None:
        """When the server ends: after the turn that is under way, and before another."""
        await self._house.traffic.closing.wait()
        if self._conversation.is_under_way:
            await self._rested.wait()
        raise _OverError(GOING_AWAY, "the server is about to stop")

    async def _until(self, moment: float | None) -> None:
        """Until then, or until anything happened."""
        self._stirred.clear()
        waits: set[asyncio.Future[object]] = {asyncio.ensure_future(self._stirred.wait())}
        if moment is not None:
            waits.add(asyncio.ensure_future(self._clock.sleep_until(moment)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _say_goodbye(self, end: _OverError) -> None:
        """What still waits is sent first; but a client that does not read is not waited for."""

        async def leave() -> None:
            for text in self._outbox.rest():
                await self._socket.send_text(text)
            await self._socket.close(end.code, end.reason)

        with suppress(RuntimeError, OSError, WebSocketDisconnect):
            leaving = asyncio.ensure_future(leave())
            waiting = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + _CLOSING_SECONDS))
            try:
                await asyncio.wait({leaving, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    leaving.result()
            finally:
                leaving.cancel()
                waiting.cancel()

    def _limits(self) -> list[JsonObject]:
        allowance = self._house.runtime.allowance(self._caller.tenant)
        if allowance is None:
            return []
        return [
            {
                "name": "requests",
                "limit": allowance.limit,
                "remaining": allowance.remaining,
                "reset_seconds": round(allowance.reset_seconds, 3),
            }
        ]


def _ending(done: set[asyncio.Future[None]]) -> _OverError:
    """How it ended, from what ended first. Raises what was no lawful end."""
    for task in done:
        error = task.exception()
        if isinstance(error, _OverError):
            return error
        if isinstance(error, OutboxFullError):
            return _OverError(POLICY, "the client does not read")
        if error is not None and not isinstance(error, RuntimeError | OSError | WebSocketDisconnect):
            raise error
    return _OverError(NORMAL, "")
