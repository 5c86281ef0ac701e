"""Several ladders behind one queue, and rungs that live on workers of their own."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.core.clock import FakeClock
from aula.core.errors import BackendError, SettingsError
from aula.core.types import Why
from aula.scheduling.admission import Quota, Quotas
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import Reason, State, Ticket
from aula.scheduling.workers import Workers

COSTS = {"gpu": {1: {1: 10.0, 4: 16.0}}, "cpu": {1: {1: 50.0}}}


class Pair:
    """A card and a processor: two capabilities go through ladders on both."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.clock = FakeClock()
        self.running: list[Batch] = []
        where = {"gpu": "card", "cpu": "processor"}
        ladders = [Ladder(("gpu", "cpu"), self.clock, workers=where) for _ in range(2)]
        self.hear, self.see = (
            Route(name, ladder, CostTable(COSTS)) for name, ladder in zip("hs", ladders, strict=True)
        )
        self.scheduler = Scheduler(
            self.running.append,
            (self.hear, self.see),
            self.clock,
            workers={"card": 1, "processor": 1},
            quotas=quotas,
        )

    def submit(self, route: Route, within: float | None = None, tenant: str = "a", *, is_part: bool = False) -> Ticket:
        deadline = None if within is None else self.clock.now() + within
        return self.scheduler.submit(route, tenant, "question", 1, deadline, is_part=is_part)

    def end(self, error: Exception | None = None) -> Batch:
        batch = self.running.pop(0)
        self.clock.advance(max(0.0, batch.started + batch.predicted_ms / 1e3 - self.clock.now()))
        self.scheduler.finished(batch, ["fine"] * len(batch.tickets), error)
        return batch


def test_who_has_time_waits_for_the_best_rung_and_who_has_not_takes_the_next() -> None:
    house = Pair()
    house.submit(house.hear)
    patient, hasty = house.submit(house.hear), house.submit(house.hear, within=0.019)
    assert [(batch.rung, batch.worker) for batch in house.running] == [("gpu", "card")]
    assert hasty.state is State.REFUSED, "nothing could be in time"
    soon = house.submit(house.see, within=0.06)
    assert soon.state is State.WAITING, "the card will be free in time"
    house.end()
    assert {patient.state, soon.state} == {State.RUNNING, State.WAITING}, "two routes never share a batch"


def test_a_worker_of_its_own_is_not_kept_idle_by_another_that_is_busy() -> None:
    house = Pair()
    house.submit(house.hear)
    house.see.ladder.load_failed("gpu")
    beside = house.submit(house.see)
    assert beside.state is State.RUNNING
    assert (beside.why, [batch.rung for batch in house.running]) == (Why.OUT_OF_ORDER, ["gpu", "cpu"])


def test_ladders_have_breakers_of_their_own_and_canaries_wait_for_their_worker() -> None:
    house = Pair()
    house.submit(house.hear)
    house.see.ladder.load_failed("gpu")
    house.clock.advance(2.0)
    house.scheduler.wake()
    assert not any(batch.is_canary for batch in house.running), "the card is busy"
    house.end()
    assert [(batch.is_canary, batch.route) for batch in house.running] == [(True, house.see)]
    assert house.hear.ladder.usable("gpu")


def test_a_rung_that_cannot_be_loaded_costs_nobody_anything() -> None:
    house = Pair()
    ticket = house.submit(house.hear)
    house.scheduler.not_loaded(house.running.pop())
    assert [batch.rung for batch in house.running] == ["cpu"]
    house.scheduler.not_loaded(house.running.pop())
    assert ticket.refusal is not None
    assert ticket.refusal.reason is Reason.NO_RUNG
    assert sum(house.scheduler.statistics().tier_ms.values()) == 0
    house.clock.advance(2.0)
    house.scheduler.wake()
    house.scheduler.not_loaded(house.running.pop())
    assert not house.hear.ladder.usable("gpu"), "a canary that cannot load is a bad one"


def test_a_part_is_billed_and_meets_its_deadline_but_no_quota() -> None:
    house = Pair(Quotas({"a": Quota(concurrency=1, device_ms_a_minute=15.0)}))
    opened = house.submit(house.hear)
    chunk, late = (house.submit(house.hear, within, is_part=True) for within in (None, -1.0))
    assert house.submit(house.hear).state is State.REFUSED
    house.end()
    assert (opened.state, chunk.state, late.state) == (State.ANSWERED, State.RUNNING, State.REFUSED)
    house.end()
    refusal = house.submit(house.hear).refusal
    assert refusal is not None
    assert refusal.reason is Reason.DEVICE_TIME, "10 ms for each of the two"


