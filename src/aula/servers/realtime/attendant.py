"""Carries out what a conversation asks: hears, transcribes, answers, speaks; and tells the conversation of it.

Hearing is a line of its own, in the order in which sound came. Answering is a task for each response, which ends when
it is stopped. Neither makes the reader of events wait, except where more sound waits to be heard than is lawful.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import time
from typing import Any

import numpy as np

from aula.assistant.dialogue import Dialogue
from aula.assistant.turns import Turn, TurnOptions
from aula.core.errors import AulaError
from aula.core.types import SPEECH_RATE, Capability, Context, DetectRequest
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.logs import log_defect
from aula.servers.realtime.answering import Answering, Room
from aula.servers.realtime.listening import OpenMicrophone, Tell, Utterance, closed
from aula.servers.realtime.messages import (
    Adopt,
    Command,
    Finish,
    Forget,
    Hear,
    Ids,
    NotHeard,
    NotTranscribed,
    Remember,
    Reply,
    Stop,
)

MOST_WAITING = 10 * SPEECH_RATE
"""Samples that may wait to be heard, before the client has to wait too."""
_TOGETHER = SPEECH_RATE // 5
"""Sound that waits is heard in blocks of this many samples, which costs fewer hops between threads."""
_DEAF_SECONDS = 1.0

_Hearing = Hear | Finish | Forget


class Attendant:
    """One connection's. Whoever has it may put another course's dialogue in the place of `dialogue`."""

    def __init__(
        self,
        house: House,
        dialogue: Dialogue,
        caller: Caller,
        ids: Ids,
        tell: Tell,
        outgoing: Room,
        wall: Callable[[], float] = time,
    ) -> None:
        """`outgoing` returns when there is room for more sound to be sent; `wall` is Unix time."""
        self.dialogue = dialogue
        self._house = house
        self._caller = caller
        self._ids = ids
        self._tell = tell
        self._outgoing = outgoing
        self._wall = wall
        self._options = TurnOptions.from_settings(house.settings)
        self._line: deque[_Hearing] = deque()
        self._waiting = 0
        self._heard = 0
        self._more = asyncio.Event()
        self._less = asyncio.Event()
        self._utterances: dict[str, Utterance] = {}
        self._due: dict[str, asyncio.Future[Utterance | Exception | None]] = {}
        """Utterances that are to be finished when their sound has been heard."""
        self._given_up: dict[str, Exception] = {}
        """The last item that could not be heard, and why."""
        self._microphone: OpenMicrophone | None = None
        self._deaf_until = 0.0
        """An open microphone that cannot be heard is told of once, and not for each of its frames."""
        self._answering: dict[str, asyncio.Task[None]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        """What is taken out of everything else, and not closed yet."""

    def do(self, command: Command) -> None:
        match command:
            case Hear() | Finish() | Forget():
                if isinstance(command, Finish):
                    self._due[command.item_id] = asyncio.get_running_loop().create_future()
                    if (utterance := self._utterances.get(command.item_id)) is not None:
                        utterance.turn.hurry()
                self._line.append(command)
                self._waiting += len(command.samples) if isinstance(command, Hear) else 0
                self._more.set()
                if self._listening is None:
                    self._listening = asyncio.create_task(self._listen())
            case Reply():
                dialogue = self.dialogue.another() if command.apart else self.dialogue
                answering = Answering(self._house, self._caller, dialogue, command, self._tell, self._outgoing)
                task = asyncio.create_task(answering.run(self._utterance_of, self._wall))
                self._answering[command.response_id] = task
                task.add_done_callback(lambda _: self._answering.pop(command.response_id, None))
            case Stop(response_id):
                if (task_or_none := self._answering.get(response_id)) is not None:
                    task_or_none.cancel()
            case Remember(text, language, forget):
                if forget:
                    self.dialogue.forget(text)
                else:
                    self.dialogue.recall(text, language or self.dialogue.course.info.language)
            case Adopt(manner):
                self.dialogue.manner = manner

    async def room(self) -> None:
        """Return when there is room for more sound."""
        while self._waiting > MOST_WAITING:
            self._less.clear()
            await self._less.wait()

    async def close(self) -> None:
        """Everything is given back; what was drafted was never said."""
        tasks = {*self._answering.values(), *({self._listening} if self._listening else ())}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._closing:
            await asyncio.wait(self._closing)
        for utterance in list(self._utterances.values()):
            await closed(utterance)
        self._utterances.clear()
        if self._microphone is not None:
            await self._microphone.close()

    async def _utterance_of(self, item_id: str) -> Utterance | None:
        """Once all that was heard before is heard. Raises why it was given up."""
        due = self._due.get(item_id)
        if due is None:
            found = self._utterances.get(item_id) or self._given_up.get(item_id)
        else:
            found = await asyncio.shield(due)
        if isinstance(found, Exception):
            raise found
        return found

    async def _listen(self) -> None:
        while True:
            while not self._line:
                self._more.clear()
                await self._more.wait()
            command = self._next()
            item_id = command.item_id or ""
            try:
                match command:
                    case Hear():
                        await self._hear(command)
                    case Finish():
                        self._finish(item_id)
                    case Forget():
                        await self._forget(command.item_id)
            except AulaError as error:
                await self._give_up(command, error)
            except Exception as error:
                log_defect(error, item_id)
                await self._give_up(command, error)
            finally:
                self._less.set()

    def _next(self) -> _Hearing:
        """What waits first; sound of one utterance that waits is taken together."""
        command = self._line.popleft()
        if not isinstance(command, Hear):
            return command
        samples, count = [command.samples], len(command.samples)
        while count < _TOGETHER and self._line:
            following = self._line[0]
            if not isinstance(following, Hear) or (following.item_id, following.detection) != (
                command.item_id,
                command.detection,
            ):
                break
            self._line.popleft()
            samples.append(following.samples)
            count += len(following.samples)
        self._waiting -= count
        if len(samples) == 1:
            return command
        return Hear(np.concatenate(samples), command.item_id, command.detection, command.language)

    async def _hear(self, command: Hear) -> None:
        context = self._context(command.language)
        if command.detection is None:
            if command.item_id in self._given_up:
                return
            utterance = self._utterances.get(command.item_id)
            if utterance is None:
                self._house.doorman.again(self._caller)
                turn = await Turn.open(self._house.runtime, self.dialogue, context, self._options)
                utterance = Utterance(command.item_id, turn, self._tell, is_admitted=True)
                self._utterances[command.item_id] = utterance
            self._heard += len(command.samples)
            await utterance.hear(command.samples)
            return
        if self._house.runtime.clock.now() < self._deaf_until:
            return
        if self._microphone is None or self._microphone.detection != command.detection:
            await self._leave_microphone()
            found = await self._house.runtime.submit(Capability.DETECT, DetectRequest(), context)
            self._microphone = OpenMicrophone(
                self._house.runtime,
                found.value,
                command.detection,
                self._options,
                self._utterances,
                self._ids,
                self._tell,
                1000 * self._heard // SPEECH_RATE,
            )
        self._heard += len(command.samples)
        await self._microphone.hear(command.samples, self.dialogue, context)

    def _finish(self, item_id: str) -> None:
        utterance = self._utterances.get(item_id)
        if self._microphone is not None and utterance is not None and self._microphone.speaking is utterance:
            self._microphone.rest()
        error = self._given_up.get(item_id)
        if utterance is not None:
            utterance.finish()
        elif error is not None:
            self._tell(NotTranscribed(item_id, error))
        due = self._due.pop(item_id, None)
        if due is not None and not due.done():
            due.set_result(utterance or error)

    async def _forget(self, item_id: str | None) -> None:
        if item_id is None:
            await self._leave_microphone()
        elif (utterance := self._utterances.pop(item_id, None)) is not None:
            await self._whole(closed(utterance))
        self._given_up.pop(item_id or "", None)

    async def _leave_microphone(self) -> None:
        microphone, self._microphone = self._microphone, None
        if microphone is None:
            return
        if microphone.speaking is not None:
            self._utterances.pop(microphone.speaking.item_id, None)
        await self._whole(_left(microphone))

    async def _whole(self, closing: Coroutine[Any, Any, None]) -> None:
        """It is closed to the end, also where the client goes meanwhile: `close` waits for it."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await asyncio.shield(task)

    async def _give_up(self, command: _Hearing, error: Exception) -> None:
        """What cannot be heard is told once, and no more of it is tried."""
        item_id = command.item_id or ""
        if isinstance(command, Hear) and command.detection is not None:
            speaking = None if self._microphone is None else self._microphone.speaking
            item_id = item_id if speaking is None else speaking.item_id
            wait = getattr(error, "retry_after_s", None) or _DEAF_SECONDS
            self._deaf_until = self._house.runtime.clock.now() + wait
            await self._leave_microphone()
        utterance = self._utterances.pop(item_id, None)
        if utterance is not None:
            await self._whole(closed(utterance))
        self._given_up = {item_id: error}
        self._tell(NotHeard(item_id, error))

    def _context(self, language: str | None) -> Context:
        return self._caller.context(language or self.dialogue.course.info.language)


async def _left(microphone: OpenMicrophone) -> None:
    if microphone.speaking is not None:
        await closed(microphone.speaking)
    await microphone.close()
