import math

import pytest

from aula.core.errors import InputError, OverloadError, SettingsError
from aula.scheduling.admission import Allowance, Quota, Quotas
from aula.scheduling.costs import CostTable
from aula.scheduling.queue import Queue
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import Reason, State, Ticket
from tests.scheduling.harness import COSTS, House


def test_an_idle_worker_takes_what_is_there_and_batches_form_behind_it() -> None:
    house = House()
    first = house.submit()
    assert [len(batch.tickets) for batch in house.running] == [1]
    for _ in range(3):
        house.submit()
    house.end()
    assert first.state is State.ANSWERED
    assert [len(batch.tickets) for batch in house.running] == [3]


def test_earliest_deadline_goes_first_inside_a_tenant() -> None:
    house = House()
    house.submit()
    late, soon = house.submit(size=8, within=2.0), house.submit(size=1, within=1.0)
    house.end()
    assert (soon.state, late.state) == (State.RUNNING, State.WAITING)


def test_what_cannot_be_in_time_is_refused_at_once_with_when_to_come_back() -> None:
    house = House()
    house.submit()
    ticket = house.submit(within=0.005)
    assert ticket.state is State.REFUSED
    assert ticket.refusal is not None
    assert ticket.refusal.reason is Reason.PREDICTED_LATE
    assert 0 < ticket.refusal.retry_after_s < 1
    error = ticket.refusal.error("a")
    assert isinstance(error, OverloadError)
    assert error.reason == "predicted_late"
    assert error.exit_code == 11


def test_a_tenant_inside_its_share_is_let_in_past_a_greedy_one() -> None:
    house = House()
    greedy = [house.submit("greedy", within=0.3) for _ in range(200)]
    assert greedy[-1].state is State.REFUSED
    modest = house.submit("modest", within=0.1)
    house.end()
    assert modest.state is State.RUNNING


def test_what_is_left_of_a_rate_can_be_asked() -> None:
    quotas = Quotas({"a": Quota(rate=0.5, burst=4), "b": Quota(concurrency=3)})
    assert quotas.allowance("b", 0.0) is None
    assert quotas.allowance("nobody", 0.0) is None
    assert quotas.allowance("a", 0.0) == Allowance(4, 4, 0.0)
    for _ in range(3):
        quotas.enter("a", 0.0)
    assert quotas.allowance("a", 0.0) == Allowance(4, 1, 6.0)
    assert quotas.allowance("a", 2.0) == Allowance(4, 2, 4.0)
    assert quotas.allowance("a", 60.0) == Allowance(4, 4, 0.0)


@pytest.mark.parametrize(
    ("quota", "reason"),
    [
        (Quota(rate=1.0, burst=2), Reason.RATE),
        (Quota(concurrency=2), Reason.CONCURRENCY),
        (Quota(device_ms_a_minute=15.0), Reason.DEVICE_TIME),
    ],
)
def test_quotas_refuse_and_refill(quota: Quota, reason: Reason) -> None:
    house = House(quotas=Quotas({"a": quota}))
    for _ in range(2):
        assert house.submit().state is not State.REFUSED
        if reason is Reason.DEVICE_TIME:
            house.end()
    refused = house.submit()
    assert refused.refusal is not None
    assert refused.refusal.reason is reason
    assert house.submit("b").state is not State.REFUSED, "another tenant has a quota of its own"
    while house.running:
        house.end()
    house.clock.advance(refused.refusal.retry_after_s)
    assert house.submit().state is State.RUNNING


def test_a_failed_batch_is_tried_once_on_the_next_rung() -> None:
    house = House()
    saved, hasty = house.submit(), house.submit(within=0.04)
    house.end(error=RuntimeError("the device is gone"))
    assert [batch.rung for batch in house.running] == ["gpu"], "whoever has less time goes first, on the best rung"
    house.end()
    assert hasty.state is State.ANSWERED
    assert [batch.rung for batch in house.running] == ["cpu"]
    house.end(error=RuntimeError("this one too"))
    assert saved.state is State.FAILED, "tried once more, and not for ever"
    assert house.scheduler.statistics().retried == 1


def test_one_bad_request_does_not_harm_its_batch_mates() -> None:
    house = House()
    house.submit()
    bad, good = house.submit(), house.submit()
    house.end()
    batch = house.running.pop()
    house.scheduler.finished(batch, [ValueError("NaN"), "fine"])
    assert {bad.state, good.state} == {State.FAILED, State.ANSWERED}


