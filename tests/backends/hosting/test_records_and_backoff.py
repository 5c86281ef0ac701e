import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.backends.hosting.backoff import Backoff
from aula.backends.hosting.records import Hosting, hosting_for
from aula.core.clock import FakeClock
from aula.core.errors import SettingsError
from aula.core.settings import Settings


def test_a_first_death_is_mended_at_once_and_more_later_and_later() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, Hosting(wait_s=0.5, longest_wait_s=3.0))
    waits = []
    for _ in range(6):
        backoff.died()
        waits.append(backoff.moment - clock.now())
        clock.advance(waits[-1])
    assert waits == [0, 0.5, 1, 2, 3, 3]


def test_a_process_that_was_whole_for_a_while_begins_anew() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, Hosting(settled_s=2.0))
    for _ in range(4):
        backoff.died()
    backoff.ready()
    clock.advance(1.9)
    backoff.died()
    assert backoff.moment > clock.now()
    backoff.ready()
    clock.advance(2.0)
    backoff.died()
    assert backoff.moment == clock.now()


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=200))
def test_no_wait_is_ever_longer_than_the_longest(lives: list[float | None]) -> None:
    clock, hosting = FakeClock(), Hosting()
    backoff = Backoff(clock, hosting)
    for life in lives:
        if life is not None:
            backoff.ready()
            clock.advance(life)
        backoff.died()
        assert clock.now() <= backoff.moment <= clock.now() + hosting.longest_wait_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"hang_s": 0.0},
        {"load_s": float("inf")},
        {"close_s": float("nan")},
        {"wait_s": 2.0, "longest_wait_s": 1.0},
        {"settled_s": -1.0},
        {"memory_bytes": -1},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError) as caught:
        Hosting(**wrong)  # type: ignore[arg-type]
    assert caught.value.next_step


def test_the_operator_s_word() -> None:
    hosted = {
        word: [device for device in ("cpu", "gpu") if hosting_for(Settings({"isolate": word}), device)]
        for word in ("never", "gpu", "always")
    }
    assert hosted == {"never": [], "gpu": ["gpu"], "always": ["cpu", "gpu"]}
    served = hosting_for(Settings(), "gpu")
    assert served is not None
    assert served.spare, "what serves comes back soon"
    assert hosting_for(Settings(), "cpu") is None, "an engine on the CPU stays here unless somebody asks"
