"""What a bundle says of itself proves nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session
from aula.core.errors import BundleError, CalibrationError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import sealed
from aula.engine.precision import Variant
from aula.engine.recipe import Model, Task
from aula.engine.store import Store
from aula.engine.trial import Prover, Trial
from aula.engine.verify import verify
from tests.engine.toy import toy_model, toy_recipe

ONE = BuildOptions(threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(toy_model(tmp_path), Store(tmp_path / "store"), ONE)


def _forged(bundle: Bundle, **engine: object) -> Bundle:
    part = bundle.part()
    cpu = part.engines["cpu"]
    changed = replace(part, engines={"cpu": replace(cpu, **engine)})  # type: ignore[arg-type]
    return Bundle(sealed(replace(bundle.manifest, parts={"model": changed})), bundle.files)


def test_a_whole_bundle_passes_and_other_weights_do_not(bundle: Bundle, tmp_path: Path) -> None:
    assert [verdict.passed for verdict in verify(bundle, toy_model(tmp_path))] == [True]
    wrong = verify(bundle, toy_model(tmp_path, wrong=1.0))[0]
    assert not wrong.passed
    assert "over the tolerance" in wrong.reason
    toy_recipe(tmp_path).sources[0].write_bytes(b"others")
    with pytest.raises(BundleError, match=r"other files.*weights\.bin"):
        verify(bundle, toy_model(tmp_path))


def test_a_lower_precision_without_a_gate_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    candidate = replace(bundle.engine().chosen, precision="int8")
    forged = _forged(bundle, precision="int8", candidates=(candidate,), gate=None)
    with pytest.raises(CalibrationError, match="no gate"):
        verify(forged, toy_model(tmp_path))


def test_other_parts_and_other_profiles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    pair = Model("toy", {"model": toy_recipe(tmp_path), "second": toy_recipe(tmp_path)})
    with pytest.raises(BundleError, match="second"):
        verify(bundle, pair)


@pytest.mark.parametrize("reference", [{}, {"z": np.zeros((2, 2))}, {"y": np.zeros((1, 2))}])
def test_a_reference_that_proves_nothing_is_refused(reference: dict[str, object], tmp_path: Path) -> None:
    model = toy_model(tmp_path, reference=lambda _inputs: reference)
    with pytest.raises(VerificationError, match="reference"):
        build(model, Store(tmp_path / "store"), ONE)


def test_an_output_that_is_owned_up_to_may_be_left_out(tmp_path: Path) -> None:
    model = toy_model(tmp_path, reference=lambda _inputs: {}, unproven=("y",))
    assert build(model, Store(tmp_path / "store"), ONE).engine().chosen.relative_error == 0


def _judged(tmp_path: Path, metric: object, chance: float | None = None) -> Model:
    def evaluate(_session: Session) -> float:
        if isinstance(metric, Exception):
            raise metric
        return metric  # type: ignore[return-value]

    return toy_model(tmp_path, task=lambda: Task("luck", 200, "d", evaluate, chance=chance))


@pytest.mark.parametrize(
    ("metric", "chance", "fault"),
    [(float("nan"), None, "nan"), (ValueError("odd"), None, "ValueError: odd"), (0.52, 0.5, "guessing has 0.5")],
)
def test_a_metric_that_judges_nothing_is_refused(
    metric: object, chance: float | None, fault: str, tmp_path: Path
) -> None:
    options = BuildOptions(("fp32", "bf16"), threads=1)
    with pytest.raises(CalibrationError, match=fault):
        build(_judged(tmp_path, metric, chance), Store(tmp_path / "store"), options)


def test_everything_that_changes_the_verdict_is_in_the_key(tmp_path: Path) -> None:
    keys = {
        build(toy_model(tmp_path, **changes), Store(tmp_path / "store"), ONE).manifest.key
        for changes in (
            {},
            {"tolerance": 1e-3},
            {"transformer": False},
            {"dynamic_quantisation": 64},
            {"seeded": True},
            {"shared": True},
        )
    }
    assert len(keys) == 6


def test_a_backend_that_computes_something_else_than_another_is_out(tmp_path: Path) -> None:
    def trials(*errors: float | None) -> list[Trial]:
        variant = Variant("int8", tmp_path / "int8.onnx")
        return [Trial(f"backend {place}", "1", variant, error=error) for place, error in enumerate(errors)]

    def rejected(*errors: float | None, **changes: Any) -> list[bool]:
        prover = Prover(toy_recipe(tmp_path, **changes), 1, None, 0.01, {})
        return [trial.rejected is not None for trial in prover.agreed(trials(*errors))]

    assert rejected(0.011, 0.186) == [False, True]
    assert rejected(0.3, 0.31) == [False, False]
    assert rejected(0.001, 0.04) == [False, False]
    assert rejected(None, 0.5) == [False, False]
    assert rejected(0.011, 0.186, seeded=True) == [False, False]
