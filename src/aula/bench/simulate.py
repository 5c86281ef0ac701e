"""The scheduler itself, under a fake clock and a cost table: the same seed gives the same minute again."""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from random import Random

from aula.bench.scenarios import COSTS, JITTER, LONG, QUESTIONS_A_STUDENT, TIERS, Phase, Scenario
from aula.core.clock import FakeClock
from aula.core.errors import InputError
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import State, Ticket

MOST_REQUESTS = 2_000_000
"""About two minutes on one core; more is refused with advice, since nobody waits for it gladly."""


@dataclass(frozen=True, slots=True)
class Share:
    """Of one tenant or tier. `goodput_ratio`: answered in time, as a part of what it asked."""

    submitted: int
    answered: int
    refused: int
    late: int
    goodput_ratio: float
    device_share: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """`goodput_ratio`: device time answered in time, as a part of what was asked or, if less, could be done."""

    scenario: str
    seed: int
    tenants_count: int
    students: int
    cards: int
    seconds: float
    load: float
    goodput_ratio: float
    submitted: int
    answered: int
    refused: dict[str, int]
    failed: int
    late: int
    p50_ms: float
    p99_ms: float
    batch_mean: float
    served_by: dict[str, int]
    changes: tuple[str, ...]
    tenants: dict[str, Share]
    tiers: dict[str, Share]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class School:
    """Cards and classes. Events are kept in one heap; between two of them nothing happens and no time is spent."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.random = Random(scenario.seed)  # a simulation must be replayable
        self.clock = FakeClock()
        self.costs = CostTable(COSTS)
        self.truth = CostTable(COSTS)
        """The scheduler's own table learns; this one stays what the card does."""
        self.ladder = Ladder(self.costs.engines, self.clock)
        self.route = Route("speech", self.ladder, self.costs)
        self.scheduler = Scheduler(self._start, (self.route,), self.clock, workers=scenario.cards)
        self.phase: Phase = scenario.phases[0]
        self.tickets: list[Ticket] = []
        self.seen_s = 0.0
        self.possible_ms = 0.0
        """What was asked, or in each phase what the cards can do, if that is less."""
        self._ends: list[tuple[float, int, Batch, bool]] = []
        self._order = count()

    def unit(self, bucket: int) -> float:
        return self.truth.unit("gpu", bucket)

    def rate(self, phase: Phase) -> float:
        """Requests a second."""
        if phase.load is None:
            return self.scenario.tenants * self.scenario.students * QUESTIONS_A_STUDENT
        mean_ms = (1 - LONG) * self.unit(1) + LONG * self.unit(2)
        return phase.load * self.scenario.cards * 1e3 / mean_ms

    def run(self) -> None:
        start = 0.0
        for phase in self.scenario.phases:
            self._advance(start + phase.gap)
            start = self.clock.now()
            self.phase = phase
            first = len(self.tickets)
            for moment in self._arrivals(start, phase):
                self._advance(moment)
                self._submit(phase)
            start += phase.seconds
            self.seen_s += phase.seconds
            asked = sum(self.unit(ticket.bucket) for ticket in self.tickets[first:])
            self.possible_ms += min(asked, phase.seconds * self.scenario.cards * 1e3 / phase.slower)
            self._advance(start)
        while self._ends:
            self._advance(self._ends[0][0])

    def _arrivals(self, start: float, phase: Phase) -> Iterator[float]:
        """Moments of a Poisson process."""
        moment, rate = start, self.rate(phase)
        while (moment := moment + self.random.expovariate(rate)) < start + phase.seconds:
            yield moment

    def _submit(self, phase: Phase) -> None:
        tenants = self.scenario.tenants
        # The first class asks `greedy` times as much as each of the others.
        place = self.random.random() * (phase.greedy + tenants - 1)
        tenant = 0 if place < phase.greedy else 1 + int(place - phase.greedy)
        tier = self.random.choices(list(TIERS), [part for part, _ in TIERS.values()])[0]
        size = 2 if self.random.random() < LONG else 1
        deadline = self.clock.now() + TIERS[tier][1]
        self.tickets.append(self.scheduler.submit(self.route, f"class-{tenant + 1}", tier, size, deadline))

    def _start(self, batch: Batch) -> None:
        broken = self.phase.failing and batch.rung == "gpu"
        usual = self.truth.predict(batch.rung, batch.bucket, max(1, len(batch.tickets)))
        slower = self.phase.slower if batch.rung == "gpu" else 1.0
        # A broken card says so after as long as the work would have taken.
        took = usual * slower * max(0.5, self.random.gauss(1.0, JITTER)) / 1e3
        heapq.heappush(self._ends, (self.clock.now() + took, next(self._order), batch, broken))

    def _advance(self, moment: float) -> None:
        while True:
            end = self._ends[0][0] if self._ends else math.inf
            canary = max(self.ladder.next_canary(), self.clock.now())
            if min(end, canary) > moment:
                break
            if canary < end:
                self.clock.advance(canary - self.clock.now())
                before = self.ladder.next_canary()
                self.scheduler.wake()
                if self.ladder.next_canary() > before:
                    continue
                if end > moment:  # every worker is busy: the canary waits for one
                    break
            self._finish_next()
        self.clock.advance(max(0.0, moment - self.clock.now()))

    def _finish_next(self) -> None:
        end, _, batch, broken = heapq.heappop(self._ends)
        self.clock.advance(max(0.0, end - self.clock.now()))
        if broken:
            self.scheduler.finished(batch, error=RuntimeError("the device answers no more"))
        else:
            self.scheduler.finished(batch, [None] * len(batch.tickets))


