import pytest

from aula.bench.scenarios import SCENARIOS, Phase, Scenario
from aula.bench.simulate import School, simulate
from aula.core.errors import InputError
from aula.scheduling.tickets import State

SHORT = 8.0
"""Seconds: what holds in a minute of twice the capacity is to be seen in eight."""


def test_twice_the_capacity_wastes_nothing_and_keeps_least_shares() -> None:
    told = simulate(Scenario("heavy", "", (Phase(SHORT, 2.0),)))
    assert told.goodput_ratio >= 0.95
    assert told.late <= 0.001 * told.answered
    for tier, share in {"question": 0.5, "caption": 0.15, "vision": 0.1, "batch": 0.05}.items():
        assert told.tiers[tier].device_share >= 0.9 * share
    assert told.submitted == told.answered + sum(told.refused.values()) + told.failed


def test_a_greedy_class_costs_no_other_class_more_than_two_per_cent() -> None:
    others = 1.8 * 9 / 29
    """The load of nine classes, when the first asks twenty times as much as each of them."""
    alone = simulate(Scenario("alone", "", (Phase(SHORT, others),), tenants=9))
    beside = simulate(Scenario("greedy", "", (Phase(SHORT, 1.8, greedy=20.0),)))
    asked = [row for name, row in beside.tenants.items() if name != "class-1"]
    submitted = sum(row.submitted for row in asked)
    good = sum(row.goodput_ratio * row.submitted for row in asked) / submitted
    whole = sum(row.answered - row.late for row in alone.tenants.values()) / alone.submitted
    assert good >= whole - 0.02


def test_a_dying_gpu_is_left_and_taken_back() -> None:
    told = simulate(SCENARIOS["dying-gpu"])
    assert [change.partition(": ")[2] for change in told.changes] == ["gpu open (failures)", "gpu closed (canaries)"]
    assert told.goodput_ratio > 0.95
    assert set(told.served_by) == {"gpu", "cpu"}


def test_the_same_seed_tells_the_same_story() -> None:
    scenario = Scenario("spike", "", (Phase(2, 0.5), Phase(1, 4.0), Phase(2, 0.5)))
    one, again = simulate(scenario), simulate(scenario)
    other = simulate(scenario.sized(tenants=10, students=30, cards=1, seed=1))
    assert one == again
    assert one != other


def test_many_cards_share_the_work_and_absurd_sizes_are_refused() -> None:
    told = simulate(Scenario("heavy", "", (Phase(1.0, 2.0),), cards=8))
    assert told.goodput_ratio >= 0.95
    with pytest.raises(InputError, match="requests"):
        simulate(SCENARIOS["steady"].sized(tenants=1000, students=10_000, cards=64, seed=0))
    with pytest.raises(InputError):
        simulate(SCENARIOS["steady"].sized(tenants=0, students=30, cards=1, seed=0))


def test_a_second_after_a_spike_nobody_is_refused_and_waits_are_as_before() -> None:
    school = School(Scenario("spike", "", (Phase(4, 0.5), Phase(3, 4.0), Phase(5, 0.5))))
    school.run()
    questions = [ticket for ticket in school.tickets if ticket.tier == "question"]
    after = [ticket for ticket in questions if ticket.submitted >= 8.0]
    assert all(ticket.state is State.ANSWERED and not ticket.late for ticket in after)
    calm, later = (
        sorted((one.finished or 0.0) - one.submitted for one in group)[int(0.99 * len(group))]
        for group in ([ticket for ticket in questions if ticket.submitted < 4.0], after)
    )
    assert later < 2 * calm
