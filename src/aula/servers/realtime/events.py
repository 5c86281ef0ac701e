"""What a conversation has to say and to ask, gathered in order until it is taken."""

from collections.abc import Iterable
from typing import Any

from aula.servers.realtime.errors import JsonObject, error_of
from aula.servers.realtime.items import Item
from aula.servers.realtime.messages import Command, Ids

Out = JsonObject | Command


class Speaker:
    """Gives every event its id."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self._out: list[Out] = []

    def _ask(self, *commands: Command) -> None:
        self._out += commands

    def _say(self, kind: str, **fields: Any) -> None:
        self._out.append({"type": kind, "event_id": self.ids.new("event"), **fields})

    def _say_all(self, events: Iterable[JsonObject]) -> None:
        for event in events:
            self._say(event.pop("type"), **event)

    def _say_error(self, error: Exception, event_id: str | None) -> None:
        self._say("error", error={**error_of(error), "event_id": event_id})

    def _say_item(self, item: Item, before: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._say(kind, previous_item_id=before, item=item.shown())

    def _say_transcript(self, kind: str, item_id: str, **fields: Any) -> None:
        self._say(f"conversation.item.input_audio_transcription.{kind}", item_id=item_id, content_index=0, **fields)

    def _taken(self) -> list[Out]:
        taken, self._out = self._out, []
        return taken
