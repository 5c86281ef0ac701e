"""The protocol as a state machine: events in GA names in, events and commands out. It knows no socket and no model.

    client events ──► receive ┐                    ┌──► events to the client (dict)
    happenings    ──► told    ┼──► Conversation ──►┤
    time          ──► passed  ┘                    └──► commands to whoever hears and answers

What is heard and what is answered goes on by itself and is told when it happens; the conversation alone decides what of
it still counts. A happening of an utterance or a response that is no longer wanted changes nothing and says nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import AudioError, NothingHeardError
from aula.core.types import Float32
from aula.servers.realtime import shapes
from aula.servers.realtime.errors import ClientError, JsonObject, error_of
from aula.servers.realtime.events import Out, Speaker
from aula.servers.realtime.formats import SoundIn
from aula.servers.realtime.items import Item, Items, made
from aula.servers.realtime.messages import (
    Adopt,
    Answered,
    ChangeCourse,
    Continued,
    CourseChanged,
    Ended,
    Finish,
    Forget,
    Happening,
    Hear,
    Ids,
    NotAnswered,
    NotHeard,
    NotTranscribed,
    PartHeard,
    Remember,
    Reply,
    Sounded,
    SpeechBegan,
    SpeechEnded,
    Stop,
    Transcribed,
)
from aula.servers.realtime.options import Options, response_changes
from aula.servers.realtime.responding import Response, asked_of
from aula.servers.realtime.transcripts import Hypotheses
from aula.servers.realtime.wire import from_base64

LEAST_MS = 100
"""A shorter buffer cannot be committed: no word is that short."""


class Conversation(Speaker):
    """One session. Every method returns what is to be sent and done, in order."""

    def __init__(
        self,
        options: Options,
        clock: Clock,
        ids: Ids | None = None,
        limits: Callable[[], list[JsonObject]] = list,
    ) -> None:
        super().__init__(ids or Ids())
        self.options = options
        self.items = Items()
        self.response: Response | None = None
        self._clock = clock
        self._limits = limits
        self._session_id = self.ids.new("sess")
        self._conversation_id = self.ids.new("conv")
        self._sound_in = SoundIn(options.input)
        self._buffer: str | None = None
        """The item that the sound becomes: with push-to-talk from the first sound on, else while somebody speaks."""
        self._buffer_ms = 0.0
        self._buffer_error: Exception | None = None
        self._heard_ms = 0.0
        self._hypotheses = Hypotheses()
        self._wanted: tuple[Options, str | None] | None = None
        self._timeout: tuple[float, float] | None = None
        """When silence becomes too long, and how much had been heard when it began."""

    def opened(self) -> list[Out]:
        self._ask(Adopt(self.options.manner))
        self._say("session.created", session=self._session())
        return self._taken()

    def receive(self, event: JsonObject) -> list[Out]:
        """An event from the client. What it cannot have is answered by an error event, and nothing else changes."""
        event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
        try:
            shape = shapes.CLIENT_EVENTS.get(str(event.get("type")))
            if shape is None:
                told = "there is no type" if "type" not in event else f"unknown event type {str(event['type'])[:80]!r}"
                raise ClientError(f"{told}; expected one of {', '.join(shapes.CLIENT_EVENTS)}", param="type")
            self._obey(shapes.checked(shape, event, str(event["type"])), event_id)
        except (ClientError, AudioError) as error:
            self._out.clear()
            self._say_error(error, event_id)
        return self._taken()

    def refuse(self, error: Exception, event_id: str | None = None) -> list[Out]:
        """An error event."""
        self._say_error(error, event_id)
        return self._taken()

    def told(self, happening: Happening) -> list[Out]:
        """Something that was asked for has happened."""
        match happening:
            case SpeechBegan() | SpeechEnded() | PartHeard() | Transcribed() | NotTranscribed() | NotHeard():
                self._heard(happening)
            case CourseChanged(error):
                self._course_changed(error)
            case _ if self.response is None or self.response.id != happening.response_id:
                pass
            case Answered(_, answer, told) if not self.response.speaks:
                if self.response.asked is not None:
                    self._release(self.response.asked)
                before = self.items.last()
                if self.response.conversation_id is not None:
                    self._keep(self.response.item)
                self._say_all(self.response.answered(answer, told, before))
            case Sounded(_, sound) if self.response.speaks:
                self._say_all([self.response.sounded(sound, self._clock.now())])
            case Continued(_, text) if self.response.speaks:
                self._say_all([self.response.continued(text)])
            case Ended(_, told):
                if told is not None:
                    self.response.told = told
                self._end_response("completed")
            case NotAnswered(_, error):
                told = error_of(error)
                self._end_response("failed", {"error": {name: told[name] for name in ("type", "code", "message")}})
        return self._taken()

    @property
    def is_under_way(self) -> bool:
        """Whether somebody speaks, was just heard, or is answered."""
        if self.response is not None or self._buffer is not None:
            return True
        return any(item.text is None and item.failed is None for item in self.items.with_turns())

    def next_moment(self) -> float | None:
        """When `passed` is to be called, if nothing happens before."""
        return None if self._timeout is None else self._timeout[0]

    def passed(self) -> list[Out]:
        """Time has passed: has nobody spoken for too long?"""
        if self._timeout is None or self._clock.now() < self._timeout[0]:
            return []
        began_ms = self._timeout[1]
        self._timeout = None
        item = Item(self.ids.new("item"), kind="input_audio", open_mic=True, failed=_silence())
        self._say(
            "input_audio_buffer.timeout_triggered",
            audio_start_ms=round(began_ms),
            audio_end_ms=round(self._heard_ms),
            item_id=item.id,
        )
        self._commit_item(item)
        self._respond(item, {}, None)
        return self._taken()

    # What a client may ask

    def _obey(self, event: object, event_id: str | None) -> None:
        match event:
            case shapes.AudioAppend(audio=audio):
                self._append(audio)
            case shapes.AudioCommit():
                self._commit()
            case shapes.AudioClear():
                self._clear()
                self._say("input_audio_buffer.cleared")
            case shapes.SessionUpdate(session=session):
                self._update(session, event_id)
            case shapes.ItemCreate(item=raw, previous_item_id=after):
                self._create_item(raw, after)
            case shapes.ItemRetrieve(item_id=item_id):
                self._say("conversation.item.retrieved", item=self.items.find(item_id).shown())
            case shapes.ItemDelete(item_id=item_id):
                self._delete_item(self.items.find(item_id))
            case shapes.ItemTruncate(item_id=item_id, content_index=index, audio_end_ms=end_ms):
                self._truncate_item(self.items.find(item_id), index, end_ms)
            case shapes.ResponseCreate(response=wanted):
                self._create_response(wanted or {})
            case shapes.ResponseCancel(response_id=response_id):
                self._cancel(response_id)
            case shapes.OutputClear():
                raise ClientError(
                    "output_audio_buffer.clear is for WebRTC; over a WebSocket the client holds what it plays. "
                    "Next: send response.cancel, and conversation.item.truncate",
                    param="type",
                )

    def _append(self, audio: str) -> None:
        raw = from_base64(audio, "audio")
        samples = self._sound_in.feed(raw)
        milliseconds = self.options.input.milliseconds(len(raw))
        self._heard_ms += milliseconds
        if self.options.detection is None and self._buffer is None:
            self._buffer = self.ids.new("item")
        self._buffer_ms += milliseconds
        if self._buffer_error is None:
            self._hear(samples)

    def _hear(self, samples: Float32) -> None:
        options = self.options
        if len(samples):
            self._ask(Hear(samples, self._buffer or "", options.detection, options.language))

    def _commit(self) -> None:
        if self.options.detection is not None and self._buffer is None:
            raise ClientError(
                "Nobody has spoken since the last commit.", code="input_audio_buffer_commit_empty", param=None
            )
        if self._buffer is None or self._buffer_ms < LEAST_MS:
            raise ClientError(
                f"The buffer holds {self._buffer_ms:.0f} ms of sound; expected at least {LEAST_MS} ms.",
                code="input_audio_buffer_commit_empty",
            )
        self._commit_buffer()

    def _commit_buffer(self) -> Item:
        """The sound becomes an item, and its transcription goes on."""
        assert self._buffer is not None
        open_mic = self.options.detection is not None
        item = Item(self._buffer, kind="input_audio", open_mic=open_mic, failed=self._buffer_error)
        if self._buffer_error is None:
            if not open_mic:
                self._hear(self._sound_in.flush())
            item.has_turn = True
            self._ask(Finish(item.id))
        self._commit_item(item)
        if self._buffer_error is not None:
            self._tell_failure(item, self._buffer_error)
        self._empty_buffer()
        return item

    def _commit_item(self, item: Item) -> None:
        self._say("input_audio_buffer.committed", item_id=item.id, previous_item_id=self.items.last())
        self._say_item(item, self._keep(item))

    def _clear(self) -> None:
        self._sound_in.flush()
        self._ask(Forget(self._buffer if self.options.detection is None else None))
        self._empty_buffer()

    def _empty_buffer(self) -> None:
        self._buffer, self._buffer_ms, self._buffer_error = None, 0.0, None

    def _update(self, session: JsonObject, event_id: str | None) -> None:
        options = self.options.updated(session)
        if options.course != self.options.course:
            # The course is opened first; until that is told, whoever reads for us reads no further event.
            self._wanted = (options, event_id)
            self._ask(ChangeCourse(options.course))
        else:
            self._set(options)

    def _course_changed(self, error: Exception | None) -> None:
        if self._wanted is None:
            return
        (options, event_id), self._wanted = self._wanted, None
        if error is None:
            self._set(options)
        else:
            self._say_error(error, event_id)

    def _set(self, options: Options) -> None:
        before, self.options = self.options, options
        if options.detection != before.detection:
            self._ask(Forget(None))
            if self._buffer is not None:
                self._ask(Forget(self._buffer))
            self._empty_buffer()
            self._timeout = None
        if options.input != before.input:
            self._sound_in = SoundIn(options.input)
        self._ask(Adopt(options.manner))
        self._say("session.updated", session=self._session())

    def _create_item(self, raw: JsonObject, after: str | None) -> None:
        item, sound = made(raw, self.ids)
        ours = {self._buffer, self.response.item.id if self.response is not None else None}
        if item.id in ours or (raw.get("id") is not None and self.ids.will_be(item.id)):
            raise ClientError(f"The id {item.id[:80]!r} is taken.", code="item_id_taken", param="item.id")
        heard = [] if sound is None else self._sound_of(sound)
        before = self._keep(item, after)
        self._say_item(item, before)
        if sound is not None:
            item.has_turn = True
            self._ask(*(Hear(samples, item.id, None, self.options.language) for samples in heard), Finish(item.id))
        elif item.role == "assistant" and item.text:
            self._ask(Remember(item.text, self.options.language))

    def _sound_of(self, audio: str) -> list[Float32]:
        sound_in = SoundIn(self.options.input)
        return [sound_in.feed(from_base64(audio, "item.content")), sound_in.flush()]

    def _delete_item(self, item: Item) -> None:
        self._drop(item)
        self._say("conversation.item.deleted", item_id=item.id)

    def _truncate_item(self, item: Item, index: int, end_ms: int) -> None:
        if item.kind != "output_audio":
            raise ClientError("Only an answer that was spoken can be truncated.", param="item_id")
        if index != 0:
            raise ClientError("content_index is 0 here, always.", param="content_index")
        if not 0 <= end_ms <= item.sound_ms + 1:
            raise ClientError(
                f"audio_end_ms is {end_ms}, and the item has {item.sound_ms:.0f} ms of sound.", param="audio_end_ms"
            )
        if self.response is not None and self.response.item is item:
            self._stop_response("client_cancelled")
        item.text, item.sound_ms = None, float(end_ms)
        self._say("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end_ms)

    def _create_response(self, raw: JsonObject) -> None:
        if self.response is not None:
            raise ClientError(
                f"The conversation has an active response already: {self.response.id}. Next: wait for response.done, "
                "or send response.cancel",
                code="conversation_already_has_active_response",
            )
        wanted: shapes.ResponseWanted = shapes.checked(shapes.ResponseWanted, raw, "response")
        question = self.items.question() if wanted.input is None else self._question_in(wanted.input)
        self._respond(question, response_changes(wanted), wanted)

    def _question_in(self, rows: list[JsonObject]) -> Item | None:
        """The last thing that a user says in `rows`, which belong to no conversation."""
        found: Item | None = None
        for row in rows:
            if row.get("type") == "item_reference":
                item, sound = self.items.find(str(row.get("id")), "response.input"), None
            else:
                item, sound = made(row, self.ids)
            if sound is not None:
                raise ClientError("send sound as an item of the conversation", param="response.input")
            found = item if item.question else found
        return found

    # Responses

    def _respond(self, question: Item | None, changes: dict[str, Any], wanted: shapes.ResponseWanted | None) -> None:
        apart = wanted is not None and wanted.conversation == "none"
        options = replace(self.options, **changes)
        kind = "output_audio" if options.aloud else "output_text"
        item = Item(self.ids.new("item"), "assistant", kind, status="in_progress")
        response = Response(
            self.ids.new("resp"),
            item,
            options,
            None if apart else self._conversation_id,
            None if wanted is None else wanted.metadata,
            question,
        )
        self.response = response
        self._timeout = None
        clock = "text" if question is None or question.kind != "input_audio" else "B" if question.open_mic else "A"
        asked = asked_of(question)
        self._ask(Reply(response.id, asked, options.manner, options.output, options.language, clock, apart))
        self._say_all([response.created()])
        self._say("rate_limits.updated", rate_limits=self._limits())

    def _cancel(self, response_id: str | None) -> None:
        if self.response is None or response_id not in (None, self.response.id):
            raise ClientError("There is no such active response.", code="response_cancel_not_active")
        self._stop_response("client_cancelled")

    def _stop_response(self, reason: str) -> None:
        assert self.response is not None
        self._ask(Stop(self.response.id))
        self._end_response("cancelled", {"reason": reason})

    def _end_response(self, status: str, details: JsonObject | None = None) -> None:
        assert self.response is not None
        response, self.response = self.response, None
        self._say_all(response.finished(status, details, self.items.before(response.item)))
        detection = self.options.detection
        if detection is not None and detection.idle_timeout_ms is not None and self._buffer is None:
            played = max(response.played_until() or 0.0, self._clock.now())
            self._timeout = (played + detection.idle_timeout_ms / 1000, self._heard_ms)

    # What is heard

    def _heard(self, happening: Happening) -> None:
        match happening:
            case SpeechBegan(item_id, at_ms):
                self._speech_began(item_id, at_ms)
            case SpeechEnded(item_id, at_ms) if item_id == self._buffer:
                self._say("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=at_ms)
                item = self._commit_buffer()
                detection = self.options.detection
                if detection is not None and detection.creates and self.response is None:
                    self._respond(item, {}, None)
            case PartHeard(item_id, text) if self.options.transcription is not None:
                delta = self._hypotheses.heard(item_id, text)
                self._say_transcript("delta", item_id, delta=delta, aula={"partial": text})
            case Transcribed(item_id, text, seconds):
                self._transcribed(item_id, text, seconds)
            case NotTranscribed(item_id, error):
                self._hypotheses.forget(item_id)
                if (failed := self.items.get(item_id)) is not None:
                    failed.failed = error
                    self._tell_failure(failed, error)
            case NotHeard(item_id, error):
                self._hypotheses.forget(item_id)
                self._say_error(error, None)
                if self.options.detection is not None:
                    self._empty_buffer()
                elif item_id == self._buffer:
                    self._buffer_error = error

    def _speech_began(self, item_id: str, at_ms: int) -> None:
        detection = self.options.detection
        if detection is None:
            return
        self._buffer, self._buffer_ms = item_id, float(LEAST_MS)
        self._timeout = None
        self._say("input_audio_buffer.speech_started", item_id=item_id, audio_start_ms=at_ms)
        if self.response is not None and detection.interrupts:
            self._stop_response("turn_detected")

    def _transcribed(self, item_id: str, text: str, seconds: float) -> None:
        rest = self._hypotheses.final(item_id, text)
        item = self.items.get(item_id)
        if item is None:
            return
        item.text = text
        if self.options.transcription is None:
            return
        if rest:
            self._say_transcript("delta", item_id, delta=rest, aula={"partial": text})
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        self._say_transcript("completed", item_id, transcript=text, usage=usage)

    def _tell_failure(self, item: Item, error: Exception) -> None:
        if self.options.transcription is not None:
            told = error_of(error)
            self._say_transcript(
                "failed", item.id, error={name: told[name] for name in ("type", "code", "message", "param")}
            )

    # Items and events

    def _keep(self, item: Item, after: str | None = None) -> str | None:
        before = self.items.add(item, after)
        if item.question:
            # Only the newest question keeps its turn, with the draft in it: memory is bounded.
            for other in self.items.with_turns():
                if other is not item and (self.response is None or self.response.asked is not other):
                    self._release(other)
        while (oldest := self.items.surplus()) is not None:
            self._drop(oldest)
        return before

    def _drop(self, item: Item) -> None:
        self._release(item)
        self.items.remove(item)
        if item.role == "assistant" and item.text:
            self._ask(Remember(item.text, None, forget=True))

    def _release(self, item: Item) -> None:
        if item.has_turn:
            item.has_turn = False
            self._ask(Forget(item.id))

    def _session(self) -> JsonObject:
        return {"id": self._session_id, **self.options.shown()}


def _silence() -> NothingHeardError:
    return NothingHeardError("nobody spoke for a while", next_step="go on whenever you like")
