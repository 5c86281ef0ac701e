"""A precision on a GPU: what was found of its plans, and the proof that builder and `aula verify` share."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aula.backends.session import Session
from aula.core.errors import BackendError
from aula.engine import gpu_proof as proof
from aula.engine.gpu_proof import HandsOver, OnDevice
from aula.engine.manifest import Candidate, GraphSize, Inspection
from aula.engine.passes import simplify
from aula.engine.recipe import Profile, Recipe


@dataclass(slots=True)
class GpuTrial:
    """One precision: its plans by profile, and what was found of them. `version` is the backend's, where it is not the
    workshop's TensorRT; `worst` names the output, and its profile, whose error is the largest."""

    precision: str
    backend: str = "tensorrt"
    version: str = ""
    plans: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Path] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    inspection: dict[str, Inspection] = field(default_factory=dict)
    shipped: GraphSize | None = None
    restored: tuple[str, ...] = ()
    error: float | None = None
    worst: str = ""
    metric: float | None = None
    rejected: str | None = None

    def candidate(self, version: str) -> Candidate:
        finite = self.error is not None and np.isfinite(self.error)
        return Candidate(
            backend=self.backend,
            version=self.version or version,
            precision=self.precision,
            milliseconds=dict(self.milliseconds),
            relative_error=self.error if finite else None,
            metric=self.metric,
            layers=_counted(self),
            rejected=self.rejected,
        )


class GpuProver:
    """Holds what every precision of a part is held to. `judged`: a task judges it as well."""

    def __init__(self, recipe: Recipe, *, judged: bool) -> None:
        self.recipe = recipe
        self.written = simplify(recipe.write_graph())
        self._judged = judged
        self._cases: dict[str, list[proof.Case]] = {}

    def recipe_of(self, profile: Profile) -> Recipe:
        """The one whose graph the profile's plan is made of."""
        return self.recipe.by_profile.get(profile.name, self.recipe)

    def prepare(self, report: Callable[[float], None]) -> None:
        """Compute what is right at every profile, once."""
        for place, profile in enumerate(self.recipe.profiles):
            report(place / len(self.recipe.profiles))
            self._cases[profile.name] = proof.cases(self.recipe_of(profile), profile, self.written)

    def prove(self, trial: GpuTrial, profile: Profile, session: Session) -> None:
        """Numbers, time and layers of one profile, in the session that serves it."""
        errors = proof.engine_errors(session, self._cases[profile.name], self.recipe_of(profile))
        output = max(errors, key=lambda name: errors[name], default="")
        error = errors.get(output, 0.0)
        if trial.error is None or error > trial.error:
            trial.error, trial.worst = error, f"{output} at {profile.name}"
        trial.milliseconds[profile.name] = _milliseconds(session, self.recipe_of(profile), profile)
        if isinstance(session, OnDevice):
            trial.inspection[profile.name] = proof.inspection(
                session.layers(), session.precisions(), len(self.written.graph.node)
            )

    def fault(self, trial: GpuTrial) -> str | None:
        """Why the numbers alone speak against it, or None."""
        assert trial.error is not None
        if not np.isfinite(trial.error):
            return "the outputs are not finite"
        most = {"fp32": self.recipe.tolerance, "int8": float("inf")}.get(trial.precision, self.recipe.half_tolerance)
        if trial.error > most:
            where = f" ({trial.worst})" if trial.worst else ""
            return f"relative error {trial.error:.1e}{where} is over the tolerance {most:.0e}"
        if trial.precision == "int8" and not self._judged and not self.recipe.seeded:
            return "no metric was measured"
        told = _counted(trial)
        if told and not told.get(trial.precision, 0):
            return f"no layer truly runs in {trial.precision}"
        return None


def _milliseconds(session: Session, recipe: Recipe, profile: Profile) -> float:
    """Median time on the device at the profile's usual sizes, copies of inputs and outputs included but for what is
    handed over on the device."""
    inputs = proof.usual_inputs(session, recipe, profile)
    if not isinstance(session, OnDevice):
        raise BackendError(
            f"{type(session).__name__} tells no device time", next_step="prove it on the GPU that it is for"
        )
    session.reset()
    session.run(inputs)
    if isinstance(session, HandsOver):
        for name in recipe.handed_over:
            session.attach(name, session.device_tensor(name))
            inputs.pop(name, None)
    for _ in range(proof.WARM_RUNS - 1):
        session.run(inputs)
    return round(statistics.median(session.device_milliseconds(proof.TIMED_RUNS)), 4)


def _counted(trial: GpuTrial) -> dict[str, int]:
    counts: dict[str, int] = {}
    for told in trial.inspection.values():
        for name, count in told.precisions.items():
            counts[name] = counts.get(name, 0) + count
    return counts
