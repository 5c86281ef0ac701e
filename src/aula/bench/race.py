"""The race: competitors take turns, round by round, so that whatever else the machine does disturbs them alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aula.bench.machine import percentile
from aula.bench.process import CompetitorFailedError
from aula.core.clock import Clock

ROUNDS = 15
FEWEST_ROUNDS = 5
TURN_MS = 100.0
"""About how long one turn lasts: many runs of a fast competitor, one of a slow one."""
MOST_RUNS = 25
RACE_SECONDS = 60.0
"""After the fewest rounds, no round begins later than this."""


class Runner(Protocol):
    def run(self, count: int) -> list[float]:
        """Milliseconds of each of `count` runs. Raises CompetitorFailedError."""
        ...

    def rest(self) -> None:
        """Wait until it leaves the processor to others."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of every run that counts, by round."""

    rounds: Sequence[Sequence[float]]

    @property
    def all(self) -> list[float]:
        return [time for turn in self.rounds for time in turn]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile."""
        return percentile(self.all, 0.1), percentile(self.all, 0.9)


@dataclass(frozen=True, slots=True)
class Race:
    """`failed` says why a competitor is out; it has no timing then."""

    timings: Mapping[str, Timing]
    failed: Mapping[str, str] = field(default_factory=dict)


def race(
    runners: Mapping[str, Runner],
    clock: Clock,
    rounds: int = ROUNDS,
    progress: Callable[[float], None] = lambda _share: None,
) -> Race:
    """`rounds` rounds, fewer where they take longer than RACE_SECONDS together, but no fewer than FEWEST_ROUNDS unless
    fewer are asked for. Each turn begins when the one before computes no more, and with a run that does not count:
    caches belong to whoever ran last."""
    start = clock.now()
    failed: dict[str, str] = {}
    counts: dict[str, int] = {}
    times: dict[str, list[list[float]]] = {}
    for name, runner in runners.items():
        try:
            first = runner.run(3)
        except CompetitorFailedError as failure:
            failed[name] = str(failure)
            continue
        runner.rest()
        counts[name] = max(1, min(MOST_RUNS, round(TURN_MS / max(min(first), 1e-6))))
        times[name] = []
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and clock.now() - start > RACE_SECONDS:
            break
        progress(number / rounds)
        # Each round another one begins, so that nobody always runs after the same neighbour.
        order = list(counts)
        turn = number % len(order) if order else 0
        for name in (*order[turn:], *order[:turn]):
            try:
                times[name].append(runners[name].run(counts[name] + 1)[1:])
            except CompetitorFailedError as failure:
                failed[name] = str(failure)
                del counts[name], times[name]
            else:
                runners[name].rest()
    return Race({name: Timing(turns) for name, turns in times.items() if turns}, failed)


def ratio(rival: Timing, engine: Timing) -> float:
    """How many times faster the engine is: the median, over the rounds, of the rival's median in a round over the
    engine's in the same round. Noise that lasts longer than a round disturbs both and so divides out, which it does
    not in a ratio of two medians."""
    pairs = zip(rival.rounds, engine.rounds, strict=False)
    return statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs)
