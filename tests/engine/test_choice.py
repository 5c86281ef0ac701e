"""Which of the engines that passed is shipped, and what the manifest says of the others."""

from pathlib import Path

import pytest

from aula.engine.choice import choose, gate_of, left_out_if_slower, quantisation_of
from aula.engine.manifest import Candidate
from aula.engine.precision import Variant
from aula.engine.recipe import Calibration, Profile, Recipe, Size, Task
from tests.engine.toy import toy_recipe


def _candidate(precision: str, *milliseconds: float, rejected: str | None = None) -> Candidate:
    times = dict(zip(("one", "many"), milliseconds, strict=False))
    return Candidate("tensorrt", "10.12.0", precision, times, 1e-3, rejected=rejected)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    profiles = (Profile("one", {"rows": Size(1, 1, 1)}), Profile("many", {"rows": Size(1, 8, 8)}))
    return toy_recipe(tmp_path, profiles=profiles)


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"fp16": (1.0, 1.0), "int8": (0.5, 0.5)}, "int8"),
        ({"fp16": (1.0, 1.0), "int8": (0.98, 0.98)}, "fp16"),  # within the noise
        ({"fp16": (1.0, 1.0), "bf16": (1.0, 1.0)}, "fp16"),  # the more exact of equals
        ({"fp16": (1.0, 10.0), "int8": (1.4, 5.0)}, "int8"),  # each profile counts by what it loses
        ({"fp16": (1.0, 10.0), "int8": (2.5, 5.0)}, "fp16"),
        ({"fp16": (1.0, 1.0), "bf16": (0.9, 0.9), "int8": (0.88, 0.88)}, "bf16"),
        ({"int8": (1.0, 1.0)}, "int8"),
    ],
)
def test_the_fastest_over_all_profiles_stays(recipe: Recipe, times: dict[str, tuple[float, ...]], kept: str) -> None:
    candidates = [_candidate(precision, *each) for precision, each in times.items()]
    assert choose(recipe, candidates).precision == kept
    assert choose(recipe, candidates[::-1]).precision == kept


def test_what_was_rejected_does_not_race(recipe: Recipe) -> None:
    slow, fast = _candidate("fp16", 1.0, 1.0), _candidate("int8", rejected="accuracy falls by 3 points")
    assert choose(recipe, [slow, fast]) is slow
    assert left_out_if_slower([slow, fast], slow) == [slow, fast]


def test_a_lower_precision_that_lost_says_so(recipe: Recipe) -> None:
    candidates = [_candidate("fp16", 1.0, 1.0), _candidate("bf16", 0.99, 0.99), _candidate("int8", 0.98, 0.98)]
    best = choose(recipe, candidates)
    told = left_out_if_slower(candidates, best)
    assert [one.rejected for one in told] == [None, *["not clearly faster than fp16 on tensorrt"] * 2]


def test_a_higher_precision_that_lost_stays_as_it_was(recipe: Recipe) -> None:
    candidates = [_candidate("fp16", 1.0, 1.0), _candidate("int8", 0.5, 0.5)]
    assert [one.rejected for one in left_out_if_slower(candidates, choose(recipe, candidates))] == [None, None]


def test_the_gate_is_the_task_s() -> None:
    gate = gate_of(Task("accuracy", 100, "0" * 64, lambda _session: 1.0), 0.9, 0.01)
    assert gate is not None
    assert (gate.metric, gate.reference, gate.examples, gate.most_drop) == ("accuracy", 0.9, 100, 0.01)
    assert gate_of(None, 0.9, 0.01) is None


def test_quantisation_says_where_its_ranges_come_from(tmp_path: Path) -> None:
    variant = Variant("int8", tmp_path / "x.onnx", "minmax", ("a",), {"minmax": 0.9})
    measured = quantisation_of([variant], Calibration([{}] * 32, "clips.tsv", "d"))
    assert measured is not None
    assert (measured.method, measured.examples, measured.source, measured.restored) == (
        "minmax",
        32,
        "clips.tsv",
        ("a",),
    )
    alone = quantisation_of([variant], None)
    assert alone is not None
    assert (alone.examples, alone.source) == (0, "the weights alone")
    assert quantisation_of([Variant("bf16", tmp_path / "x.onnx")], None) is None
