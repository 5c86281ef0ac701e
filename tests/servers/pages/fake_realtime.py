"""A Realtime door that speaks the GA order of events and makes everything up: what the student's page is tried with."""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from aula.servers.house import House

RATE = 24_000
ANSWER = "Inertia is the tendency of every object to keep its velocity unchanged."
HEARD = "what is inertia"
SECONDS = 1.2
"""How long an answer sounds."""


@dataclass
class FakeRealtime:
    """`events` are what pages sent, `sound` what the last question was. A question with "fail" in it fails, with "drop"
    breaks the line, with "refuse" is not answered by the course."""

    house: House
    events: list[dict[str, Any]] = field(default_factory=list)
    sound: bytearray = field(default_factory=bytearray)
    protocols: list[str] = field(default_factory=list)
    open: int = 0
    is_silent: bool = False
    """Lines are taken, and nothing is said on them."""

    def routes(self) -> list[WebSocketRoute]:
        return [WebSocketRoute("/v1/realtime", self._serve)]

    def types(self) -> list[str]:
        """Without the many pieces of sound."""
        return [event["type"] for event in self.events if event["type"] != "input_audio_buffer.append"]

    async def _serve(self, socket: WebSocket) -> None:
        self.house.doorman.admit(socket, "ask")
        self.protocols = list(socket.scope["subprotocols"])
        await socket.accept("realtime")
        self.open += 1
        line = _Line(self, socket, socket.query_params["model"].removeprefix("aula:"))
        try:
            if not self.is_silent:
                await line.say("session.created", session={"type": "realtime"})
            while True:
                event = json.loads(await socket.receive_text())
                self.events.append(event)
                await line.obey(event)
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            self.open -= 1
            line.stop()


class _Line:
    def __init__(self, owner: FakeRealtime, socket: WebSocket, course: str) -> None:
        self._owner, self._socket, self._course = owner, socket, course
        self._question = ""
        self._aloud = True
        self._number = 0
        self._answering: asyncio.Task[None] | None = None
        self._response = ""

    async def say(self, kind: str, **fields: Any) -> None:
        await self._socket.send_text(json.dumps({"type": kind, "event_id": "event", **fields}))

    def stop(self) -> None:
        if self._answering is not None:
            self._answering.cancel()

    async def obey(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                self._aloud = event["session"].get("output_modalities", ["audio"]) == ["audio"]
                await self.say("session.updated", session=event["session"])
            case "input_audio_buffer.clear":
                self._owner.sound.clear()
                await self.say("input_audio_buffer.cleared")
            case "input_audio_buffer.append":
                self._owner.sound += base64.b64decode(event["audio"])
                if len(self._owner.sound) > RATE:
                    await self._transcript("delta", delta="what is", aula={"partial": "what is"})
            case "input_audio_buffer.commit":
                self._question = HEARD
                await self.say("input_audio_buffer.committed", item_id="asked", previous_item_id=None)
                await self._transcript("completed", transcript=HEARD)
            case "conversation.item.create":
                self._question = event["item"]["content"][0]["text"]
            case "response.create" if "drop" in self._question:
                await self._socket.close(1011)
            case "response.create":
                self._number += 1
                self._response = f"resp_{self._number}"
                self._answering = asyncio.create_task(self._answer(self._response, self._question))
            case "response.cancel":
                self.stop()
                await self._done("cancelled")

    async def _transcript(self, kind: str, **fields: Any) -> None:
        await self.say(
            f"conversation.item.input_audio_transcription.{kind}", item_id="asked", content_index=0, **fields
        )

    async def _answer(self, response: str, question: str) -> None:
        await self.say("response.created", response={"id": response, "status": "in_progress"})
        if "fail" in question:
            error = {"type": "rate_limit_error", "code": "rate_limit_exceeded", "message": "busy"}
            await self.say(
                "response.done", response={"id": response, "status": "failed", "status_details": {"error": error}}
            )
            return
        place = {"response_id": response, "item_id": f"item_{response}", "output_index": 0, "content_index": 0}
        words = "response.output_audio_transcript" if self._aloud else "response.output_text"
        await self.say("response.output_item.added", response_id=response, output_index=0, item={})
        await self.say("response.content_part.added", **place, part={})
        await self.say(f"{words}.delta", **place, delta=ANSWER)
        if self._aloud:
            tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(int(RATE * SECONDS)) / RATE)).astype("<i2")
            for start in range(0, len(tone), RATE // 10):
                delta = base64.b64encode(tone[start : start + RATE // 10].tobytes()).decode()
                await self.say("response.output_audio.delta", **place, delta=delta)
            await self.say("response.output_audio.done", **place)
        await self._done("completed", question)

    async def _done(self, status: str, question: str = "") -> None:
        passage = (await self._owner.house.course()).passages[0]
        citation = {"course": self._course, "document": passage.document, "passage": passage.label, "score": 0.9}
        told = {
            "course": self._course,
            "question": question,
            "language": "en",
            "refused": "refuse" in question,
            "citations": [] if "refuse" in question else [citation],
            "timings_ms": {"transcribe": 3.0, "understand": 4.0, "retrieve": 1.0, "commit_to_first_audio": 9.0},
            "drafted": True,
            "clock": "A",
        }
        response = {"id": self._response, "status": status, "status_details": None, "aula": told}
        await self.say("response.done", response=response)
