import inspect
import re

import pytest

from aula.core import errors
from aula.core.errors import AulaError, CourseNotFoundError


def test_message_says_what_was_wrong_what_there_is_and_what_to_do() -> None:
    error = CourseNotFoundError("there is no course 'phys'", available=["a", "b"], next_step="aula course list")
    assert str(error) == "there is no course 'phys'. Available: a, b. Next: aula course list"


def test_a_message_that_ends_in_a_full_stop_does_not_get_a_second() -> None:
    assert str(AulaError("It broke.", next_step="mend it")) == "It broke. Next: mend it"


def _tree() -> dict[str, type[AulaError]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, AulaError) and kind.__module__ == errors.__name__
    }


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"[│├└─ ]*?(\w+Error|AulaError)\b", errors.__doc__ or "")
    assert sorted(drawn) == sorted(_tree())


@pytest.mark.parametrize("name", sorted(_tree()))
def test_drawn_parent_is_the_real_parent(name: str) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"\w+Error", line)]
    depths = {re.findall(r"\w+Error", line)[0]: re.search(r"\w", line).start() for line in lines}  # type: ignore[union-attr]
    order = list(depths)
    above = [other for other in order[: order.index(name)] if depths[other] < depths[name]]
    parent = _tree()[name].__bases__[0].__name__
    assert parent == (above[-1] if above else "Exception")


def test_every_branch_has_an_exit_code_of_its_own() -> None:
    branches = [kind for kind in _tree().values() if kind.__bases__[0] is AulaError]
    codes = [kind.exit_code for kind in branches]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 130} & set(codes)