def test_an_engine_error_of_one_ticket_is_tried_on_the_next_rung() -> None:
    house = Pair()
    house.submit(house.hear)
    broken, whole = house.submit(house.hear), house.submit(house.hear)
    house.end()
    house.scheduler.finished(house.running.pop(), [BackendError("one row is NaN", next_step="none"), "fine"])
    assert whole.state is State.ANSWERED
    house.end()
    assert (broken.state, broken.rung, broken.why) == (State.ANSWERED, "cpu", Why.RETRIED)


def test_why_a_lower_rung_served_is_told() -> None:
    house = Pair()
    only = Route("chinese", house.hear.ladder, CostTable(COSTS), frozenset({"cpu"}))
    assert house.submit(only).why is Why.LANGUAGE
    house.end()
    house.hear.ladder.override("cpu")
    assert house.submit(house.hear).why is Why.OVERRIDE
    house.end()
    quick = Route("quick", Ladder(("gpu", "cpu"), house.clock), CostTable({**COSTS, "cpu": {1: {1: 1.0}}}))
    scheduler = Scheduler(house.running.append, (quick,), house.clock)
    assert scheduler.submit(quick, "a", "question", 1, house.clock.now() + 0.005).why is Why.TIME


def test_what_the_device_spent_is_believed_before_the_clock() -> None:
    house = Pair()
    house.submit(house.hear)
    batch = house.running.pop()
    house.clock.advance(60.0)
    house.scheduler.finished(batch, ["fine"], took_ms=10.0)
    assert house.scheduler.statistics().tier_ms["question"] == 10.0
    assert house.hear.costs.predict("gpu", 1, 1) == 10.0


def test_workers_and_routes_that_make_no_sense_are_refused() -> None:
    for capacity in (0, {}, {"card": 0}):
        with pytest.raises(SettingsError):
            Workers(capacity)
    with pytest.raises(SettingsError, match="costs"):
        Route("hear", Ladder(("tpu",), FakeClock()), CostTable(COSTS))


STEP = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from("hs"), st.one_of(st.none(), st.floats(-0.1, 0.3)), st.booleans()),
    st.tuples(st.just("end"), st.sampled_from(["fine", "broken", "absent"])),
    st.tuples(st.just("wait"), st.floats(0.0, 1.0)),
)


def _could_run(house: Pair) -> list[Ticket]:
    """Tickets at the head of a lane whose best rung in time is on a worker that idles."""
    workers, now = house.scheduler.workers, house.clock.now()
    found = []
    for tier in house.scheduler.queue.tiers.values():
        for ticket in filter(None, (tier.head(key) for key in {one.lane for one in tier.waiting()})):
            route = ticket.route

            def in_time(name: str, ticket: Ticket = ticket, route: Route = route) -> bool:
                wait_s = workers.free_in_s(route.ladder.worker_of[name], now)
                return now + wait_s + route.costs.promise(name, ticket.bucket, 1) / 1e3 <= ticket.deadline

            rung = route.choose(ticket.below, in_time)
            if rung is not None and workers.idle(route.ladder.worker_of[rung]):
                found.append(ticket)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_on_named_workers_too_every_request_ends_once(steps: list[tuple[object, ...]]) -> None:
    house = Pair()
    tickets: list[Ticket] = []

    def end(how: str) -> None:
        if house.running and how == "absent":
            house.scheduler.not_loaded(house.running.pop(0))
        elif house.running:
            house.end(RuntimeError(how) if how == "broken" else None)

    for step in steps:
        match step:
            case ("submit", str(name), float() | None as within, bool(part)):
                tickets.append(house.submit(house.hear if name == "h" else house.see, within, is_part=part))
            case ("end", str(how)):
                end(how)
            case ("wait", float(seconds)):
                house.clock.advance(seconds)
                house.scheduler.wake()
        busy = Counter(batch.worker for batch in house.running)
        assert max(busy.values(), default=0) <= 1
        assert not _could_run(house), "idle with admissible work"
    while house.running:
        end("fine")
    told = house.scheduler.statistics()
    assert told.waiting == told.running == 0
    assert Counter(ticket.state for ticket in tickets) == +Counter(
        {
            State.ANSWERED: told.answered,
            State.REFUSED: sum(told.refused.values()),
            State.FAILED: told.failed,
        }
    )
