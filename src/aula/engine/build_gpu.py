"""The engine of one part for a GPU target: its precisions built and proven, the fastest that passed kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aula.core.errors import BackendError, VerificationError
from aula.engine.choice import choose, gate_of, left_out_if_slower, profile_sizes, quantisation_of, size_of
from aula.engine.choice import input_axes as axes_of
from aula.engine.gpu_part import GpuPart, Quantised, store_plans
from aula.engine.gpu_trial import GpuTrial
from aula.engine.identity import processor
from aula.engine.manifest import Device, TargetEngine, check_profiles
from aula.engine.onnx_files import load_model
from aula.engine.plans import PlanOptions
from aula.engine.precision import Progress, Variant
from aula.engine.recipe import Calibration, Recipe, Task
from aula.engine.store import Store
from aula.engine.workshop import Workshop

MakeInt8 = Callable[["GpuPart", Path], Variant]
"""Quantises the part's graph into a folder, once for all backends."""


def build_part_for_gpu(
    recipe: Recipe,
    workshop: Workshop,
    store: Store,
    precisions: tuple[str, ...],
    options: PlanOptions,
    *,
    threads: int,
    task: Task | None,
    most_drop: float,
    reference: float | None,
    calibration: Calibration | None,
    make_int8: MakeInt8,
    report: Progress,
) -> TargetEngine:
    """`precisions` besides fp32, which is built only where none of them passes. `reference` is fp32's metric, measured
    on a CPU.

    Raises VerificationError where nothing passes, BackendError where TensorRT takes nothing, StorageError.
    """
    timings = workshop.timings(store.folder / "timings")
    with store.draft() as draft:
        report("writing the graph", 0.0)
        part = GpuPart(recipe, workshop, draft, options, timings, task=task, most_drop=most_drop, report=report)
        axes, profiles = axes_of(part.written), profile_sizes(recipe)
        check_profiles(axes, profiles, recipe.name)
        part.prepare()
        # 1. Every precision that was asked for; int8 from the one quantised graph.
        trials, variants = [], []
        for precision in precisions:
            quantised = None
            if precision == "int8":
                variants.append(make_int8(part, draft))
                quantised = Quantised(load_model(variants[-1].path), part.written)
            trials.append(part.try_precision(precision, reference, quantised))
            if quantised is not None and variants[-1].failed and trials[-1].rejected is None:
                trials[-1].rejected = variants[-1].failed
        if all(trial.rejected for trial in trials):
            trials.append(part.try_precision("fp32", None))
        _require_one(recipe, trials)
        # 2. The fastest over all profiles stays.
        candidates = [trial.candidate(workshop.version) for trial in trials]
        best = choose(recipe, candidates)
        chosen = next(trial for trial in trials if trial.precision == best.precision)
        stored = store_plans(chosen, store)
        written = size_of(part.written, recipe)
        restored = {trial.precision: trial.restored for trial in trials}
        return TargetEngine(
            backend=best.backend,
            backend_version=best.version,
            precision=best.precision,
            threads=threads,
            machine=processor(),
            files=stored.files,
            graph=chosen.shipped or written,
            gate=gate_of(task, 0.0 if reference is None else reference, most_drop),
            quantisation=quantisation_of(
                [_with_restored(variant, restored.get("int8", ())) for variant in variants], calibration
            ),
            candidates=tuple(left_out_if_slower(candidates, best)),
            inputs=axes,
            profiles=profiles,
            states=recipe.states,
            dynamic_quantisation=None,
            written=written,
            device=Device(
                name=workshop.card.name,
                capability=workshop.card.capability,
                driver=workshop.card.driver,
                compatibility=options.compatibility if best.backend == "tensorrt" else "same-capability",
                version_compatible=options.version_compatible,
            ),
            plans=stored.plans,
            weights=stored.weights,
            inspection=chosen.inspection,
        )


def _with_restored(variant: Variant, names: tuple[str, ...]) -> Variant:
    return replace(variant, restored=(*variant.restored, *names))


def _require_one(recipe: Recipe, trials: list[GpuTrial]) -> None:
    if any(trial.rejected is None for trial in trials):
        return
    reasons = "; ".join(f"{trial.precision}: {trial.rejected}" for trial in trials)
    failure = VerificationError if any(trial.error is not None for trial in trials) else BackendError
    raise failure(
        f"no TensorRT engine of {recipe.name} passes ({reasons})",
        next_step="look at the reasons; engines for the CPU are another way: --target cpu",
    )
