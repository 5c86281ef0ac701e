import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aula.servers.pages.spread import by_clock, over_time, spread
from tests.servers.pages.people import turn

MS = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


def _took(ms: float) -> dict[str, float]:
    return {"commit_to_first_audio": ms}


@given(MS)
def test_percentiles_are_nearest_ranks(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    wanted = [float(np.percentile(values, q, method="inverted_cdf")) for q in (50, 95, 99)]
    assert [found.p50, found.p95, found.p99] == wanted
    assert found.count == len(values)


def test_nothing_has_no_percentiles() -> None:
    assert spread([]) is None


@given(MS, st.floats(0, 1e9))
def test_every_turn_of_the_last_minutes_is_in_exactly_one_of_them(values: list[float], now: float) -> None:
    turns = [turn("?", now - (place * 37) % 3000, timings_ms=_took(ms)) for place, ms in enumerate(values)]
    minutes = over_time(turns, now, minutes=60)
    assert len(minutes) == 60
    assert sum(one.count for _, one in minutes if one is not None) == len(values)
    assert [at for at, _ in minutes] == [minutes[0][0] + 60 * place for place in range(60)]


def test_older_turns_are_left_out() -> None:
    assert all(one is None for _, one in over_time([turn("?", 0.0)], 10_000.0, minutes=60))


def test_clocks_are_never_mixed_and_failures_have_none() -> None:
    turns = [turn("a"), turn("b", clock="text"), turn("c", error="NoRungError"), turn("d", timings_ms={})]
    assert {clock: [one.question for one in those] for clock, those in by_clock(turns).items()} == {
        "A": ["a"],
        "text": ["b"],
    }
