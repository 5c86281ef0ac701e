"""Engines of several sizes as one session: which is asked, when it is opened, what none of them holds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.selecting import SelectingSession
from aula.backends.session import Session, SessionOptions, Tensors
from aula.backends.sizes import Limits
from aula.core.errors import BackendError
from aula.core.types import TensorSpec

SIZES: dict[str, Limits] = {
    "many": ((1, 64), (3, 3)),
    "one": ((1, 1), (3, 3)),
    "some": ((2, 8), (3, 3)),
}


class Counting(Session):
    """Answers which profile it is."""

    backend = "tensorrt"

    def __init__(self, profile: str, limits: Limits) -> None:
        self.profile = profile
        self.runs = 0
        x = TensorSpec("x", "float32", ("rows", 3))
        super().__init__([x], [TensorSpec("y", "float32", ("rows",))], SessionOptions(bounds={"x": limits}))

    def precisions(self) -> dict[str, int]:
        return {"fp16": 2}

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self.runs += 1
        return {"y": tensors["x"].sum(axis=1)}

    @property
    def is_closed(self) -> bool:
        return self._closed


def _selecting(sizes: Mapping[str, Limits] = SIZES) -> tuple[SelectingSession, dict[str, Counting]]:
    opened: dict[str, Counting] = {}

    def opener(profile: str) -> Callable[[], Session]:
        def open_it() -> Session:
            assert profile not in opened, "each is opened once"
            opened[profile] = Counting(profile, sizes[profile])
            return opened[profile]

        return open_it

    bounds = {profile: {"x": limits} for profile, limits in sizes.items()}
    return SelectingSession(bounds, {profile: opener(profile) for profile in sizes}), opened


def _rows(count: int) -> dict[str, NDArray[Any]]:
    return {"x": np.ones((count, 3), np.float32)}


@pytest.mark.parametrize(("rows", "profile"), [(1, "one"), (2, "some"), (8, "some"), (9, "many"), (64, "many")])
def test_the_tightest_that_holds_the_sizes_is_asked(rows: int, profile: str) -> None:
    session, opened = _selecting()
    np.testing.assert_array_equal(session.run(_rows(rows))["y"], np.full(rows, 3.0))
    assert {name: one.runs for name, one in opened.items() if one.runs} == {profile: 1}


def test_engines_are_opened_when_they_are_needed_and_all_closed() -> None:
    session, opened = _selecting()
    assert list(opened) == ["one"], "its names and types are everyone's"
    assert session.precisions() == {"fp16": 2}
    session.run(_rows(64))
    session.run(_rows(64))
    assert list(opened) == ["one", "many"]
    assert opened["many"].runs == 2
    assert session.precisions() == {"fp16": 4}
    session.close()
    session.close()
    assert all(one.is_closed for one in opened.values())
    with pytest.raises(BackendError, match="closed"):
        session.run(_rows(1))


def test_sizes_that_no_profile_holds_are_refused_with_what_there_is() -> None:
    session, opened = _selecting()
    with pytest.raises(BackendError, match=r"no profile of this engine holds x \[65, 3\]") as refusal:
        session.run(_rows(65))
    assert refusal.value.available == ("one: x 1x3", "some: x 2-8x3", "many: x 1-64x3")
    assert "--profile" in refusal.value.next_step
    assert not any(one.runs for one in opened.values())


def test_a_gap_between_profiles_is_a_gap() -> None:
    session, _ = _selecting({"one": ((1, 1), (3, 3)), "more": ((4, 8), (3, 3))})
    with pytest.raises(BackendError, match=r"x \[2, 3\]"):
        session.run(_rows(2))


def test_sizes_that_all_share_are_fixed_and_others_free() -> None:
    session, _ = _selecting()
    (x,) = session.inputs
    assert isinstance(x.shape[0], str)
    assert x.shape[1] == 3
    with pytest.raises(BackendError, match="takes"):
        session.run({"x": np.ones((1, 4), np.float32)})
    with pytest.raises(BackendError, match="float64"):
        session.run({"x": np.ones((1, 3))})
    with pytest.raises(BackendError, match=r"given \['z'\]"):
        session.run({"z": np.ones((1, 3), np.float32)})


def test_sizes_that_each_fixes_otherwise_are_free() -> None:
    session, _ = _selecting({"short": ((1, 1), (3, 3)), "long": ((2, 2), (3, 3))})
    for rows in (1, 2):
        assert session.run(_rows(rows))["y"].shape == (rows,)


class Narrowing(Counting):
    """Counts in int32, and takes int64, as engines of TensorRT 8.6 do."""

    def __init__(self, profile: str, limits: Limits) -> None:
        self.profile = profile
        x = TensorSpec("x", "int32", ("rows", 3))
        Session.__init__(self, [x], [TensorSpec("y", "int32", ("rows",))], SessionOptions(bounds={"x": limits}))

    def _accepted(self, tensors: Tensors) -> Tensors:
        return {name: array.astype(np.int32) for name, array in tensors.items()}

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        return {"y": tensors["x"].sum(axis=1, dtype=np.int32)}


def test_numbers_that_its_engines_narrow_are_taken() -> None:
    bounds = {profile: {"x": limits} for profile, limits in SIZES.items()}
    openers: dict[str, Callable[[], Session]] = {
        "many": lambda: Narrowing("many", SIZES["many"]),
        "one": lambda: Narrowing("one", SIZES["one"]),
        "some": lambda: Narrowing("some", SIZES["some"]),
    }
    with SelectingSession(bounds, openers) as session:
        for rows in (1, 3, 40):
            made = session.run({"x": np.full((rows, 3), 2, np.int64)})["y"]
            assert made.tolist() == [6] * rows
