"""A ladder as an operator sees it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LadderStatistics:
    """`rungs` best first; `overridden`: the one that alone serves, because an operator said so; `renewable`: those
    whose model is theirs alone, so that it can be loaded anew while the others serve."""

    name: str
    rungs: tuple[str, ...]
    overridden: str | None
    renewable: frozenset[str]
