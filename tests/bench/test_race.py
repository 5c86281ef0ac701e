import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.bench.process import CompetitorFailedError
from aula.bench.race import FEWEST_ROUNDS, MOST_RUNS, RACE_SECONDS, Timing, race, ratio
from aula.core.clock import FakeClock


class Runner:
    """Takes `milliseconds` a run, the first of each turn ten times as long; fails at its turn number `fails`."""

    def __init__(self, clock: FakeClock, milliseconds: float, log: list[str], name: str, fails: int = -1) -> None:
        self._clock, self._milliseconds, self._log, self._name, self._fails = clock, milliseconds, log, name, fails
        self.turns = 0
        self.rested = False

    def run(self, count: int) -> list[float]:
        if self.turns == self._fails:
            raise CompetitorFailedError("its process ended")
        self.turns += 1
        self._log.append(self._name)
        times = [10 * self._milliseconds, *[self._milliseconds] * (count - 1)]
        self._clock.advance(sum(times) / 1000)
        self.rested = False
        return times

    def rest(self) -> None:
        self.rested = True


def test_turns_rotate_and_the_first_run_of_each_does_not_count() -> None:
    clock, log = FakeClock(), list[str]()
    runners = {name: Runner(clock, milliseconds, log, name) for name, milliseconds in (("a", 1.0), ("b", 50.0))}
    ran = race(runners, clock, rounds=4)
    assert log == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert all(runner.rested for runner in runners.values())
    assert set(ran.timings["a"].all) == {1.0}
    assert [len(turn) for turn in ran.timings["a"].rounds] == [MOST_RUNS] * 4
    assert [len(turn) for turn in ran.timings["b"].rounds] == [2] * 4


def test_a_slow_race_ends_after_the_fewest_rounds() -> None:
    clock = FakeClock()
    runners = {"slow": Runner(clock, 1000 * RACE_SECONDS, [], "slow")}
    assert len(race(runners, clock, rounds=100).timings["slow"].rounds) == FEWEST_ROUNDS
    assert len(race(runners, clock, rounds=2).timings["slow"].rounds) == 2


@pytest.mark.parametrize("fails", [0, 3])
def test_one_that_breaks_is_out_and_the_others_go_on(fails: int) -> None:
    clock = FakeClock()
    runners = {"good": Runner(clock, 1.0, [], "good"), "bad": Runner(clock, 1.0, [], "bad", fails)}
    ran = race(runners, clock, rounds=6)
    assert dict(ran.failed) == {"bad": "its process ended"}
    assert set(ran.timings) == {"good"}
    assert len(ran.timings["good"].rounds) == 6


def test_nobody_left_is_an_empty_race() -> None:
    assert race({}, FakeClock()).timings == {}


@given(st.lists(st.floats(0.5, 50), min_size=1, max_size=20))
def test_noise_that_lasts_a_round_divides_out(noise: list[float]) -> None:
    theirs = Timing([[6 * share, 6 * share] for share in noise])
    ours = Timing([[2 * share] for share in noise])
    assert ratio(theirs, ours) == pytest.approx(3)


def test_median_and_spread() -> None:
    timing = Timing([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]])
    assert timing.median == 5.5
    assert timing.spread == (1.0, 9.0)
