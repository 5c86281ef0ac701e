"""What one connection's ears do: utterances with their turns, and the open microphone that finds them."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from aula.assistant.dialogue import Dialogue
from aula.assistant.endpointing import Endpointer, SpeechStarted, SpeechState, SpeechStopped
from aula.assistant.turns import Turn, TurnOptions
from aula.core.errors import AulaError
from aula.core.types import SPEECH_RATE, Context, Float32, Transcript
from aula.runtime import LiveDetection, Runtime
from aula.servers.realtime.messages import (
    Happening,
    Ids,
    NotTranscribed,
    PartHeard,
    SpeechBegan,
    SpeechEnded,
    Transcribed,
)
from aula.servers.realtime.shapes import Detection

BLOCK = SPEECH_RATE // 10
"""Samples that are heard at once: other students' sound is heard between two of them."""
Tell = Callable[[Happening], None]


class Utterance:
    """What a student says, from its first sound to its text; afterwards its turn holds the answer that was drafted."""

    def __init__(self, item_id: str, turn: Turn, tell: Tell, *, is_admitted: bool = False) -> None:
        """`is_admitted`: the doorman has counted it before anything was heard."""
        self.item_id = item_id
        self.turn = turn
        self._tell = tell
        self._samples = 0
        self._partial = ""
        self._is_admitted = is_admitted
        self._finishing: asyncio.Task[Transcript] | None = None

    async def hear(self, samples: Float32) -> None:
        """Raises what the turn raises."""
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            self._samples += len(block)
            await self.turn.hear(block)
            if self.turn.partial != self._partial:
                self._partial = self.turn.partial
                self._tell(PartHeard(self.item_id, self._partial))

    def take_admission(self) -> bool:
        """Whether its first answer was counted already; a second one is not."""
        taken, self._is_admitted = self._is_admitted, False
        return taken

    def finish(self) -> None:
        """Transcribe it, beside whatever is heard meanwhile."""
        if self._finishing is None:
            self._finishing = asyncio.create_task(self._finish())
            # Whoever asks for the transcript is told of the error; if nobody asks, it has been told already.
            self._finishing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def transcript(self) -> Transcript:
        """Raises what the transcription raised."""
        assert self._finishing is not None
        return await asyncio.shield(self._finishing)

    async def _finish(self) -> Transcript:
        try:
            transcript = await self.turn.transcribe()
        except Exception as error:
            self._tell(NotTranscribed(self.item_id, error))
            raise
        self._tell(Transcribed(self.item_id, transcript.text, self._samples / SPEECH_RATE))
        return transcript

    async def close(self) -> None:
        if self._finishing is not None and not self._finishing.done():
            self._finishing.cancel()
            await asyncio.wait({self._finishing})
        await self.turn.close()


class OpenMicrophone:
    """Finds who speaks in a sound that never stops. Only while somebody does is a turn open: silence costs nothing
    but the detection."""

    def __init__(
        self,
        runtime: Runtime,
        detecting: LiveDetection,
        detection: Detection,
        options: TurnOptions,
        utterances: dict[str, Utterance],
        ids: Ids,
        tell: Tell,
        before_ms: int,
    ) -> None:
        """Utterances are put into `utterances` when they begin; `before_ms` of sound were heard before."""
        self.detection = detection
        self.speaking: Utterance | None = None
        self._runtime = runtime
        self._detecting = detecting
        self._endpointer = Endpointer(detection.endpointing())
        self._options = options
        self._utterances = utterances
        self._ids = ids
        self._tell = tell
        self._before_ms = before_ms
        self._lead: deque[Float32] = deque()

    async def hear(self, samples: Float32, dialogue: Dialogue, context: Context) -> None:
        """Take the next sound. Raises what the detection and the turn raise."""
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            events = [self._endpointer.feed(p) for p in await self._detecting.feed(block)]
            for event in events:
                if isinstance(event, SpeechStarted) and self.speaking is None:
                    await self._begin(event.at_ms, dialogue, context)
            if self.speaking is None:
                self._remember(block)
                continue
            await self.speaking.hear(np.concatenate([*self._lead, block]))
            self._lead.clear()
            for event in events:
                if isinstance(event, SpeechStopped) and self.speaking is not None:
                    ended, self.speaking = self.speaking, None
                    self._tell(SpeechEnded(ended.item_id, self._before_ms + event.at_ms))

    def rest(self) -> None:
        """Whoever speaks is no longer listened to; the next sound may begin anew."""
        self.speaking = None
        self._endpointer.state = SpeechState.SILENCE
        self._lead.clear()

    async def close(self) -> None:
        await self._detecting.close()

    async def _begin(self, at_ms: int, dialogue: Dialogue, context: Context) -> None:
        item_id = self._ids.new("item")
        began_ms = max(0, at_ms - self._endpointer.options.lead_ms)
        self._tell(SpeechBegan(item_id, self._before_ms + began_ms))
        turn = await Turn.open(self._runtime, dialogue, context, self._options, detecting=False)
        self.speaking = self._utterances[item_id] = Utterance(item_id, turn, self._tell)

    def _remember(self, block: Float32) -> None:
        """The first sound of speech is softer than the threshold."""
        self._lead.append(block)
        options = self._endpointer.options
        room = (options.lead_ms + options.start_ms) * SPEECH_RATE // 1000
        while self._lead and sum(map(len, self._lead)) - len(self._lead[0]) >= room:
            self._lead.popleft()


async def closed(utterance: Utterance) -> None:
    """Close it, whatever its streams say to that: nobody needs it any more."""
    with suppress(AulaError):
        await utterance.close()