def simulate(scenario: Scenario) -> Simulated:
    """Run it; raises InputError where it would take far too long."""
    if min(scenario.tenants, scenario.students, scenario.cards) < 1:
        raise InputError("classes, students and cards must each be at least 1", next_step="aula simulate --help")
    school = School(scenario)
    expected = sum(school.rate(phase) * phase.seconds for phase in scenario.phases)
    if expected > MOST_REQUESTS:
        raise InputError(
            f"that is about {expected:,.0f} requests, more than {MOST_REQUESTS:,}",
            next_step="take fewer cards, classes or students: shares and refusals stay the same in proportion",
        )
    school.run()
    return _summary(school, expected)


def _summary(school: School, expected: float) -> Simulated:
    scenario, tickets = school.scenario, school.tickets
    statistics = school.scheduler.statistics()
    good = sum(school.unit(ticket.bucket) for ticket in tickets if _in_time(ticket))
    asked = sum(school.unit(ticket.bucket) for ticket in tickets)
    # What is still answered after the last arrival belongs to the time that it took.
    drained_s = max(0.0, max((t.finished or 0.0 for t in tickets), default=0.0) - _last_moment(scenario))
    possible = min(asked, school.possible_ms + drained_s * scenario.cards * 1e3)
    waits = sorted((t.finished - t.submitted) * 1e3 for t in tickets if t.state is State.ANSWERED and t.finished)
    mean_ms = asked / len(tickets) if tickets else 0.0
    return Simulated(
        scenario=scenario.name,
        seed=scenario.seed,
        tenants_count=scenario.tenants,
        students=scenario.students,
        cards=scenario.cards,
        seconds=round(school.seen_s, 3),
        load=round(expected * mean_ms / (school.seen_s * scenario.cards * 1e3), 3),
        goodput_ratio=round(min(1.0, good / possible), 4) if tickets else 1.0,
        submitted=statistics.submitted,
        answered=statistics.answered,
        refused=dict(statistics.refused),
        failed=statistics.failed,
        late=statistics.late,
        p50_ms=_percentile(waits, 0.50),
        p99_ms=_percentile(waits, 0.99),
        batch_mean=round(statistics.answered / max(1, statistics.batches), 2),
        served_by=dict(statistics.served_by),
        changes=tuple(f"{one.moment:.2f} s: {one.rung} {one.state} ({one.cause})" for one in school.ladder.changes),
        tenants=_shares(school, "tenant"),
        tiers=_shares(school, "tier"),
    )


def _in_time(ticket: Ticket) -> bool:
    return ticket.state is State.ANSWERED and not ticket.late


def _last_moment(scenario: Scenario) -> float:
    return sum(phase.seconds + phase.gap for phase in scenario.phases)


def _percentile(ordered: list[float], part: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) if ordered else 0.0


def _shares(school: School, field: str) -> dict[str, Share]:
    groups: dict[str, list[Ticket]] = defaultdict(list)
    for ticket in school.tickets:
        groups[getattr(ticket, field)].append(ticket)
    served = {key: sum(school.unit(t.bucket) for t in group if _in_time(t)) for key, group in groups.items()}
    total = sum(served.values()) or 1.0
    rows = {}
    for key, group in sorted(groups.items(), key=lambda item: (len(item[0]), item[0])):
        states = Counter(ticket.state for ticket in group)
        rows[key] = Share(
            submitted=len(group),
            answered=states[State.ANSWERED],
            refused=states[State.REFUSED],
            late=sum(ticket.late for ticket in group if ticket.state is State.ANSWERED),
            goodput_ratio=round(sum(map(_in_time, group)) / len(group), 4),
            device_share=round(served[key] / total, 4),
        )
    return rows
