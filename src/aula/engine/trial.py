"""Trials: a graph on a backend, compared with the reference, judged by its task, and raced against the others."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aula.backends.session import Session, SessionOptions, available_backends, open_session, runtime_version
from aula.backends.sizes import Bounds
from aula.core.clock import Clock
from aula.core.errors import AulaError, BackendError, CalibrationError, VerificationError
from aula.engine.bundle import session_options
from aula.engine.manifest import Candidate
from aula.engine.precision import Variant
from aula.engine.recipe import Arrays, Calibration, Profile, Recipe, Task

REAL_CASES = 16
"""How many calibration examples a lower precision's numeric distance is measured on."""
LEAST_SHARE = 0.5
"""Where a backend tells, at least this share of the layers must truly run in the precision that was asked for."""
FAR, FURTHER = 0.05, 3.0
"""Two backends that compute the same lower-precision graph: one whose error is over FAR, and FURTHER times that of the
other, computes something else."""
WARM_RUNS, FEWEST_RUNS, MOST_RUNS = 3, 5, 30

Case = tuple[Arrays, Arrays]
"""Inputs, and the reference's outputs for them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One precision on one backend, and why it is out of the race, if it is."""

    backend: str
    version: str
    variant: Variant
    error: float | None = None
    metric: float | None = None
    layers: Mapping[str, int] | None = None
    rejected: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.variant.precision}"

    def candidate(self, milliseconds: Mapping[str, float]) -> Candidate:
        return Candidate(
            backend=self.backend,
            version=self.version,
            precision=self.variant.precision,
            milliseconds=dict(milliseconds),
            relative_error=self.error if self.error is not None and np.isfinite(self.error) else None,
            metric=self.metric,
            layers=dict(self.layers or {}),
            rejected=self.rejected,
        )


