"""The protocol's state machine: no socket, no model, a clock that stands still."""

from typing import Any

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import AudioTooLongError, EngineError, NothingHeardError
from aula.core.types import Answer, Intent
from aula.servers.realtime.conversation import Conversation
from aula.servers.realtime.errors import JsonObject
from aula.servers.realtime.items import MOST_ITEMS
from aula.servers.realtime.messages import (
    Adopt,
    Answered,
    ChangeCourse,
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
from aula.servers.realtime.options import Options
from tests.servers.realtime.speaking import loud, quiet, text_of

ANSWER = Answer("Inertia is laziness.", "en", Intent.CONTENT, refused=False)
TOLD = {"citations": [], "drafted": True}
PUSH_TO_TALK = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


class Talk:
    """A conversation, and what came of the last call: `said` to the client, `done` by whoever hears and answers."""

    def __init__(self, session: JsonObject | None = None, *, push: bool = True) -> None:
        self.clock = FakeClock(100.0)
        self.conversation = Conversation(Options("mechanics-en"), self.clock, Ids("x"))
        self.said: list[JsonObject] = []
        self.done: list[Any] = []
        self._sort(self.conversation.opened())
        if push:
            self.send("session.update", session=PUSH_TO_TALK)
        if session:
            self.send("session.update", session={"type": "realtime", **session})

    def send(self, kind: str, **fields: Any) -> list[str]:
        return self._sort(self.conversation.receive({"type": kind, **fields}))

    def tell(self, happening: Happening) -> list[str]:
        return self._sort(self.conversation.told(happening))

    def pass_seconds(self, seconds: float) -> list[str]:
        self.clock.advance(seconds)
        return self._sort(self.conversation.passed())

    def _sort(self, outs: list[Any]) -> list[str]:
        self.said = [out for out in outs if isinstance(out, dict)]
        self.done = [out for out in outs if not isinstance(out, dict)]
        return [event["type"] for event in self.said]

    def event(self, kind: str) -> JsonObject:
        return next(event for event in self.said if event["type"] == kind)

    @property
    def error(self) -> JsonObject:
        (event,) = self.said
        assert event["type"] == "error"
        told: JsonObject = event["error"]
        return told

    def asked_aloud(self) -> str:
        """A committed question; the id of its item."""
        self.send("input_audio_buffer.append", audio=text_of(loud(300)))
        self.send("input_audio_buffer.commit")
        item_id: str = self.event("input_audio_buffer.committed")["item_id"]
        return item_id

    def asked_in_writing(self, text: str = "What is inertia?", **more: Any) -> str:
        content = [{"type": "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content}, **more)
        item_id: str = self.event("conversation.item.done")["item"]["id"]
        return item_id

    def responding(self, **response: Any) -> str:
        self.send("response.create", response=response)
        response_id: str = self.event("response.created")["response"]["id"]
        return response_id

    def answered(self, **response: Any) -> str:
        """An answer whose sound goes on; the id of its response."""
        response_id = self.responding(**response)
        self.tell(Answered(response_id, ANSWER, TOLD))
        return response_id


def test_a_session_opens_with_its_settings_and_event_ids_are_its_own() -> None:
    talk = Talk(push=False)
    assert [event["type"] for event in talk.said] == ["session.created"]
    session = talk.said[0]["session"]
    assert session["model"] == "aula:mechanics-en"
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert isinstance(talk.done[0], Adopt)


def test_a_push_to_talk_turn_has_the_protocols_order() -> None:
    talk = Talk()
    talk.send("input_audio_buffer.append", audio=text_of(loud(300)))
    (hear,) = talk.done
    assert isinstance(hear, Hear)
    assert hear.detection is None
    assert talk.said == []
    assert talk.send("input_audio_buffer.commit") == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert [type(command) for command in talk.done] == [Hear, Finish]
    assert talk.done[1].item_id == hear.item_id == talk.said[0]["item_id"]
    assert talk.send("response.create") == ["response.created", "rate_limits.updated"]
    (reply,) = talk.done
    assert isinstance(reply, Reply)
    assert (reply.asked.item_id, reply.clock) == (hear.item_id, "A")
    assert talk.tell(Transcribed(hear.item_id, "what is inertia", 1.5)) == [
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert talk.tell(Answered(reply.response_id, ANSWER, TOLD)) == [
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
    ]
    assert talk.tell(Sounded(reply.response_id, b"\0" * 4800)) == ["response.output_audio.delta"]
    assert talk.tell(Ended(reply.response_id)) == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    done = talk.event("response.done")["response"]
    assert done["status"] == "completed"
    assert done["aula"] == TOLD
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": ANSWER.text}]


def test_text_out_has_text_events() -> None:
    talk = Talk({"output_modalities": ["text"]})
    talk.asked_in_writing()
    response_id = talk.responding()
    assert not talk.done[0].manner.aloud
    assert "response.output_text.delta" in talk.tell(Answered(response_id, ANSWER, TOLD))
    assert talk.tell(Ended(response_id))[0] == "response.output_text.done"


def test_nothing_of_a_cancelled_answer_leaves_and_the_next_one_is_its_own() -> None:
    talk = Talk()
    talk.asked_in_writing()
    first = talk.answered()
    kinds = talk.send("response.cancel")
    assert kinds[-1] == "response.done"
    assert talk.said[-1]["response"]["status"] == "cancelled"
    assert talk.said[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert talk.done == [Stop(first)]
    for happening in (Sounded(first, b"\0\0"), Ended(first), Answered(first, ANSWER, TOLD)):
        assert talk.tell(happening) == []
    second = talk.answered()
    assert talk.tell(Sounded(first, b"\0\0")) == []
    assert talk.tell(Sounded(second, b"\0\0")) == ["response.output_audio.delta"]


def test_an_answer_that_is_cancelled_before_it_stands_has_no_item() -> None:
    talk = Talk()
    item_id = talk.asked_aloud()
    talk.responding()
    assert talk.send("response.cancel") == ["response.done"]
    assert talk.said[0]["response"]["output"] == []
    talk.responding()
    assert talk.done[0].asked.item_id == item_id, "the turn is still held"


def test_one_response_at_a_time() -> None:
    talk = Talk()
    talk.asked_in_writing()
    talk.responding()
    talk.send("response.create", event_id="mine")
    assert talk.error["code"] == "conversation_already_has_active_response"
    assert talk.error["event_id"] == "mine"


def test_an_open_microphone_commits_answers_and_is_interrupted() -> None:
    talk = Talk(push=False)
    talk.send("input_audio_buffer.append", audio=text_of(quiet(200)))
    assert talk.done[0].detection is not None
    assert talk.tell(SpeechBegan("item_a", 400)) == ["input_audio_buffer.speech_started"]
    assert talk.tell(SpeechEnded("item_a", 1900)) == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "rate_limits.updated",
    ]
    finish, reply = talk.done
    assert (finish, reply.asked.item_id, reply.clock) == (Finish("item_a"), "item_a", "B")
    talk.tell(Answered(reply.response_id, ANSWER, TOLD))
    kinds = talk.tell(SpeechBegan("item_b", 2500))
    assert kinds[0] == "input_audio_buffer.speech_started"
    assert talk.event("response.done")["response"]["status_details"]["reason"] == "turn_detected"
    assert Stop(reply.response_id) in talk.done


def test_an_open_microphone_does_as_it_is_told() -> None:
    detection = {"type": "server_vad", "create_response": False, "interrupt_response": False}
    talk = Talk({"audio": {"input": {"turn_detection": detection}}}, push=False)
    talk.tell(SpeechBegan("item_a", 0))
    assert "response.created" not in talk.tell(SpeechEnded("item_a", 900))
    response_id = talk.answered()
    assert talk.tell(SpeechBegan("item_b", 2000)) == ["input_audio_buffer.speech_started"]
    assert talk.tell(Sounded(response_id, b"\0\0")) == ["response.output_audio.delta"]


def test_a_client_may_commit_while_somebody_speaks_and_the_end_that_is_found_later_is_dropped() -> None:
    talk = Talk(push=False)
    talk.send("input_audio_buffer.commit")
    assert talk.error["code"] == "input_audio_buffer_commit_empty"
    talk.tell(SpeechBegan("item_a", 0))
    assert talk.send("input_audio_buffer.commit")[0] == "input_audio_buffer.committed"
    assert talk.done == [Finish("item_a")]
    assert talk.tell(SpeechEnded("item_a", 900)) == []


def test_too_little_sound_is_not_committed() -> None:
    talk = Talk()
    talk.send("input_audio_buffer.commit")
    assert talk.error["code"] == "input_audio_buffer_commit_empty"
    talk.send("input_audio_buffer.append", audio=text_of(loud(60)))
    talk.send("input_audio_buffer.commit")
    assert "60 ms" in talk.error["message"]


def test_clearing_forgets_what_was_heard() -> None:
    talk = Talk()
    talk.send("input_audio_buffer.append", audio=text_of(loud(300)))
    item_id = talk.done[0].item_id
    assert talk.send("input_audio_buffer.clear") == ["input_audio_buffer.cleared"]
    assert talk.done == [Forget(item_id)]
    talk.send("input_audio_buffer.commit")
    assert talk.error["code"] == "input_audio_buffer_commit_empty"


def test_a_sound_that_is_too_long_is_told_once_and_its_item_failed() -> None:
    talk = Talk()
    talk.send("input_audio_buffer.append", audio=text_of(loud(300)))
    item_id = talk.done[0].item_id
    talk.tell(NotHeard(item_id, AudioTooLongError("too long", next_step="cut it")))
    assert talk.error["code"] == "invalid_audio"
    talk.send("input_audio_buffer.append", audio=text_of(loud(300)))
    assert talk.done == []
    kinds = talk.send("input_audio_buffer.commit")
    assert kinds[-1] == "conversation.item.input_audio_transcription.failed"
    talk.responding()
    assert isinstance(talk.done[0].asked.failed, AudioTooLongError), "and an answer would be one to nothing"


def test_words_are_told_once_two_hypotheses_agree_and_the_final_text_goes_on_from_there() -> None:
    talk = Talk()
    item_id = talk.asked_aloud()
    deltas = []
    for text in ("what", "what is", "what is in", "what is inertia"):
        talk.tell(PartHeard(item_id, text))
        deltas.append(talk.said[0]["delta"])
        assert talk.said[0]["aula"] == {"partial": text}
    assert deltas == ["", "what", " is", ""]
    talk.tell(Transcribed(item_id, "what is inertia", 1.0))
    assert [event.get("delta") for event in talk.said] == [" inertia", None]
    talk.tell(PartHeard(item_id, "what"))
    talk.tell(PartHeard(item_id, "what"))
    assert talk.tell(Transcribed(item_id, "that was it", 1.0)) == [
        "conversation.item.input_audio_transcription.completed"
    ], "words that were taken back are not told twice"


def test_without_transcription_the_client_reads_no_transcript_and_is_answered_still() -> None:
    talk = Talk({"audio": {"input": {"transcription": None}}})
    item_id = talk.asked_aloud()
    assert talk.tell(PartHeard(item_id, "what")) == []
    assert talk.tell(Transcribed(item_id, "what", 1.0)) == []
    talk.responding()
    assert talk.done[0].asked.item_id == item_id


def test_silence_is_answered_by_asking_again() -> None:
    talk = Talk()
    first = talk.asked_aloud()
    talk.tell(NotTranscribed(first, NothingHeardError("no speech", next_step="speak")))
    assert talk.said[0]["error"]["code"] == "nothing_heard"
    talk.answered()
    talk.send("response.cancel")
    talk.responding()
    assert talk.done[0].asked.unclear


def test_a_failure_is_told_in_the_response_and_the_words_of_a_defect_stay_in_the_house() -> None:
    talk = Talk()
    talk.asked_in_writing()
    talk.tell(NotAnswered(talk.responding(), EngineError("no engine", next_step="run: aula doctor")))
    error = talk.said[0]["response"]["status_details"]["error"]
    assert error["type"] == "server_error"
    assert "no engine" in error["message"]
    talk.tell(NotAnswered(talk.responding(), ZeroDivisionError("secret")))
    assert "secret" not in str(talk.said)


def test_items_have_an_order_that_clients_can_read_change_and_delete() -> None:
    talk = Talk()
    first = talk.asked_in_writing("one")
    third = talk.asked_in_writing("three")
    talk.asked_in_writing("two", previous_item_id=first)
    assert talk.said[0]["previous_item_id"] == first
    zero = talk.asked_in_writing("zero", previous_item_id="root")
    assert talk.said[0]["previous_item_id"] is None
    assert talk.send("conversation.item.retrieve", item_id=zero) == ["conversation.item.retrieved"]
    assert talk.said[0]["item"]["content"] == [{"type": "input_text", "text": "zero"}]
    assert talk.send("conversation.item.delete", item_id=third) == ["conversation.item.deleted"]
    talk.send("conversation.item.retrieve", item_id=third)
    assert talk.error["code"] == "item_not_found"
    talk.responding()
    assert talk.done[0].asked.text == "two", "the newest question that there is"


def test_a_question_in_sound_can_be_an_item() -> None:
    talk = Talk()
    content = [{"type": "input_audio", "audio": text_of(loud(300))}]
    talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    assert [type(command) for command in talk.done] == [Hear, Hear, Finish]
    talk.responding()
    assert talk.done[0].asked.item_id is not None


def test_what_an_assistant_said_before_is_remembered_until_it_is_deleted() -> None:
    talk = Talk()
    content = [{"type": "output_text", "text": "Inertia is laziness."}]
    talk.send("conversation.item.create", item={"type": "message", "role": "assistant", "content": content})
    assert talk.done == [Remember("Inertia is laziness.", None)]
    talk.send("conversation.item.delete", item_id=talk.said[0]["item"]["id"])
    assert talk.done == [Remember("Inertia is laziness.", None, forget=True)]


def test_truncation_cuts_what_was_not_heard() -> None:
    talk = Talk()
    talk.asked_in_writing()
    response_id = talk.answered()
    talk.tell(Sounded(response_id, b"\0" * 48_000))
    talk.tell(Ended(response_id))
    item_id = talk.event("response.output_item.done")["item"]["id"]
    talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1500)
    assert talk.error["param"] == "audio_end_ms"
    assert talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=400) == [
        "conversation.item.truncated"
    ]
    talk.send("conversation.item.retrieve", item_id=item_id)
    assert talk.said[0]["item"]["content"] == [{"type": "output_audio", "transcript": None}]


def test_truncating_an_answer_that_goes_on_ends_it() -> None:
    talk = Talk()
    talk.asked_in_writing()
    response_id = talk.answered()
    talk.tell(Sounded(response_id, b"\0" * 48_000))
    item_id = talk.said[0]["item_id"]
    kinds = talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=400)
    assert kinds[-2:] == ["response.done", "conversation.item.truncated"]
    assert talk.done == [Stop(response_id)]


def test_an_out_of_band_response_joins_no_conversation() -> None:
    talk = Talk()
    talk.asked_in_writing("first")
    row = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "aside"}]}
    response_id = talk.responding(conversation="none", input=[row], metadata={"topic": "x"})
    reply = next(command for command in talk.done if isinstance(command, Reply))
    assert (reply.asked.text, reply.apart) == ("aside", True)
    kinds = talk.tell(Answered(response_id, ANSWER, TOLD)) + talk.tell(Ended(response_id))
    assert not [kind for kind in kinds if kind.startswith("conversation.")]
    done = talk.event("response.done")["response"]
    assert (done["conversation_id"], done["metadata"]) == (None, {"topic": "x"})
    assert len(talk.conversation.items) == 1


