"""What a simulated school goes through: phases of load, and who asks for what. Times in s, costs in ms."""

from dataclasses import dataclass, replace

COSTS = {
    "gpu": {1: {1: 8.0, 4: 11.0, 16: 24.0}, 2: {1: 14.0, 4: 20.0, 16: 46.0}},
    "cpu": {1: {1: 60.0, 4: 200.0}, 2: {1: 110.0, 4: 380.0}},
}
"""Made up, in the form of a measured table: one speech model on a small card, and on the CPU beside it. Shares,
refusals and recoveries do not hang on them; how many students a card carries does, so plan with what you measured."""
TIERS = {"question": (0.60, 0.4), "caption": (0.25, 1.0), "vision": (0.10, 1.0), "batch": (0.05, 10.0)}
"""Part of the requests, and seconds until the deadline."""
LONG = 0.25
"""Part of the requests in the larger bucket."""
JITTER = 0.03
"""Standard deviation of a run's duration, as a part of it: kernels are predictable (Clockwork, OSDI'20)."""
QUESTIONS_A_STUDENT = 1 / 30
"""Requests a second: a question every two minutes, and captions, frames and homework beside it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """`load` is a part of the cards' capacity; None means what its students ask. `gap` s pass unseen before."""

    seconds: float
    load: float | None = None
    greedy: float = 1.0
    failing: bool = False
    slower: float = 1.0
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    story: str
    phases: tuple[Phase, ...]
    tenants: int = 10
    students: int = 30
    cards: int = 1
    seed: int = 0

    def sized(self, *, tenants: int, students: int, cards: int, seed: int) -> "Scenario":
        return replace(self, tenants=tenants, students=students, cards=cards, seed=seed)


DAY = 86_400.0
CALM = Phase(10, 0.5)
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("steady", "what the students ask, for a minute", (Phase(60.0),)),
        Scenario("heavy", "twice the capacity for a minute", (Phase(60.0, 2.0),)),
        Scenario("spike", "calm, five seconds of four times the capacity, calm", (CALM, Phase(5, 4.0), CALM)),
        Scenario("repeated-spikes", "five spikes, each after a calm", (Phase(4, 0.5), Phase(2, 3.0)) * 5 + (CALM,)),
        Scenario("greedy", "the first class asks twenty times as much as each other", (Phase(30.0, 1.8, greedy=20.0),)),
        Scenario(
            "dying-gpu",
            "the GPU fails for ten seconds, then works again; the CPU serves meanwhile",
            (Phase(10, 0.015), Phase(10, 0.015, failing=True), Phase(20, 0.015)),
        ),
        Scenario(
            "creep",
            "thirty days of slowly more load on a slowly throttled card, two seconds of each seen",
            tuple(Phase(2.0, 0.5 + 0.02 * day, slower=1 + 0.01 * day, gap=DAY - 2.0) for day in range(30)),
        ),
    )
}
