from collections.abc import Callable

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import SettingsError
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Breaker, Cause, Ladder
from aula.scheduling.routes import Route


def _ladder() -> tuple[Ladder, FakeClock]:
    clock = FakeClock()
    return Ladder(("gpu", "cpu"), clock), clock


def _serving(ladder: Ladder, below: int = 0, fits: Callable[[str], bool] | None = None) -> str | None:
    costs = CostTable({name: {1: {1: 1.0}} for name in ladder.names})
    return Route("any", ladder, costs).choose(below, fits)


def _canary(ladder: Ladder, clock: FakeClock, *, good: bool) -> float:
    """Wait for the next one, send it, and say how long that was."""
    start = clock.now()
    clock.advance(ladder.next_canary() - start)
    name = ladder.due_canary()
    assert name is not None
    assert ladder.due_canary() is None, "one at a time"
    ladder.canary(name, good=good)
    return clock.now() - start


def test_down_at_once_and_up_after_three_good_canaries() -> None:
    ladder, clock = _ladder()
    for _ in range(3):
        ladder.failed("gpu")
    assert _serving(ladder) == "cpu"
    assert _canary(ladder, clock, good=True) == 2.0
    _canary(ladder, clock, good=True)
    assert _serving(ladder) == "cpu", "no premature step up"
    _canary(ladder, clock, good=True)
    assert _serving(ladder) == "gpu"
    assert [(one.state, one.cause) for one in ladder.changes] == [
        (Breaker.OPEN, Cause.FAILURES),
        (Breaker.CLOSED, Cause.CANARIES),
    ]


def test_a_bad_canary_doubles_the_wait_up_to_a_minute() -> None:
    ladder, clock = _ladder()
    ladder.load_failed("gpu")
    assert [_canary(ladder, clock, good=False) for _ in range(7)] == [2, 4, 8, 16, 32, 60, 60]


def test_failures_between_successes_are_forgiven() -> None:
    ladder, _ = _ladder()
    for _ in range(10):
        ladder.failed("gpu")
        ladder.failed("gpu")
        ladder.succeeded("gpu")
    assert _serving(ladder) == "gpu"


def test_missed_deadlines_step_down_only_where_something_lower_serves() -> None:
    ladder, _ = _ladder()
    for _ in range(20):
        ladder.succeeded("gpu", missed_deadline=True)
        ladder.succeeded("cpu", missed_deadline=True)
    assert (ladder.state("gpu"), ladder.state("cpu")) == (Breaker.OPEN, Breaker.CLOSED)


def test_no_canary_while_the_memory_is_full() -> None:
    ladder, clock = _ladder()
    ladder.memory("gpu", pressed=True)
    clock.advance(100.0)
    assert (_serving(ladder), ladder.due_canary()) == ("cpu", None)
    ladder.memory("gpu", pressed=False)
    assert ladder.due_canary() == "gpu"


def test_an_override_serves_whatever_the_breaker_says_until_it_is_lifted() -> None:
    ladder, _ = _ladder()
    ladder.override("cpu")
    assert _serving(ladder) == "cpu"
    ladder.load_failed("cpu")
    assert _serving(ladder) == "cpu"
    ladder.override(None)
    assert _serving(ladder) == "gpu"
    with pytest.raises(SettingsError, match="gpu, cpu"):
        ladder.override("tpu")


def test_the_rung_is_chosen_by_slack_and_by_what_was_tried() -> None:
    ladder, _ = _ladder()
    assert _serving(ladder, fits=lambda name: name == "cpu") == "cpu"
    assert _serving(ladder, below=1) == "cpu"
    assert _serving(ladder, below=2) is None
