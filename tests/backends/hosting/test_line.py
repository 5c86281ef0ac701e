import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from aula.backends.hosting.line import Line


def _waits(line: Line, number: int) -> None:
    """Until so many stand in the line; they are on their way there."""
    while line.length < number:
        threading.Event().wait(0.001)


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_first_come_first_served() -> None:
    line, served = Line(), list[int]()

    def serve(number: int) -> None:
        assert line.enter()
        served.append(number)
        line.leave()

    assert line.enter()
    threads = []
    for number in range(5):
        threads.append(_thread(lambda number=number: serve(number)))  # type: ignore[misc]
        _waits(line, number + 1)
    line.leave()
    for thread in threads:
        thread.join()
    assert served == list(range(5))
    assert not line.taken


def test_who_gives_up_leaves_no_gap() -> None:
    line = Line()
    assert line.enter()
    assert not line.enter(0.0)
    assert not line.enter(-1.0)
    assert line.length == 0
    line.leave()
    assert line.enter(0.0)


@given(st.lists(st.sampled_from(["patient", "hasty"]), max_size=6))
def test_with_any_company_each_is_served_or_gives_up_and_the_line_is_free_in_the_end(company: list[str]) -> None:
    line, inside, most, outcomes = Line(), list[str](), list[int](), list[bool]()

    def serve(name: str) -> None:
        came = line.enter(None if name == "patient" else 0.0)
        if came:
            inside.append(name)
            most.append(len(inside))
            inside.remove(name)
            line.leave()
        outcomes.append(came or name == "hasty")

    threads = [_thread(lambda name=name: serve(name)) for name in company]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert outcomes == [True] * len(company)
    assert all(number == 1 for number in most)
    assert (line.taken, line.length) == (False, 0)
