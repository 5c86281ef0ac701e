"""Whatever comes in whatever order: hypothesis prints the steps (and the seed) that break a promise."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from aula.core.errors import ProcessLostError
from aula.scheduling.queue import Queue
from aula.scheduling.tickets import State
from tests.scheduling.harness import LONGEST_MS, House

TIERS = ("question", "caption", "vision", "batch")
SUBMIT = st.tuples(
    st.just("submit"),
    st.sampled_from("abcde"),
    st.sampled_from(TIERS),
    st.integers(1, 8),
    st.one_of(st.none(), st.floats(-0.1, 0.5)),
)
STEPS = st.lists(
    st.one_of(
        SUBMIT,
        SUBMIT,
        st.tuples(st.just("end"), st.integers(0, 7), st.floats(0.5, 3.0)),
        st.tuples(st.just("fail"), st.integers(0, 7)),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
        st.tuples(st.just("wait"), st.floats(0.0, 1.0)),
        st.tuples(st.just("press"), st.booleans()),
        st.tuples(st.just("kill"), st.integers(0, 7)),
        st.tuples(st.just("return"), st.sampled_from(["gpu", "cpu"])),
        st.tuples(st.just("jump"), st.sampled_from([-1000.0, -0.05, 1e6])),
    ),
    max_size=120,
)


def _check(house: House) -> None:
    told = house.scheduler.statistics()
    refused = sum(told.refused.values())
    assert told.submitted == len(house.tickets)
    assert told.submitted == (told.answered + refused + told.failed + told.cancelled + told.waiting + told.running), (
        "submitted = answered + refused + failed + cancelled + in flight"
    )
    states = Counter(ticket.state for ticket in house.tickets)
    assert states[State.WAITING] == told.waiting
    assert states[State.RUNNING] == told.running
    assert house.seen == +Counter(
        {
            State.ANSWERED: told.answered,
            State.REFUSED: refused,
            State.FAILED: told.failed,
            State.CANCELLED: told.cancelled,
        }
    ), "counters equal what clients saw"
    assert not told.waiting or len(house.running) == house.workers, "idle with admissible work"
    for tier in house.scheduler.queue.tiers.values():
        assert len(tier.waiting()) == tier.length
        assert sum(tier.tenant_length.values()) == tier.length


def _step(house: House, step: tuple[object, ...]) -> None:
    match step:
        case ("submit", str(tenant), str(tier), int(size), float() | None as within):
            house.submit(tenant, tier, size, within)
        case ("end", int(which), float(part)) if house.running:
            house.end(which % len(house.running), part=part)
        case ("fail", int(which)) if house.running:
            house.end(which % len(house.running), RuntimeError("broken"))
        case ("cancel", int(which)) if house.tickets:
            house.scheduler.cancel(house.tickets[which % len(house.tickets)])
        case ("wait", float(seconds)):
            house.clock.advance(seconds)
            house.scheduler.wake()
        case ("kill", int(which)) if house.running:
            house.ladder.lost(house.running[which % len(house.running)].rung)
            house.end(which % len(house.running), ProcessLostError("it was killed", next_step="wait"))
        case ("return", str(name)):
            house.ladder.returned(name)
            house.scheduler.wake()
        case ("jump", float(seconds)):
            house.clock._now += seconds
            house.scheduler.wake()
        case ("press", bool(pressed)):
            house.ladder.memory("gpu", pressed=pressed)
            house.scheduler.wake()


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_every_request_ends_once_and_the_books_agree(steps: list[tuple[object, ...]], workers: int) -> None:
    house = House(workers)
    for step in steps:
        _step(house, step)
        _check(house)
    while house.running:
        house.end()
        _check(house)
    assert all(ticket.state not in (State.WAITING, State.RUNNING) for ticket in house.tickets)
    assert sum(house.seen.values()) == len(house.tickets)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 3.0]), min_size=2),
    st.lists(st.tuples(st.integers(1, 8), st.floats(0.6, 1.5)), min_size=20, max_size=60),
)
def test_nobody_who_waits_is_served_beyond_the_bound(
    weights: dict[str, float], rounds: list[tuple[int, float]]
) -> None:
    """VTC's bound: what two waiting tenants were served, each over its weight, differs by a constant."""
    house = House(queue=Queue(weights=weights))
    for _ in range(4):
        for tenant in weights:
            house.submit(tenant)
    served: Counter[str] = Counter()
    for size, part in rounds:
        for tenant in weights:
            for _ in range(4):  # as many as a batch holds: nobody's line runs dry
                house.submit(tenant, size=size)
        started = house.running[0].started
        batch = house.end(part=part)
        took = (house.clock.now() - started) * 1e3 / len(batch.tickets)
        for ticket in batch.tickets:
            served[ticket.tenant] += took  # type: ignore[assignment]
    shares = [served[tenant] / weight for tenant, weight in weights.items()]
    # Two batches that are not yet corrected, each half as long again as predicted, over the least weight.
    assert max(shares) - min(shares) <= 2 * 1.5 * LONGEST_MS / min(weights.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.7, 1.4), min_size=150, max_size=200))
def test_every_tier_that_waits_gets_its_least_share(parts: list[float]) -> None:
    house = House()
    for part in [1.0, *parts]:
        for tier in TIERS:
            for _ in range(4):  # as many as a batch holds: every tier always waits
                house.submit("a", tier, 1)
        if house.running:
            house.end(part=part)
    spent = house.scheduler.statistics().tier_ms
    total = sum(spent.values())
    for queue in house.scheduler.queue.tiers.values():
        assert spent[queue.name] >= queue.share * total - 3 * LONGEST_MS
