"""The recent turns, in memory alone: pages read them, doors write them, and a restart forgets them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

KEPT = 512


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn that ended. `moment` is Unix time in seconds; `timings_ms` are those of `Asked`; `clock` is A, B or C of
    DESIGN.md, or "text" for a typed question; `refused` says that the course did not answer."""

    moment: float
    tenant: str
    course: str
    language: str
    door: str
    clock: str
    question: str
    answer: str
    intent: str
    refused: bool
    drafted: bool
    citations: tuple[tuple[str, str, float], ...] = ()
    """(document, passage, score)"""
    timings_ms: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, str] = field(default_factory=dict)
    error: str | None = None


class TurnLog:
    """The last turns, and whoever watches them."""

    def __init__(self, kept: int = KEPT) -> None:
        self.turns: deque[TurnRecord] = deque(maxlen=kept)
        self._watchers: list[Callable[[TurnRecord], None]] = []

    def add(self, turn: TurnRecord) -> None:
        self.turns.append(turn)
        for watcher in tuple(self._watchers):
            watcher(turn)

    def watch(self, watcher: Callable[[TurnRecord], None]) -> Callable[[], None]:
        """Call `watcher` with each turn from now on, until what this returns is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)
