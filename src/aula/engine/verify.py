"""A bundle proven again, here and now, by the builder's own proof."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aula.core.clock import Clock, SystemClock
from aula.core.errors import BundleError, CalibrationError
from aula.engine.bundle import Bundle
from aula.engine.gpu_trial import GpuProver, GpuTrial
from aula.engine.identity import digest_sources
from aula.engine.manifest import Part, TargetEngine
from aula.engine.onnx_files import save_model
from aula.engine.passes import simplify
from aula.engine.precision import Variant
from aula.engine.recipe import Model, Recipe, Task
from aula.engine.targets import TARGETS
from aula.engine.trial import Prover, drop_fault, measure, real_cases


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one part did here, in the precision in which it is opened here. `drop` is against fp32 as measured now;
    `milliseconds` by profile; `layers` as the backend tells; `passed` is the gate's word."""

    part: str
    precision: str
    relative_error: float | None
    metric: float | None
    drop: float | None
    milliseconds: Mapping[str, float]
    layers: Mapping[str, int]
    passed: bool
    reason: str = ""


def verify(bundle: Bundle, model: Model, *, target: str = "cpu", clock: Clock | None = None) -> list[Verdict]:
    """Prove every part at every profile on this machine, as the builder did: numbers, precision, and for a lower
    precision its task's metric against fp32, which is measured anew. The manifest's own figures prove nothing here.

    Raises VerificationError for a file that changed since it was proven, BundleError for another target, backend
    version, parts or source files than the model's, CalibrationError where the labelled examples are not those of the
    gate, or a lower precision has no gate at all.
    """
    clock = clock or SystemClock()
    if set(bundle.manifest.parts) != set(model.parts):
        raise BundleError(
            f"the bundle {bundle.manifest.key} holds {', '.join(bundle.manifest.parts)}, "
            f"the model {model.name} has {', '.join(model.parts)}",
            next_step="name the model that it was made from: aula verify BUNDLE --model MODEL",
        )
    gpu = TARGETS[target].is_gpu
    prove = _verify_gpu_part if gpu else _verify_part
    return [prove(bundle, name, model.recipe(name, gpu=gpu), target, clock) for name in bundle.manifest.parts]


def _verify_part(bundle: Bundle, name: str, recipe: Recipe, target: str, clock: Clock) -> Verdict:
    part, engine = bundle.part(name), bundle.engine(name, target)
    _same_sources(bundle, part, recipe)
    task = _same_task(bundle, engine, recipe)
    bundle.preflight(engine)
    variant = Variant(bundle.precision_here(engine), bundle.model_file(name, target))
    bounds = {profile.name: engine.bounds(profile.name) for profile in recipe.profiles}
    prover = Prover(recipe, engine.threads, task, engine.gate.most_drop if engine.gate else 0.0, bounds)
    prover.prepare(lambda _share: None)
    if engine.precision != "fp32" and recipe.calibration is not None:
        prover.real_cases = real_cases(recipe, recipe.calibration())
    if task is not None:
        prover.reference = _reference(prover, recipe)
    trials, times = prover.race([prover.prove(engine.backend, variant)], clock)
    trial = trials[0]
    drop = prover.reference - trial.metric if task is not None and trial.metric is not None else None
    error = trial.error if trial.error is not None and np.isfinite(trial.error) else None
    return Verdict(
        part=name,
        precision=variant.precision,
        relative_error=error,
        metric=trial.metric,
        drop=drop,
        milliseconds=times[trial.name],
        layers=dict(trial.layers or {}),
        passed=trial.rejected is None,
        reason=trial.rejected or "",
    )


def _verify_gpu_part(bundle: Bundle, name: str, recipe: Recipe, target: str, _clock: Clock) -> Verdict:
    """Every profile's plan in the session that serves it; times are the device's own."""
    part, engine = bundle.part(name), bundle.engine(name, target)
    _same_sources(bundle, part, recipe)
    task = _same_task(bundle, engine, recipe)
    prover = GpuProver(recipe, judged=task is not None)
    prover.prepare(lambda _share: None)
    trial = GpuTrial(engine.precision, engine.backend)
    for profile in recipe.profiles:
        with bundle.open(name, profile.name, target=target) as session:
            prover.prove(trial, profile, session)
    trial.rejected = prover.fault(trial)
    reference = None
    if task is not None and engine.gate is not None and trial.rejected is None:
        reference = _reference(Prover(recipe, engine.threads, task, engine.gate.most_drop, {}), recipe)
        with bundle.open(name, target=target) as session:
            trial.metric = measure(task, session)
        trial.rejected = drop_fault(reference - trial.metric, engine.gate.most_drop) or None
    told = trial.candidate(engine.backend_version)
    return Verdict(
        part=name,
        precision=engine.precision,
        relative_error=told.relative_error,
        metric=trial.metric,
        drop=None if reference is None or trial.metric is None else reference - trial.metric,
        milliseconds=trial.milliseconds,
        layers=told.layers,
        passed=trial.rejected is None,
        reason=trial.rejected or "",
    )


def _same_sources(bundle: Bundle, part: Part, recipe: Recipe) -> None:
    given = digest_sources(recipe)
    if given != dict(part.sources):
        different = sorted(
            name for name in given.keys() | part.sources.keys() if given.get(name) != part.sources.get(name)
        )
        raise BundleError(
            f"the bundle {bundle.manifest.key} was made from other files than {recipe.name} has now: "
            f"{', '.join(different)}",
            next_step="name the model that it was made from (--model), or build it anew: aula build MODEL",
        )


def _same_task(bundle: Bundle, engine: TargetEngine, recipe: Recipe) -> Task | None:
    if engine.gate is None:
        # On a GPU fp16 may stand on its numbers alone, which are held to the reference at every profile.
        by_numbers = engine.precision == "fp32" or (engine.device is not None and engine.precision != "int8")
        if not by_numbers and not bundle.manifest.seeded:
            raise CalibrationError(
                f"{bundle.manifest.key} is {engine.precision}, and its manifest knows of no gate that it passed",
                next_step="build it anew: aula build MODEL --rebuild",
            )
        return None
    task = recipe.task() if recipe.task is not None else None
    if task is None or (task.metric, task.digest) != (engine.gate.metric, engine.gate.digest):
        raise CalibrationError(
            f"the gate of {bundle.manifest.key} was measured on {engine.gate.examples} other labelled examples",
            next_step=f"give the same ones: aula verify {bundle.manifest.key} --labelled FILE",
        )
    return task


def _reference(prover: Prover, recipe: Recipe) -> float:
    """The task's metric of the plain graph, written anew."""
    with tempfile.TemporaryDirectory(prefix="aula-verify-") as folder:
        path = Path(folder) / "fp32.onnx"
        save_model(simplify(recipe.write_graph()), path)
        return prover.metric_of(path)
