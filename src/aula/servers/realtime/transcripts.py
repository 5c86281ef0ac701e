"""Hypotheses that change, to deltas that only grow.

The protocol appends deltas, and a recogniser takes words back. So a word is told once two different hypotheses agree on
it; what the final text makes of it stands in the `completed` event. The whole hypothesis goes beside in our own field.
"""


class Hypotheses:
    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._told: dict[str, str] = {}

    def heard(self, item_id: str, text: str) -> str:
        """What may be told now, after what was told before."""
        told = self._told.setdefault(item_id, "")
        agreed = _common_words(self._last.get(item_id, ""), text)
        self._last[item_id] = text
        if not agreed.startswith(told) or len(agreed) <= len(told):
            return ""
        self._told[item_id] = agreed
        return agreed[len(told) :]

    def final(self, item_id: str, text: str) -> str:
        """What is left to tell, where the final text goes on as it was told; the item is forgotten."""
        self._last.pop(item_id, None)
        told = self._told.pop(item_id, "")
        return text[len(told) :] if text.startswith(told) else ""

    def forget(self, item_id: str) -> None:
        self.final(item_id, "")


def _common_words(one: str, other: str) -> str:
    """The words that both begin with, in the spelling of `other`."""
    count = 0
    for mine, yours in zip(one.split(" "), other.split(" "), strict=False):
        if mine != yours:
            break
        count += 1
    return " ".join(other.split(" ")[:count])
