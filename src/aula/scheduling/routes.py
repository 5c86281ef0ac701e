"""Which rungs may serve a kind of request, and what it costs on each."""

from collections.abc import Callable
from dataclasses import dataclass

from aula.core.errors import SettingsError
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A way through a ladder. Requests share a batch only where they share a route.

    `only` names the rungs that may serve: those that know the language, or the one that holds a stream.
    Several routes may go through one ladder, and then share its breakers. `pinned`: a stream lives there, so that
    its rung goes on serving it whatever the breaker or an override says.
    """

    name: str
    ladder: Ladder
    costs: CostTable
    only: frozenset[str] | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.rungs) - set(self.costs.engines):
            raise SettingsError(
                f"nothing is known of what {sorted(unknown)} costs",
                available=self.costs.engines,
                next_step="measure it",
            )

    @property
    def rungs(self) -> tuple[str, ...]:
        return tuple(name for name in self.ladder.names if self.only is None or name in self.only)

    def admits(self, name: str) -> bool:
        """Whether the rung may serve, and is in order."""
        return (self.only is None or name in self.only) and (self.pinned or self.ladder.usable(name))

    def choose(self, below: int = 0, fits: Callable[[str], bool] | None = None) -> str | None:
        """The best rung that is in order and quick enough, from index `below` of the ladder on."""
        for name in self.ladder.names[below:]:
            if self.admits(name) and (fits is None or fits(name)):
                return name
        return None
