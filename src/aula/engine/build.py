"""Recipe in, proven engine out: every precision on every backend here, the fastest that passes its gate stays."""

import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aula.backends.session import BACKENDS, Session, SessionOptions, available_backends, open_session
from aula.core.clock import Clock, SystemClock
from aula.core.errors import (
    AulaError,
    BackendError,
    CalibrationError,
    CheckpointError,
    EngineError,
    VerificationError,
)
from aula.engine.precision import Variant, quantised_variant
from aula.engine.recipe import Arrays, Calibration, Profile, Recipe, Task
from aula.engine.store import Candidate, Engine, EngineStore, Gate, Manifest, Quantisation, file_digest, write_file

if TYPE_CHECKING:
    import onnx

BUILDER = "aula-builder 2"
PRECISIONS = ("fp32", "int8")
REAL_CASES = 16
"""How many calibration examples a lower precision's numeric distance is measured on."""
MOST_DROP = 0.01
"""How much of the task's metric a lower precision may lose: one point."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""
Case = tuple[Arrays, Arrays]
"""Inputs, and the reference's outputs for them."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """`precisions` to try besides fp32, which always runs; `threads` 0 means one per core of this process."""

    precisions: tuple[str, ...] = ("fp32",)
    threads: int = 0
    most_drop: float = MOST_DROP
    rebuild: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precisions) - set(PRECISIONS))
        if unknown:
            raise EngineError(
                f"there is no precision {', '.join(unknown)} for the target cpu",
                available=PRECISIONS,
                next_step="choose of these: aula build MODEL --precision int8",
            )