def test_a_question_in_references_is_answered() -> None:
    talk = Talk()
    first = talk.asked_in_writing("first")
    talk.asked_in_writing("second")
    talk.responding(input=[{"type": "item_reference", "id": first}])
    assert talk.done[0].asked.text == "first"


def test_only_the_newest_question_keeps_its_turn() -> None:
    talk = Talk()
    first = talk.asked_aloud()
    talk.asked_in_writing()
    assert talk.done == [Forget(first)]


def test_a_client_cannot_take_the_id_of_an_item_to_come() -> None:
    talk = Talk()
    talk.send("input_audio_buffer.append", audio=text_of(loud(300)))
    buffered = talk.done[0].item_id
    content = [{"type": "input_text", "text": "mine"}]
    for taken in (buffered, talk.conversation.ids.new("item")[:-2] + "ff", "root", ""):
        item = {"id": taken, "type": "message", "role": "user", "content": content}
        talk.send("conversation.item.create", item=item)
        assert talk.error["param"] == "item.id"
    own = {"id": "my own", "type": "message", "role": "user", "content": content}
    talk.send("conversation.item.create", item=own)
    assert talk.event("conversation.item.done")["item"]["id"] == "my own"
    talk.send("conversation.item.create", item=own)
    assert talk.error["code"] == "item_id_taken"
    talk.send("conversation.item.delete", item_id="my own")
    assert talk.send("conversation.item.create", item=own)[0] == "conversation.item.added"


