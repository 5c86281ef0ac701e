"""Recipe in, proven engine out: every backend here tries the graph, and the fastest correct one stays."""

import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aula.backends.session import BACKENDS, Session, SessionOptions, available_backends, open_session
from aula.core.clock import Clock, SystemClock
from aula.core.errors import AulaError, BackendError, CheckpointError, EngineError, VerificationError
from aula.engine.recipe import Arrays, Profile, Recipe
from aula.engine.store import Candidate, Engine, EngineStore, Manifest, file_digest, write_file

BUILDER = "aula-builder 1"
MODEL_FILE = "model.onnx"

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


def build(
    recipe: Recipe,
    store: EngineStore,
    *,
    threads: int = 0,
    progress: Progress | None = None,
    clock: Clock | None = None,
    rebuild: bool = False,
) -> Engine:
    """Build for this machine's CPU, or return what an earlier build of the same inputs left.

    Raises CheckpointError (sources absent), BackendError (no backend took the graph), VerificationError (those
    that took it differ from the reference) and StorageError. An interrupted build leaves nothing behind.
    """
    report = progress or (lambda _what, _share: None)
    threads = threads or physical_cores()
    sources = _digest_sources(recipe)
    key = _key(recipe, sources, threads)
    if not rebuild and (found := store.find(key)) is not None:
        report("found", 1.0)
        return found
    backends = available_backends()
    with store.draft() as draft:
        # 1. Write the graph.
        report("writing the graph", 0.0)
        model = draft / MODEL_FILE
        _write_model(recipe, model)
        # 2. Compute what is right, once.
        report("computing the reference", 0.1)
        cases = _cases(recipe)
        # 3. Let every backend try it: correct first, then fast.
        with ExitStack() as stack:
            trials: list[_Trial] = []
            for index, backend in enumerate(backends):
                report(f"proving on {backend}", 0.4 + 0.3 * index / len(backends))
                trials.append(_prove(backend, model, recipe, cases, threads, stack))
            report("measuring", 0.7)
            candidates = _race(trials, recipe, clock or SystemClock())
        # 4. Keep the fastest.
        best = _choose(recipe, candidates)
        manifest = Manifest(
            name=recipe.name,
            key=key,
            backend=best.backend,
            backend_version=best.version,
            target="cpu",
            threads=threads,
            model=MODEL_FILE,
            model_digest=file_digest(model),
            sources=sources,
            candidates=tuple(candidates),
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


def physical_cores() -> int:
    """Cores this process may run on; hyper-threads are not told apart, since the scheduler may give us either."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_model(recipe: Recipe, model: Path) -> None:
    import onnx

    graph = recipe.write_graph()
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise EngineError(
            f"the recipe {recipe.name} wrote an invalid graph: {error}", next_step="mend the recipe"
        ) from error
    write_file(model, lambda path: onnx.save(graph, str(path)))


Case = tuple[Arrays, Arrays]
"""Inputs, and the reference's outputs for them."""


def _cases(recipe: Recipe) -> list[Case]:
    generator = np.random.default_rng(20)
    examples = [recipe.example(sizes, generator) for profile in recipe.profiles for sizes in profile.corners]
    return [(inputs, recipe.reference(inputs)) for inputs in examples]


@dataclass(frozen=True, slots=True)
class _Trial:
    """A backend's session if it computes what it should, or the reason why it is out of the race."""

    backend: str
    version: str
    session: Session | None
    error: float | None
    rejected: str | None


def _prove(backend: str, model: Path, recipe: Recipe, cases: list[Case], threads: int, stack: ExitStack) -> _Trial:
    version = importlib.metadata.version(BACKENDS[backend].runtime)
    try:
        options = SessionOptions(threads=threads, states=recipe.states)
        session = stack.enter_context(open_session(backend, model, options))
        error = _relative_error(session, cases)
    except BackendError as refusal:
        return _Trial(backend, version, None, None, refusal.what)
    if not error <= recipe.tolerance:
        reason = f"relative error {error:.1e} is over the tolerance {recipe.tolerance:.0e}"
        return _Trial(backend, version, None, error, reason)
    return _Trial(backend, version, session, error, None)


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


def _race(trials: list[_Trial], recipe: Recipe, clock: Clock) -> list[Candidate]:
    racing = {trial.backend: trial.session for trial in trials if trial.session is not None}
    medians = {profile.name: race(racing, recipe, profile, clock) for profile in recipe.profiles}
    return [
        Candidate(
            trial.backend,
            trial.version,
            {name: median[trial.backend] for name, median in medians.items() if trial.backend in median},
            trial.error,
            trial.rejected,
        )
        for trial in trials
    ]


def race(sessions: Mapping[str, Session], recipe: Recipe, profile: Profile, clock: Clock) -> dict[str, float]:
    """Median milliseconds of one run at the profile's usual sizes, by name: 5 to 30 runs each, about a second.

    The sessions take turns, so that whatever else the machine does disturbs them alike.
    """
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


def _choose(recipe: Recipe, candidates: list[Candidate]) -> Candidate:
    """The correct candidate with the smallest sum of latencies relative to the best at each profile."""
    good = [candidate for candidate in candidates if candidate.rejected is None]
    if not good:
        reasons = [f"{candidate.backend}: {candidate.rejected}" for candidate in candidates]
        wrong = any(candidate.relative_error is not None for candidate in candidates)
        failure: type[AulaError] = VerificationError if wrong else BackendError
        raise failure(
            f"no backend serves the recipe {recipe.name} ({'; '.join(reasons) or 'none is installed'})",
            next_step="pip install openvino onnxruntime, then aula doctor",
        )
    best = {
        profile.name: min(candidate.milliseconds[profile.name] for candidate in good) for profile in recipe.profiles
    }
    return min(good, key=lambda candidate: sum(candidate.milliseconds[name] / max(best[name], 1e-9) for name in best))


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


def _key(recipe: Recipe, sources: dict[str, str], threads: int) -> str:
    versions = {name: importlib.metadata.version(BACKENDS[name].runtime) for name in available_backends()}
    identity = [
        BUILDER,
        recipe.name,
        recipe.revision,
        sources,
        versions,
        threads,
        platform.machine(),
        _processor(),
    ]
    return f"{recipe.name}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}"


def _processor() -> str:
    """What decides which backend is fastest: the processor's name and instruction sets, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