def build(
    recipe: Recipe,
    store: EngineStore,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Engine:
    """Build for this machine's CPU, or return what an earlier build of the same inputs left.

    Raises CheckpointError (sources absent), CalibrationError (int8 without real data), BackendError (no backend
    took the graph), VerificationError (those that took it differ from the reference) and StorageError. An
    interrupted build leaves nothing behind.
    """
    options = options or BuildOptions()
    report = progress or (lambda _what, _share: None)
    clock = clock or SystemClock()
    threads = options.threads or usable_cores()
    sources = _digest_sources(recipe)
    calibration, task = _evidence(recipe, options)
    key = _key(recipe, sources, threads, options, calibration, task)
    if not options.rebuild and (found := store.find(key)) is not None:
        report("found", 1.0)
        return found
    with store.draft() as draft, ExitStack() as stack:
        # 1. Write the graph, and compute what is right, once.
        report("writing the graph", 0.0)
        graph = recipe.write_graph()
        variants = [Variant("fp32", _write_model(recipe, graph, draft / "fp32.onnx"))]
        cases = _cases(recipe, lambda share: report("computing the reference", 0.1 + 0.1 * share))
        prover = _Prover(recipe, cases, threads, task, options.most_drop, stack)
        # 2. Every backend proves the plain graph; the best metric among them is what lower precisions are held to.
        trials = []
        for backend in available_backends():
            report(f"proving fp32 on {backend}", 0.25)
            trials.append(prover.try_(backend, variants[0]))
        _require_one(recipe, trials)
        # 3. Lower precisions, with the layers that do not bear them put back.
        if calibration is not None and task is not None:
            passed = [trial for trial in trials if trial.rejected is None]
            reference = max(trial.metric for trial in passed if trial.metric is not None)
            prover.reference = reference
            prover.real_cases = _real_cases(recipe, calibration)
            variant = quantised_variant(
                graph,
                calibration,
                draft / "int8.onnx",
                transformer=recipe.transformer,
                evaluate=prover.metric_of,
                reference=reference,
                most_drop=options.most_drop,
                progress=lambda what, share: report(what, 0.3 + 0.5 * share),
            )
            variants.append(variant)
            trials += [prover.try_(backend, variant) for backend in available_backends()]
        # 4. The survivors race, in turns; the fastest stays.
        report("measuring", 0.85)
        candidates = _race(trials, recipe, clock)
        best = _choose(recipe, candidates)
        chosen = next(variant for variant in variants if variant.precision == best.precision)
        for variant in variants:
            if variant is not chosen:
                variant.path.unlink()
        manifest = Manifest(
            name=recipe.name,
            key=key,
            backend=best.backend,
            backend_version=best.version,
            precision=best.precision,
            target="cpu",
            threads=threads,
            model=chosen.path.name,
            model_digest=file_digest(chosen.path),
            sources=sources,
            profiles={
                profile.name: {name: (size.least, size.usual, size.greatest) for name, size in profile.sizes.items()}
                for profile in recipe.profiles
            },
            gate=Gate(task.metric, prover.reference, task.examples, task.digest, options.most_drop) if task else None,
            quantisation=_quantisation(variants, calibration),
            candidates=tuple(_left_out_if_slower(candidates, best)),
            builder=BUILDER,
        )
        engine = store.publish(draft, manifest)
    report("built", 1.0)
    return engine


def open_engine(engine: Engine, recipe: Recipe) -> Session:
    """A session on a stored engine, after its digest was checked."""
    engine.verify()
    options = SessionOptions(threads=engine.manifest.threads, states=recipe.states)
    return open_session(engine.manifest.backend, engine.model, options)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine proven again, here and now. `milliseconds` by profile; `passed` is the gate's word."""

    relative_error: float
    metric: float | None
    drop: float | None
    milliseconds: Mapping[str, float]
    passed: bool
    reason: str = ""


def verify(engine: Engine, recipe: Recipe, *, clock: Clock | None = None) -> Verdict:
    """Run the engine's own gate again on this machine.

    Raises VerificationError for a file that changed since it was proven, CalibrationError where the recipe's
    labelled examples are not those that the gate was measured on, since two metrics would be compared.
    """
    gate = engine.manifest.gate
    task = recipe.task() if recipe.task is not None else None
    if gate is not None and (task is None or task.digest != gate.digest):
        raise CalibrationError(
            f"the gate of {engine.manifest.key} was measured on {gate.examples} other labelled examples",
            next_step=f"give the same ones: aula verify {engine.manifest.key} --labelled FILE",
        )
    with open_engine(engine, recipe) as session:
        calibrated = engine.manifest.precision != "fp32" and recipe.calibration is not None
        cases = _real_cases(recipe, recipe.calibration()) if calibrated and recipe.calibration else _cases(recipe)
        error = _relative_error(session, cases)
        metric = task.evaluate(session) if task else None
        times = race({"engine": session}, recipe, clock or SystemClock())["engine"]
    drop = gate.reference - metric if gate is not None and metric is not None else None
    reason = ""
    if engine.manifest.precision == "fp32" and not error <= recipe.tolerance:
        reason = f"relative error {error:.1e} is over the tolerance {recipe.tolerance:.0e}"
    elif gate is not None and drop is not None and drop > gate.most_drop:
        reason = f"the metric drops by {100 * drop:.2f} points, more than {100 * gate.most_drop:g}"
    elif not np.isfinite(error):
        reason = "the outputs are not finite"
    return Verdict(error, metric, drop, times, not reason, reason)


def usable_cores() -> int:
    """Cores this process may run on; hyper-threads are not told apart, since the scheduler may give us either."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _Trial:
    """One precision on one backend: a session if it passed its gate, else the reason why it is out of the race."""

    backend: str
    version: str
    precision: str
    session: Session | None = None
    error: float | None = None
    metric: float | None = None
    layers: Mapping[str, int] | None = None
    rejected: str | None = None


class _Prover:
    """Holds what every trial is judged by."""

    def __init__(
        self,
        recipe: Recipe,
        cases: list[Case],
        threads: int,
        task: Task | None,
        most_drop: float,
        stack: ExitStack,
    ) -> None:
        self._recipe = recipe
        self._cases = cases
        self._options = SessionOptions(threads=threads, states=recipe.states)
        self._task = task
        self._most_drop = most_drop
        self._stack = stack
        self.reference = 1.0
        self.real_cases: list[Case] = []

    def try_(self, backend: str, variant: Variant) -> _Trial:
        trial = _Trial(backend, importlib.metadata.version(BACKENDS[backend].runtime), variant.precision)
        try:
            session = self._stack.enter_context(open_session(backend, variant.path, self._options))
            # Ranges were found on real inputs, so that made-up ones would say nothing of int8.
            error = _relative_error(session, self._cases if variant.precision == "fp32" else self.real_cases)
            metric = self._task.evaluate(session) if self._task is not None else None
        except BackendError as refusal:
            return replace(trial, rejected=refusal.what)
        trial = replace(trial, error=error, metric=metric, layers=session.precisions())
        reason = variant.failed or self._fault(variant, error, metric)
        return replace(trial, rejected=reason) if reason else replace(trial, session=session)

    def metric_of(self, path: Path) -> float:
        """The task's metric of a graph on the first backend that takes it."""
        assert self._task is not None
        refusals = []
        for backend in available_backends():
            try:
                with open_session(backend, path, self._options) as session:
                    return self._task.evaluate(session)
            except BackendError as refusal:
                refusals.append(refusal.what)
        raise BackendError("; ".join(refusals), next_step="build without int8")

    def _fault(self, variant: Variant, error: float, metric: float | None) -> str:
        if variant.precision == "fp32":
            within = error <= self._recipe.tolerance
            return "" if within else f"relative error {error:.1e} is over the tolerance {self._recipe.tolerance:.0e}"
        if metric is None or not np.isfinite(error):
            return "the outputs are not finite"
        drop = self.reference - metric
        if drop > self._most_drop:
            return f"the metric drops by {100 * drop:.2f} points, more than {100 * self._most_drop:g}"
        return ""


def _evidence(recipe: Recipe, options: BuildOptions) -> tuple[Calibration | None, Task | None]:
    """What int8 needs: real data to calibrate on, and the task to be judged by."""
    if "int8" not in options.precisions:
        return None, None
    if recipe.calibration is None or recipe.task is None:
        raise CalibrationError(
            f"int8 of {recipe.name} needs real examples to calibrate on and labelled ones to be judged by",
            next_step=f"aula build {recipe.name} --precision int8 --calibrate FILE",
        )
    return recipe.calibration(), recipe.task()


def _write_model(recipe: Recipe, graph: "onnx.ModelProto", path: Path) -> Path:
    import onnx

    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise EngineError(
            f"the recipe {recipe.name} wrote an invalid graph: {error}", next_step="mend the recipe"
        ) from error
    write_file(path, lambda target: onnx.save(graph, str(target)))
    return path


def _cases(recipe: Recipe, report: Callable[[float], None] = lambda _share: None) -> list[Case]:
    generator = np.random.default_rng(20)
    examples = [recipe.example(sizes, generator) for profile in recipe.profiles for sizes in profile.corners]
    cases = []
    for number, inputs in enumerate(examples):
        report(number / len(examples))
        cases.append((inputs, recipe.reference(inputs)))
    return cases


def _real_cases(recipe: Recipe, calibration: Calibration) -> list[Case]:
    step = max(1, len(calibration.inputs) // REAL_CASES)
    return [(inputs, recipe.reference(inputs)) for inputs in calibration.inputs[::step][:REAL_CASES]]


def _relative_error(session: Session, cases: list[Case]) -> float:
    """Largest difference from the reference, relative to the reference's largest value."""
    worst = 0.0
    for inputs, reference in cases:
        session.reset()
        produced = session.run(inputs)
        for name, wanted in reference.items():
            difference = np.abs(produced[name].astype(np.float64) - wanted).max()
            relative = float(difference / max(float(np.abs(wanted).max()), 1e-30))
            # A comparison with NaN is never true: such an engine must not pass as perfect.
            worst = relative if not relative <= worst else worst
    return worst


def _race(trials: Sequence[_Trial], recipe: Recipe, clock: Clock) -> list[Candidate]:
    racing = {f"{t.backend} {t.precision}": t.session for t in trials if t.session is not None}
    times = race(racing, recipe, clock)
    return [
        Candidate(
            backend=trial.backend,
            version=trial.version,
            precision=trial.precision,
            milliseconds=times.get(f"{trial.backend} {trial.precision}", {}),
            relative_error=trial.error,
            metric=trial.metric,
            layers=dict(trial.layers or {}),
            rejected=trial.rejected,
        )
        for trial in trials
    ]


def race(sessions: Mapping[str, Session], recipe: Recipe, clock: Clock) -> dict[str, dict[str, float]]:
    """Median milliseconds of one run, by session and profile, at the profile's usual sizes: 5 to 30 runs each.

    The sessions take turns, so that whatever else the machine does disturbs them alike.
    """
    times: dict[str, dict[str, float]] = {name: {} for name in sessions}
    for profile in recipe.profiles:
        for name, median in _race_profile(sessions, recipe, profile, clock).items():
            times[name][profile.name] = median
    return times


def _race_profile(sessions: Mapping[str, Session], recipe: Recipe, profile: Profile, clock: Clock) -> dict[str, float]:
    inputs = recipe.example(profile.usual, np.random.default_rng(0))
    for session in sessions.values():
        for _ in range(3):
            session.run(inputs)
    durations: dict[str, list[float]] = {name: [] for name in sessions}
    spent = 0.0
    for round_number in range(30):
        if round_number >= 5 and spent > len(sessions):
            break
        for name, session in sessions.items():
            start = clock.now()
            session.run(inputs)
            durations[name].append(clock.now() - start)
            spent += durations[name][-1]
    return {name: round(1000 * statistics.median(values), 4) for name, values in durations.items()}


def _require_one(recipe: Recipe, trials: Sequence[_Trial]) -> None:
    if any(trial.rejected is None for trial in trials):
        return
    reasons = [f"{trial.backend}: {trial.rejected}" for trial in trials]
    wrong = any(trial.error is not None for trial in trials)
    failure: type[AulaError] = VerificationError if wrong else BackendError
    raise failure(
        f"no backend serves the recipe {recipe.name} ({'; '.join(reasons) or 'none is installed'})",
        next_step="pip install openvino onnxruntime, then aula doctor",
    )


def _choose(recipe: Recipe, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the smallest sum of latencies relative to the best at each profile."""
    good = [candidate for candidate in candidates if candidate.rejected is None]
    best = {
        profile.name: min(candidate.milliseconds[profile.name] for candidate in good) for profile in recipe.profiles
    }
    return min(good, key=lambda candidate: sum(candidate.milliseconds[name] / max(best[name], 1e-9) for name in best))


def _left_out_if_slower(candidates: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """int8 that passed its gate but lost the race to fp32 says so."""
    reason = f"not faster than {best.precision} on {best.backend}"
    return [
        replace(candidate, rejected=reason)
        if candidate.rejected is None and candidate.precision == "int8" and best.precision != "int8"
        else candidate
        for candidate in candidates
    ]


def _quantisation(variants: Sequence[Variant], calibration: Calibration | None) -> Quantisation | None:
    found = next((variant for variant in variants if variant.precision == "int8"), None)
    if found is None or calibration is None:
        return None
    return Quantisation(
        method=found.method,
        examples=len(calibration.inputs),
        source=calibration.source,
        digest=calibration.digest,
        restored=found.restored,
        tried=dict(found.tried),
    )


def _digest_sources(recipe: Recipe) -> dict[str, str]:
    digests: dict[str, str] = {}
    for source in recipe.sources:
        try:
            digests[source.name] = file_digest(source)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint file {source} cannot be read ({error.strerror or error})",
                next_step="install or copy the checkpoint again; aula doctor says how",
            ) from error
    return digests


def _key(
    recipe: Recipe,
    sources: dict[str, str],
    threads: int,
    options: BuildOptions,
    calibration: Calibration | None,
    task: Task | None,
) -> str:
    """What goes in decides what comes out: equal inputs on an equal machine have equal keys."""
    versions = {name: importlib.metadata.version(BACKENDS[name].runtime) for name in available_backends()}
    evidence = [calibration.digest if calibration else "", task.digest if task else "", options.most_drop]
    precisions = sorted(set(options.precisions))
    machine = [platform.machine(), _processor(), threads]
    identity = [BUILDER, recipe.name, recipe.revision, sources, versions, precisions, evidence, machine]
    return f"{recipe.name}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}"


def _processor() -> str:
    """What decides which backend is fastest: the processor's name and instruction sets, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
