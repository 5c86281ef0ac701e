"""The items of one conversation, in order; bounded, the oldest forgotten first."""

from dataclasses import dataclass

from aula.servers.realtime.errors import ClientError, JsonObject
from aula.servers.realtime.messages import Ids
from aula.servers.realtime.shapes import Message, checked

MOST_ITEMS = 256
MOST_CHARACTERS = 16_384
_ROOT = "root"
_INERT = ("function_call", "function_call_output")
"""Taken as history, since clients restore whole conversations; nothing here ever calls a function."""


@dataclass(eq=False)
class Item:
    """`kind` is the type of its one content. `text` None: not known yet, or not at all."""

    id: str
    role: str = "user"
    kind: str = "input_text"
    text: str | None = None
    status: str = "completed"
    sound_ms: float = 0.0
    """How much of it was said, for an assistant's answer."""
    open_mic: bool = False
    failed: Exception | None = None
    has_turn: bool = False
    """Whether whoever heard it still holds its turn, and with it a drafted answer."""
    inert: JsonObject | None = None

    @property
    def question(self) -> bool:
        return self.role == "user" and self.inert is None

    def shown(self, *, with_content: bool = True) -> JsonObject:
        head: JsonObject = {"id": self.id, "object": "realtime.item"}
        if self.inert is not None:
            return {**self.inert, **head, "status": "completed"}
        content = [self.content()] if with_content else []
        return {**head, "type": "message", "status": self.status, "role": self.role, "content": content}

    def content(self) -> JsonObject:
        if self.kind in ("input_audio", "output_audio"):
            return {"type": self.kind, "transcript": self.text}
        return {"type": self.kind, "text": self.text or ""}


class Items:
    def __init__(self) -> None:
        self._items: dict[str, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def find(self, item_id: str, param: str = "item_id") -> Item:
        """Raises ClientError for an item that there is not."""
        item = self._items.get(item_id)
        if item is None:
            raise ClientError(
                f"There is no item {item_id[:80]!r} in this conversation.", code="item_not_found", param=param
            )
        return item

    def last(self) -> str | None:
        return next(reversed(self._items), None)

    def question(self) -> Item | None:
        """What was asked last."""
        return next((item for item in reversed(self._items.values()) if item.question), None)

    def before(self, item: Item) -> str | None:
        """The id of the one before it."""
        ids = list(self._items)
        place = ids.index(item.id) if item.id in self._items else 0
        return ids[place - 1] if place else None

    def with_turns(self) -> list[Item]:
        return [item for item in self._items.values() if item.has_turn]

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Behind `after` ("root": first of all), else at the end; the id of the item before it is returned.
        Raises ClientError for an `after` that there is not, and for an id that there is."""
        if item.id in self._items:
            raise ClientError(f"There is an item {item.id[:80]!r} already.", code="item_id_taken", param="item.id")
        if after is None:
            before = self.last()
            self._items[item.id] = item
        else:
            before = None if after == _ROOT else self.find(after, "previous_item_id").id
            rows = list(self._items.items())
            place = 0 if before is None else 1 + list(self._items).index(before)
            self._items = dict([*rows[:place], (item.id, item), *rows[place:]])
        return before

    def remove(self, item: Item) -> None:
        self._items.pop(item.id, None)

    def surplus(self) -> Item | None:
        """The oldest, where there are too many."""
        return next(iter(self._items.values())) if len(self._items) > MOST_ITEMS else None


def made(raw: JsonObject, ids: Ids) -> tuple[Item, str | None]:
    """The item that a client describes, and the sound in it (base64) that is still to be heard. Raises ClientError."""
    if raw.get("type") in _INERT:
        return _inert(raw, ids), None
    message: Message = checked(Message, raw, "item")
    kinds = {part.type for part in message.content}
    lawful = {
        "user": {"input_text", "input_audio"},
        "system": {"input_text"},
        "assistant": {"output_text", "output_audio"},
    }
    if not kinds or not kinds <= lawful[message.role]:
        expected = " or ".join(sorted(lawful[message.role]))
        raise ClientError(f"content of a {message.role} message is {expected}", param="item.content")
    sounds = [part.audio for part in message.content if part.type == "input_audio" and part.audio]
    texts = [text for part in message.content if (text := part.text or part.transcript)]
    if len(sounds) > 1 or (sounds and texts):
        raise ClientError("send one sound an item, or texts alone", param="item.content")
    text = "\n".join(texts)
    if len(text) > MOST_CHARACTERS:
        raise ClientError(
            f"the item has {len(text)} characters, more than {MOST_CHARACTERS}",
            code="string_above_max_length",
            param="item.content",
        )
    kind = message.content[0].type
    item = Item(_id(message.id, ids), message.role, "output_text" if kind == "output_audio" else kind, text or None)
    return item, sounds[0] if sounds else None


def _inert(raw: JsonObject, ids: Ids) -> Item:
    kept: JsonObject = {name: raw[name] for name in ("type", "call_id", "name", "arguments", "output") if name in raw}
    if not all(isinstance(value, str) for value in kept.values()) or sum(map(len, kept.values())) > MOST_CHARACTERS:
        raise ClientError(
            f"call_id, name, arguments and output are texts, of {MOST_CHARACTERS} characters at most", param="item"
        )
    return Item(_id(raw.get("id"), ids), "none", inert=kept)


def _id(wanted: object, ids: Ids) -> str:
    if wanted is None:
        return ids.new("item")
    if not isinstance(wanted, str) or not 0 < len(wanted) <= 64 or wanted == _ROOT:
        raise ClientError("an id is a text of 1 to 64 characters", param="item.id")
    return wanted
