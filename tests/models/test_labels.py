import numpy as np
import pytest

from aula.core.errors import CalibrationError
from aula.models.labels import check_count, check_range, check_variety, majority_share, task_digest


def test_too_few_are_refused() -> None:
    check_count(100, "a.npz")
    with pytest.raises(CalibrationError, match=r"99 labelled examples in a\.npz are too few"):
        check_count(99, "a.npz")


@pytest.mark.parametrize("strange", [-1, 3, 900])
def test_labels_of_no_class_are_refused(strange: int) -> None:
    check_range(np.array([0, 2]), 3, "a.npz")
    with pytest.raises(CalibrationError, match=f"the label {strange}, but the model's classes are 0 to 2"):
        check_range(np.array([0, strange]), 3, "a.npz")


def test_examples_must_differ_somewhere() -> None:
    mask = np.ones((1, 3), np.int64)
    check_variety([{"x": np.array([place]), "mask": mask} for place in range(3)], "a.npz")
    check_variety([{"x": np.zeros(4)}, {"x": np.zeros(5)}], "a.npz")
    check_variety([{"x": np.zeros(4)}], "a.npz")
    with pytest.raises(CalibrationError, match="all zero"):
        check_variety([{"x": np.zeros(4)}] * 3, "a.npz")
    with pytest.raises(CalibrationError, match="all alike"):
        check_variety([{"x": np.zeros(4), "mask": mask}] * 3, "a.npz")


def test_guessing_has_the_commonest_labels_share() -> None:
    assert majority_share(["a", "b", "a", "a"]) == 0.75


def test_a_digest_is_of_the_metrics_name_too() -> None:
    assert task_digest("one", "d") != task_digest("two", "d")
    assert task_digest("one", "d", "e") != task_digest("one", "e", "d")
