"""A bundle proven again, here and now."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aula.core.clock import Clock, SystemClock
from aula.core.errors import CalibrationError
from aula.engine.bundle import Bundle
from aula.engine.manifest import TargetEngine
from aula.engine.recipe import Model, Recipe, Task
from aula.engine.trial import drop_fault, profile_cases, race_profile, real_cases, relative_error


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one part did here. `milliseconds` by profile; `layers` as the backend tells; `passed` is the gate's word."""

    part: str
    relative_error: float
    metric: float | None
    drop: float | None
    milliseconds: Mapping[str, float]
    layers: Mapping[str, int]
    passed: bool
    reason: str = ""


def verify(bundle: Bundle, model: Model, *, target: str = "cpu", clock: Clock | None = None) -> list[Verdict]:
    """Run the gate of every part and profile again on this machine.

    Raises VerificationError for a file that changed since it was proven, BundleError for another target or backend
    version, CalibrationError where the recipe's labelled examples are not those that the gate was measured on, since
    two metrics would be compared.
    """
    clock = clock or SystemClock()
    return [_verify_part(bundle, name, model.recipe(name), target, clock) for name in bundle.manifest.parts]


def _verify_part(bundle: Bundle, name: str, recipe: Recipe, target: str, clock: Clock) -> Verdict:
    engine = bundle.engine(name, target)
    gate = engine.gate
    task = _same_task(bundle, engine, recipe)
    cases = profile_cases(recipe)
    exact = engine.precision == "fp32"
    calibrated = not exact and recipe.calibration is not None
    proofs = real_cases(recipe, recipe.calibration()) if calibrated and recipe.calibration else None
    with bundle.open(name, target=target) as session:
        error = relative_error(session, proofs or [case for several in cases.values() for case in several])
        metric = task.evaluate(session) if task else None
        layers = session.precisions()
    times: dict[str, float] = {}
    worst = 0.0
    for profile in recipe.profiles:
        with bundle.open(name, profile.name, target=target) as session:
            found = relative_error(session, cases[profile.name])
            worst = found if not found <= worst else worst
            times |= {profile.name: race_profile({name: session}, recipe, profile, clock)[name]}
    drop = gate.reference - metric if gate is not None and metric is not None else None
    reason = ""
    if not (np.isfinite(error) and np.isfinite(worst)):
        reason = "the outputs are not finite"
    elif exact and not max(error, worst) <= recipe.tolerance:
        reason = f"relative error {max(error, worst):.1e} is over the tolerance {recipe.tolerance:.0e}"
    elif gate is not None and drop is not None:
        reason = drop_fault(drop, gate.most_drop)
    return Verdict(name, error, metric, drop, times, layers, not reason, reason)


def _same_task(bundle: Bundle, engine: TargetEngine, recipe: Recipe) -> Task | None:
    if engine.gate is None:
        return None
    task = recipe.task() if recipe.task is not None else None
    if task is None or task.digest != engine.gate.digest:
        raise CalibrationError(
            f"the gate of {bundle.manifest.key} was measured on {engine.gate.examples} other labelled examples",
            next_step=f"give the same ones: aula verify {bundle.manifest.key} --labelled FILE",
        )
    return task