def test_a_conversation_is_bounded() -> None:
    talk = Talk()
    ids = [talk.asked_in_writing(str(number)) for number in range(MOST_ITEMS + 3)]
    assert len(talk.conversation.items) == MOST_ITEMS
    talk.send("conversation.item.retrieve", item_id=ids[0])
    assert talk.error["code"] == "item_not_found"


def test_silence_after_an_answer_is_noticed_when_a_client_wants_that() -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 6000}
    talk = Talk({"audio": {"input": {"turn_detection": detection}}}, push=False)
    talk.asked_in_writing()
    response_id = talk.answered()
    talk.tell(Sounded(response_id, b"\0" * 96_000))
    talk.tell(Ended(response_id))
    assert talk.conversation.next_moment() == 100.0 + 2.0 + 6.0
    assert talk.pass_seconds(7.9) == []
    assert talk.pass_seconds(0.2)[0] == "input_audio_buffer.timeout_triggered"
    reply = next(command for command in talk.done if isinstance(command, Reply))
    assert reply.asked.unclear
    talk.tell(Answered(reply.response_id, ANSWER, TOLD))
    talk.tell(Ended(reply.response_id))
    talk.tell(SpeechBegan("item_a", 9000))
    assert talk.conversation.next_moment() is None


def test_another_course_is_opened_first_and_then_told() -> None:
    talk = Talk()
    session = {"type": "realtime", "model": "aula:physics", "instructions": "be brief"}
    assert talk.send("session.update", session=session, event_id="e1") == []
    assert talk.done == [ChangeCourse("physics")]
    assert talk.tell(CourseChanged(EngineError("gone", next_step="x"))) == ["error"]
    assert talk.error["event_id"] == "e1"
    talk.send("session.update", session=session)
    assert talk.tell(CourseChanged()) == ["session.updated"]
    assert talk.said[0]["session"]["model"] == "aula:physics"
    assert talk.said[0]["session"]["instructions"] == "be brief"