class Prover:
    """Holds what every trial of a part is judged by. `bounds` gives the limits of each profile."""

    def __init__(
        self, recipe: Recipe, threads: int, task: Task | None, most_drop: float, bounds: Mapping[str, Bounds]
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.reference = 1.0
        self.real_cases: list[Case] = []
        self._threads = threads
        self._most_drop = most_drop
        self._bounds = bounds
        self._cases: dict[str, list[Case]] = {}

    def prepare(self, report: Callable[[float], None]) -> None:
        """Compute what is right at the corners of every profile, once."""
        self._cases = profile_cases(self.recipe, report)

    def prove(self, backend: str, variant: Variant) -> Trial:
        """All sizes in one session: the numbers, and the task's metric."""
        trial = Trial(backend, runtime_version(backend), variant)
        try:
            with self.open(trial) as session:
                error = relative_error(session, self._cases_for(variant), self.recipe.unproven)
                metric = measure(self.task, session) if self.task is not None else None
                layers = session.precisions()
        except BackendError as refusal:
            return replace(trial, rejected=refusal.what)
        trial = replace(trial, error=error, metric=metric, layers=layers)
        return replace(trial, rejected=variant.failed or self._fault(trial) or None)

    def agreed(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials of one graph on several backends, or with other arithmetic; rejected are those that are far from the
        reference where another is near. Made-up weights magnify every rounding: nothing follows from theirs."""
        errors = [trial.error for trial in trials if trial.error is not None and np.isfinite(trial.error)]
        if self.recipe.seeded or not errors:
            return list(trials)
        most = max(FAR, FURTHER * min(errors))
        return [
            replace(trial, rejected=f"relative error {trial.error:.1e}, where the graph can have {min(errors):.1e}")
            if trial.rejected is None and trial.error is not None and trial.error > most
            else trial
            for trial in trials
        ]

    def metric_of(self, path: Path) -> float:
        """The task's metric of a graph on the first backend that takes it."""
        assert self.task is not None
        refusals = []
        for backend in available_backends():
            try:
                with open_session(backend, path, self._told("int8")) as session:
                    return measure(self.task, session)
            except BackendError as refusal:
                refusals.append(refusal.what)
        raise BackendError("; ".join(refusals), next_step="build without int8")

    def race(self, trials: Sequence[Trial], clock: Clock) -> tuple[list[Trial], dict[str, dict[str, float]]]:
        """Every profile as it will be served, compiled for its sizes alone unless the recipe is `shared`: proven once
        more, then timed in turns.

        Returns the trials, with those rejected that failed at a profile, and milliseconds by trial and profile.
        """
        standing = {trial.name: trial for trial in trials}
        times: dict[str, dict[str, float]] = {trial.name: {} for trial in trials}
        for profile in self.recipe.profiles:
            with ExitStack() as stack:
                racing: dict[str, Session] = {}
                for name, trial in standing.items():
                    if trial.rejected is None:
                        try:
                            session = stack.enter_context(self.open(trial, profile.name))
                            error = relative_error(session, self._cases[profile.name], self.recipe.unproven)
                        except BackendError as refusal:
                            standing[name] = replace(trial, rejected=f"profile {profile.name}: {refusal.what}")
                            continue
                        standing[name] = self._checked(trial, profile, error)
                        if standing[name].rejected is None:
                            racing[name] = session
                for name, median in race_profile(racing, self.recipe, profile, clock).items():
                    times[name][profile.name] = median
        return list(standing.values()), times

    def open(self, trial: Trial, profile: str | None = None) -> Session:
        bounds = {} if profile is None or self.recipe.shared else self._bounds[profile]
        return open_session(trial.backend, trial.variant.path, self._told(trial.variant.precision, bounds))

    def _told(self, precision: str, bounds: Bounds | None = None) -> SessionOptions:
        return session_options(
            precision,
            self._threads,
            states=self.recipe.states,
            bounds=bounds,
            dynamic_quantisation=self.recipe.dynamic_quantisation,
        )

    def _checked(self, trial: Trial, profile: Profile, error: float) -> Trial:
        """Made-up inputs say little of a lower precision, except that its outputs are numbers."""
        if not np.isfinite(error):
            return replace(trial, rejected=f"the outputs are not finite at profile {profile.name}")
        if trial.variant.precision == "fp32" and error > self.recipe.tolerance:
            return replace(trial, rejected=f"{_over(error, self.recipe)} at profile {profile.name}")
        return trial

    def _cases_for(self, variant: Variant) -> list[Case]:
        """Ranges were found on real inputs, so that made-up ones would say nothing of int8."""
        if variant.precision != "fp32" and self.real_cases:
            return self.real_cases
        return [case for cases in self._cases.values() for case in cases]

    def _fault(self, trial: Trial) -> str:
        error, precision = trial.error, trial.variant.precision
        if error is None or not np.isfinite(error):
            return "the outputs are not finite"
        if precision == "fp32":
            return "" if error <= self.recipe.tolerance else _over(error, self.recipe)
        fault = share_fault(trial.layers or {}, precision)
        if fault:
            return fault
        if trial.metric is None:
            return "" if self.recipe.seeded else "no metric was measured"
        return drop_fault(self.reference - trial.metric, self._most_drop)


def share_fault(layers: Mapping[str, int], precision: str) -> str:
    """Why too few layers truly run in the precision, or an empty string. Of int8+bf16, half must run in int8, and of
    the others half in bf16."""
    rest, others = sum(layers.values()), ""
    for one in precision.split("+"):
        told = layers.get(one, 0)
        if told < LEAST_SHARE * rest:
            return f"only {told} of {rest} layers{others} truly run in {one}"
        rest, others = rest - told, f" that are not {one}"
    return ""


def drop_fault(drop: float, most_drop: float) -> str:
    """Why a metric's drop is too much, or an empty string. A drop that is no number is too much."""
    return "" if drop <= most_drop else f"the metric drops by {100 * drop:.2f} points, more than {100 * most_drop:g}"


def profile_cases(recipe: Recipe, report: Callable[[float], None] = lambda _share: None) -> dict[str, list[Case]]:
    """Three inputs of every profile, at its least, usual and greatest sizes, and the reference's outputs. Where sizes
    coincide the inputs differ; profiles share the cases of sizes that they share."""
    generator = np.random.default_rng(20)
    cases: dict[str, list[Case]] = {profile.name: [] for profile in recipe.profiles}
    known: dict[tuple[int, tuple[tuple[str, int], ...]], Case] = {}
    turns: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()
    corners = [(profile.name, sizes) for profile in recipe.profiles for sizes in profile.corners]
    for number, (name, sizes) in enumerate(corners):
        report(number / len(corners))
        corner = tuple(sorted(sizes.items()))
        turn = (turns[name, corner], corner)
        turns[name, corner] += 1
        if turn not in known:
            inputs = recipe.example(sizes, generator)
            known[turn] = (inputs, recipe.reference(inputs))
        cases[name].append(known[turn])
    return cases


def real_cases(recipe: Recipe, calibration: Calibration) -> list[Case]:
    step = max(1, len(calibration.inputs) // REAL_CASES)
    return [(inputs, recipe.reference(inputs)) for inputs in calibration.inputs[::step][:REAL_CASES]]


def measure(task: Task, session: Session) -> float:
    """The task's metric. Raises CalibrationError where it is no number, or the task itself fails."""
    try:
        metric = float(task.evaluate(session))
    except AulaError:
        raise
    except Exception as error:  # a recipe's own code, on a user's own data
        raise CalibrationError(
            f"{task.metric} cannot be measured ({type(error).__name__}: {error})",
            next_step="look at the labelled examples, and at the recipe's task",
        ) from error
    if not np.isfinite(metric):
        raise CalibrationError(
            f"{task.metric} came out as {metric}, which judges nothing", next_step="look at the labelled examples"
        )
    return metric


def relative_error(session: Session, cases: Sequence[Case], unproven: Sequence[str] = ()) -> float:
    """Largest difference from the reference, relative to the reference's largest value.

    Raises VerificationError where the reference leaves out an output that is not among `unproven`, names one that
    there is not, or gives one another shape: nothing would follow from the rest.
    """
    worst = 0.0
    for inputs, reference in cases:
        session.reset()
        produced = session.run(inputs)
        if reference.keys() != produced.keys() - set(unproven):
            raise VerificationError(
                f"the reference gives {', '.join(sorted(reference)) or 'nothing'}, the engine "
                f"{', '.join(sorted(produced))}",
                next_step="let the recipe's reference compute every output, or name those that it leaves out",
            )
        for name, wanted in reference.items():
            if np.shape(wanted) != produced[name].shape:
                raise VerificationError(
                    f"output {name} is {list(produced[name].shape)}, the reference's is {list(np.shape(wanted))}",
                    next_step="mend the recipe's reference or its graph",
                )
            difference = np.abs(produced[name].astype(np.float64) - wanted).max()
            relative = float(difference / max(float(np.abs(wanted).max()), 1e-30))
            # A comparison with NaN is never true: such an engine must not pass as perfect.
            worst = relative if not relative <= worst else worst
    return worst


def race_profile(sessions: Mapping[str, Session], recipe: Recipe, profile: Profile, clock: Clock) -> dict[str, float]:
    """Median milliseconds of one run, by session, at the profile's usual sizes: 5 to 30 runs each.

    The sessions take turns, so that whatever else the machine does disturbs them alike.
    """
    inputs = recipe.example(profile.usual, np.random.default_rng(0))
    for session in sessions.values():
        for _ in range(WARM_RUNS):
            session.run(inputs)
    durations: dict[str, list[float]] = {name: [] for name in sessions}
    spent = 0.0
    for round_number in range(MOST_RUNS):
        if round_number >= FEWEST_RUNS and spent > len(sessions):
            break
        for name, session in sessions.items():
            start = clock.now()
            session.run(inputs)
            durations[name].append(clock.now() - start)
            spent += durations[name][-1]
    return {name: round(1000 * statistics.median(values), 4) for name, values in durations.items()}


def _over(error: float, recipe: Recipe) -> str:
    return f"relative error {error:.1e} is over the tolerance {recipe.tolerance:.0e}"