def test_a_callable_that_gives_too_few_values_or_raises_is_a_failure_and_no_silence() -> None:
    house = House()
    ticket = house.submit(within=0.02)
    house.scheduler.finished(house.running.pop(), [])
    assert ticket.state is State.FAILED

    def start(_batch: object) -> None:
        raise OSError("no such worker")

    scheduler = Scheduler(start, (house.route,), house.clock)
    assert scheduler.submit(house.route, "a", "question", 1).state is State.FAILED


def test_cancelling_while_it_waits_and_while_it_runs() -> None:
    house = House()
    running, waiting = house.submit(), house.submit()
    assert house.scheduler.cancel(waiting)
    assert house.scheduler.cancel(running)
    assert not house.scheduler.cancel(running)
    house.end()
    assert (running.state, waiting.state) == (State.CANCELLED, State.CANCELLED)
    assert not house.running


def test_whoever_hears_of_an_end_may_submit_again_at_once() -> None:
    house = House()
    house.submit()
    again: list[Ticket] = []
    ticket = house.scheduler.submit(house.route, "a", "question", 1, on_done=lambda _: again.append(house.submit("a")))
    house.scheduler.cancel(ticket)
    house.end()
    assert again[0].state is State.RUNNING


def test_without_a_rung_the_refusal_says_so() -> None:
    house = House()
    for name in ("gpu", "cpu"):
        house.ladder.load_failed(name)
    refusal = house.submit().refusal
    assert refusal is not None
    assert (refusal.reason, refusal.retry_after_s) == (Reason.NO_RUNG, 2.0)
    house.clock.advance(2.0)
    house.scheduler.wake()
    assert house.running[0].is_canary


def test_bad_input_is_said_and_counted_nowhere() -> None:
    house = House()
    for tier, size, deadline in (("exam", 1, None), ("question", 9, None), ("question", 0, None)):
        with pytest.raises(InputError):
            house.scheduler.submit(house.route, "a", tier, size, deadline)
    with pytest.raises(InputError):
        house.scheduler.submit(house.route, "a", "question", 1, math.nan)
    assert house.scheduler.statistics().submitted == 0
    assert house.submit(within=-1.0).state is State.REFUSED
    assert house.submit(within=3e7).state is State.RUNNING


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="sum to at most 1"):
        Queue({"question": 0.8, "caption": 0.3})
    with pytest.raises(SettingsError):
        Queue(weights={"a": 0.0})
    with pytest.raises(SettingsError):
        Quota(rate=-1.0)
    for costs in (
        {},
        {"gpu": {1: {2: 5.0}}},
        {"gpu": {1: {1: math.nan}}},
        {"gpu": {1: {1: 1.0}}, "cpu": {2: {1: 1.0}}},
    ):
        with pytest.raises(SettingsError):
            CostTable(costs)


def test_a_guess_ignores_the_first_run_and_believes_the_second() -> None:
    costs = CostTable(COSTS)
    costs.replace("gpu", COSTS["gpu"], guessed=[1])
    costs.correct("gpu", 1, 1, 700.0)
    assert costs.predict("gpu", 1, 1) == 10.0
    costs.correct("gpu", 1, 1, 20.0)
    assert (costs.predict("gpu", 1, 1), costs.predict("gpu", 1, 4)) == (20.0, 32.0)
    costs.correct("gpu", 8, 1, 700.0)
    assert costs.predict("gpu", 8, 1) == 26.0, "measured: one hiccup is not believed"


def test_who_is_refused_while_nothing_waits_brings_costs_back_to_what_was_measured() -> None:
    house = House()
    for _ in range(100):
        house.costs.correct("gpu", 1, 1, 40.0)
    refused = 0
    while house.submit(within=0.02).state is State.REFUSED:
        refused += 1
    assert 0 < refused < 30
    house.end()
    house.submit(within=0.001)
    assert house.costs.predict("gpu", 1, 1) >= 10.0, "never below"


def test_costs_are_learnt_and_one_hiccup_is_not_believed() -> None:
    costs = CostTable(COSTS)
    assert costs.predict("gpu", 1, 2) == 12.0
    costs.correct("gpu", 1, 1, 1e6)
    assert costs.predict("gpu", 1, 1) <= 13.0
    costs.correct("gpu", 1, 1, -5.0)
    for _ in range(50):
        costs.correct("gpu", 1, 1, 20.0)
    assert costs.predict("gpu", 1, 1) == pytest.approx(20.0, rel=0.01)