@pytest.mark.parametrize(
    ("session", "param", "code"),
    [
        ({"modalities": ["text"]}, "session", "unknown_parameter"),
        ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "session.audio.input.format.type", "invalid_value"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}},
            "session.audio.input.format.rate",
            None,
        ),
        ({"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}}, None, "invalid_value"),
        ({"audio": {"input": {"turn_detection": {"threshold": 0.5}}}}, None, "missing_required_parameter"),
        ({"audio": {"output": {"speed": 9}}}, "session.audio.output.speed", "invalid_value"),
        ({"output_modalities": []}, "session.output_modalities", "invalid_value"),
        ({"model": "gpt-realtime"}, "model", "model_not_found"),
        ({"instructions": "x" * 70_000}, "session", "string_above_max_length"),
        ({"type": "transcription"}, "session.type", "invalid_value"),
    ],
)
def test_a_session_that_cannot_be_is_refused_as_a_whole_with_the_path(
    session: JsonObject, param: str | None, code: str | None
) -> None:
    talk = Talk()
    before = talk.conversation.options
    talk.send("session.update", session={"output_modalities": ["text"], **session}, event_id="mine")
    assert talk.error["type"] == "invalid_request_error"
    assert talk.error["event_id"] == "mine"
    assert param is None or talk.error["param"] == param
    assert code is None or talk.error["code"] == code
    assert talk.conversation.options == before


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": None},
        {"type": "no.such"},
        {"type": "input_audio_buffer.append"},
        {"type": "input_audio_buffer.append", "audio": 3},
        {"type": "input_audio_buffer.append", "audio": "not base64!"},
        {"type": "input_audio_buffer.append", "audio": "YWJj"},
        {"type": "input_audio_buffer.append", "audio": "ü"},
        {"type": "input_audio_buffer.commit", "more": 1},
        {"type": "output_audio_buffer.clear"},
        {"type": "session.update"},
        {"type": "session.update", "session": []},
        {"type": "conversation.item.create", "item": {}},
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}},
        {"type": "conversation.item.create", "item": {"type": "mcp_call"}},
        {"type": "conversation.item.create", "item": {"type": "function_call", "name": 3}},
        {"type": "conversation.item.retrieve", "item_id": "none"},
        {"type": "conversation.item.delete", "item_id": "none"},
        {"type": "conversation.item.truncate", "item_id": "none", "content_index": 0, "audio_end_ms": 0},
        {"type": "response.create", "response": {"input": [{"type": "item_reference"}]}},
        {"type": "response.create", "response": {"metadata": {"x": "y" * 600}}},
        {"type": "response.cancel"},
    ],
)
def test_what_cannot_be_obeyed_is_one_error_and_nothing_else(event: JsonObject) -> None:
    talk = Talk()
    talk._sort(talk.conversation.receive(event))
    assert talk.error["message"]
    assert talk.done == []
    assert talk.asked_in_writing()
