"""Model in, proven bundle out: every precision on every backend here, the fastest that passes its gate stays."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aula.backends.session import available_backends, runtime_version
from aula.backends.sizes import Bounds
from aula.core.clock import Clock, SystemClock
from aula.core.errors import AulaError, BackendError, CalibrationError, EngineError, VerificationError
from aula.engine import graph as graphs
from aula.engine import targets
from aula.engine.build_gpu import build_part_for_gpu
from aula.engine.bundle import Bundle
from aula.engine.choice import (
    choose,
    gate_of,
    input_axes,
    left_out_if_slower,
    profile_sizes,
    quantisation_of,
    size_of,
)
from aula.engine.files import write_file
from aula.engine.identity import digest_sources, instructions, package_version, processor, readable_key, usable_cores
from aula.engine.manifest import (
    FORMAT,
    Manifest,
    Part,
    TargetEngine,
    bounds_of,
    check_profiles,
    sealed,
)
from aula.engine.mixed import mixed_trials, require_bf16
from aula.engine.onnx_files import INLINE_LIMIT, MAPPED_LIMIT, load_model, save_model
from aula.engine.passes import simplify
from aula.engine.plans import PlanOptions
from aula.engine.precision import Progress, Variant, lower_variant
from aula.engine.quantize import check_calibration
from aula.engine.recipe import Calibration, Model, Recipe, Task
from aula.engine.store import Store
from aula.engine.stored import store_model
from aula.engine.trial import Prover, Trial, real_cases
from aula.engine.workshop import Workshop

if TYPE_CHECKING:
    import onnx

BUILDER = "aula-builder 5"
TARGETS = tuple(targets.TARGETS)
MOST_DROP = 0.01
"""How much of the task's metric a lower precision may lose: one point."""


LEAST_OVER_CHANCE = 0.05
"""How much better than guessing a model must be for its metric to judge anything."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """`precisions` to try besides fp32, which always runs on a CPU; a GPU is always asked for fp16, and for fp32 only
    where nothing lower passes. `threads` 0 means one per core of this process; `most_drop` is how much of its task's
    metric (0..1) a lower precision may lose; `plans` is for GPUs alone.

    On a CPU int8 tries int8+bf16 as well, where the processor has BF16; `without` leaves that out."""

    precisions: tuple[str, ...] = ("fp32",)
    threads: int = 0
    most_drop: float = MOST_DROP
    target: str = "cpu"
    rebuild: bool = False
    plans: PlanOptions = field(default_factory=PlanOptions)
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.threads >= 0 and 0 <= self.most_drop <= 1):
            raise EngineError(
                f"{self.threads} threads and a drop of {self.most_drop} make no sense",
                next_step="give threads from 0, and a drop from 0 to 1",
            )
        if self.target not in TARGETS:
            raise EngineError(
                f"no engine for {self.target!r} can be built here",
                available=TARGETS,
                next_step="choose one of these: aula build MODEL --target cpu",
            )
        offered = targets.TARGETS[self.target].precisions
        unknown = sorted(set(self.precisions) - set(offered))
        if unknown:
            raise EngineError(
                f"there is no precision {', '.join(unknown)} for the target {self.target}",
                available=offered,
                next_step=f"choose of these: aula build MODEL --target {self.target} --precision int8",
            )

        refused = sorted(set(self.without) - {targets.MIXED})
        if refused or set(self.without) & set(self.precisions):
            raise EngineError(
                f"{', '.join(refused or self.without)} cannot be left out"
                + ("" if refused else ": it is also asked for"),
                available=(targets.MIXED,),
                next_step=f"say what is to be tried: aula build MODEL --precision int8 --without {targets.MIXED}",
            )

    @property
    def lower(self) -> tuple[str, ...]:
        """The precisions to try besides fp32, in the order in which they are listed everywhere."""
        wanted = set(self.precisions)
        if targets.TARGETS[self.target].is_gpu:
            wanted.add("fp16")
        elif wanted & {"int8", targets.MIXED}:
            wanted |= {"int8", targets.MIXED}
        wanted -= set(self.without)
        return tuple(name for name in targets.PRECISIONS if name in wanted and name != "fp32")


def build(
    model: Model,
    store: Store,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock | None = None,
    exclusive: Callable[[], AbstractContextManager[None]] = nullcontext,
    make_workshop: Callable[[targets.Target], Workshop] = Workshop.here,
) -> Bundle:
    """Build for one target on this machine, or return what an earlier build of the same inputs left.

    Raises EngineError (int8+bf16 asked for on a processor without BF16), CheckpointError (sources absent),
    CalibrationError (a lower precision without real data), BackendError (no backend took a graph), VerificationError
    (those that took it differ from the reference) and StorageError. An interrupted build leaves no bundle; the parts
    that were finished are found again by the next. `exclusive` is held while anything is built and timed.
    """
    options = options or BuildOptions()
    report = progress or (lambda _what, _share: None)
    if targets.MIXED in options.precisions:
        require_bf16()
    gpu = targets.TARGETS[options.target].is_gpu
    workshop = make_workshop(targets.TARGETS[options.target]) if gpu else None
    jobs = [_Job(name, recipe, options, workshop) for name, recipe in model.parts_for(gpu).items()]
    identity = [BUILDER, model.origin and model.origin.revision, [[job.name, job.key] for job in jobs]]
    key = readable_key(model.name, identity)
    if not options.rebuild and (found := store.find(key)) is not None:
        report("found", 1.0)
        return found
    parts: dict[str, Part] = {}
    with exclusive():
        for place, job in enumerate(jobs):
            part = None if options.rebuild else store.find_part(job.key)
            if part is None:
                part = job.run(store, _portion(report, job.name, place, len(jobs)), clock or SystemClock())
                store.add_part(job.key, part)
            parts[job.name] = part
    manifest = Manifest(
        format=FORMAT,
        name=model.name,
        key=key,
        builder=BUILDER,
        origin=model.origin,
        licences=tuple(dict.fromkeys(one for recipe in model.parts.values() for one in recipe.licences)),
        seeded=any(recipe.seeded for recipe in model.parts.values()),
        parts=parts,
    )
    bundle = store.publish(sealed(manifest))
    report("built", 1.0)
    return bundle


class _Job:
    """One part to be built. What goes in is read and digested at once, so that bad input is refused at once."""

    def __init__(self, name: str, recipe: Recipe, options: BuildOptions, workshop: Workshop | None) -> None:
        self.name = name
        self._workshop = workshop
        self._recipe = recipe
        self._options = options
        self._threads = options.threads or usable_cores()
        self._sources = digest_sources(recipe)
        self._task = _task(recipe, options)
        self._calibration = _calibration(recipe, options)
        self.key = self._key()

    def run(self, store: Store, report: Progress, clock: Clock) -> Part:
        engine = self._for_cpu(store, report, clock) if self._workshop is None else self._for_gpu(store, report)
        return Part(self._sources, {self._options.target: engine})

    def _for_gpu(self, store: Store, report: Progress) -> TargetEngine:
        assert self._workshop is not None
        recipe, task, options = self._recipe, self._task, self._options
        if self._calibration is not None:
            check_calibration(self._calibration, simplify(recipe.write_graph()), seeded=recipe.seeded)
        reference = None
        if task is not None:
            # What lower precisions are held to is fp32's metric, which a CPU can tell as well.
            report("measuring fp32", 0.05)
            with store.draft() as draft:
                plain = _write_model(simplify(recipe.write_graph()), draft / "fp32.onnx")
                reference = self._prover({}).metric_of(plain)
            _require_sense(recipe, task, reference)
        return build_part_for_gpu(
            recipe,
            self._workshop,
            store,
            options.lower,
            options.plans,
            threads=self._threads,
            task=task,
            most_drop=options.most_drop,
            reference=reference,
            calibration=self._calibration,
            make_int8=lambda part, folder: self._lowered(
                "int8", part.written, folder, self._prover({}), reference, report
            ),
            report=report,
        )

    def _prover(self, bounds: Mapping[str, Bounds]) -> Prover:
        return Prover(self._recipe, self._threads, self._task, self._options.most_drop, bounds)

    def _lowered(
        self,
        precision: str,
        graph: "onnx.ModelProto",
        folder: Path,
        prover: Prover,
        reference: float | None,
        report: Progress,
    ) -> Variant:
        return lower_variant(
            precision,
            graph,
            self._recipe,
            folder,
            calibration=self._calibration,
            evaluate=prover.metric_of if self._task is not None else None,
            watched=self._task.inputs if self._task is not None else (),
            reference=1.0 if reference is None else reference,
            most_drop=self._options.most_drop,
            progress=lambda what, share: report(what, 0.3 + 0.5 * share),
        )

    def _for_cpu(self, store: Store, report: Progress, clock: Clock) -> TargetEngine:
        recipe, task = self._recipe, self._task
        with store.draft() as draft:
            # 1. Write the graph, and compute what is right, once.
            report("writing the graph", 0.0)
            written = recipe.write_graph()
            graphs.check_states(written, recipe.states)
            graph = simplify(written)
            plain = Variant("fp32", _write_model(graph, draft / "fp32.onnx", MAPPED_LIMIT))
            axes, profiles = input_axes(graph), profile_sizes(recipe)
            check_profiles(axes, profiles, recipe.name)
            if self._calibration is not None:
                check_calibration(self._calibration, graph, seeded=recipe.seeded)
            bounds = {name: bounds_of(axes, sizes) for name, sizes in profiles.items()}
            prover = self._prover(bounds)
            prover.prepare(lambda share: report("computing the reference", 0.1 + 0.1 * share))
            # 2. Every backend proves the plain graph; the best metric among them is what lower precisions are held to.
            trials = []
            for backend in available_backends():
                report(f"proving fp32 on {backend}", 0.2)
                trials.append(prover.prove(backend, plain))
            _require_one(recipe, trials)
            prover.reference = max((t.metric for t in trials if not t.rejected and t.metric is not None), default=1.0)
            _require_sense(recipe, task, prover.reference)
            # 3. Lower precisions, with the layers that do not bear them put back.
            if self._calibration is not None:
                prover.real_cases = real_cases(recipe, self._calibration)
            for precision in self._options.lower:
                if precision == targets.MIXED:
                    trials += mixed_trials(prover, trials, report)
                    continue
                variant = self._lowered(precision, graph, draft, prover, prover.reference, report)
                _write_model(load_model(variant.path), variant.path, MAPPED_LIMIT)
                trials += prover.agreed([prover.prove(backend, variant) for backend in available_backends()])
            # 4. The survivors race at every profile, in turns; the fastest stays.
            report("measuring", 0.85)
            trials, times = prover.race(trials, clock)
            _require_one(recipe, trials)
            candidates = [trial.candidate(times[trial.name]) for trial in trials]
            best = choose(recipe, candidates)
            variants = [trial.variant for trial in trials]
            chosen = next(variant for variant in variants if variant.precision == best.precision)
            shipped = size_of(load_model(chosen.path), recipe)
            return TargetEngine(
                backend=best.backend,
                backend_version=best.version,
                precision=best.precision,
                threads=self._threads,
                machine=processor(),
                files=store_model(chosen.path, store),
                graph=shipped,
                gate=gate_of(task, prover.reference, self._options.most_drop),
                quantisation=quantisation_of(variants, self._calibration),
                candidates=tuple(left_out_if_slower(candidates, best)),
                inputs=axes,
                profiles=profiles,
                states=recipe.states,
                dynamic_quantisation=recipe.dynamic_quantisation,
                written=size_of(written, recipe),
            )

    def _key(self) -> str:
        """What goes in decides what comes out: equal inputs on an equal machine have equal keys."""
        versions = {name: runtime_version(name) for name in available_backends()}
        versions |= {name: package_version(name) for name in ("nncf", "onnx")}
        recipe, options = self._recipe, self._options
        evidence: list[object] = [
            self._calibration.digest if self._calibration else "",
            [self._task.metric, self._task.digest] if self._task else [],
            options.most_drop,
            [recipe.tolerance, recipe.transformer, recipe.unproven, recipe.dynamic_quantisation],
            [[pair.input, pair.output, pair.initial] for pair in recipe.states],
        ]
        if recipe.shared:
            evidence.append("shared")
        machine = [options.target, platform.machine(), instructions(), self._threads, MAPPED_LIMIT]
        if self._workshop is not None:
            card = self._workshop.card
            # Plans are for one kind of card; the processor only prepares them.
            machine = [options.target, card.name, card.capability, card.driver, asdict(options.plans)]
            evidence += [recipe.half_tolerance, recipe.low_borders, recipe.spelling]
            makers = {"nncf", "onnx"} if "int8" in options.lower else {"onnx"}
            versions = {name: version for name, version in versions.items() if name in makers}
            versions["tensorrt"] = self._workshop.version
        identity = [
            BUILDER,
            recipe.name,
            recipe.revision,
            recipe.seeded,
            recipe.dynamic_quantisation,
            self._sources,
            profile_sizes(recipe),
            versions,
        ]
        return readable_key(recipe.name, [*identity, options.lower, evidence, machine])


def _task(recipe: Recipe, options: BuildOptions) -> Task | None:
    """What lower precisions are judged by; fp32 alone is judged by its numbers."""
    if not options.lower or recipe.seeded:
        return None
    if recipe.task is None and options.lower == ("fp16",):
        return None  # held to the reference's numbers at every profile
    if recipe.task is None:
        raise CalibrationError(
            f"{options.lower[0]} of {recipe.name} needs labelled examples to be judged by",
            next_step=f"aula build {recipe.name} --precision {options.lower[0]} --labelled FILE",
        )
    return recipe.task()


def _calibration(recipe: Recipe, options: BuildOptions) -> Calibration | None:
    """What int8 ranges are found on, unless the recipe writes its int8 graph itself."""
    if "int8" not in options.lower or "int8" in recipe.written:
        return None
    if recipe.calibration is None:
        raise CalibrationError(
            f"int8 of {recipe.name} needs real examples to calibrate on and labelled ones to be judged by",
            next_step=f"aula build {recipe.name} --precision int8 --calibrate FILE --labelled FILE",
        )
    return recipe.calibration()


def _portion(report: Progress, name: str, place: int, count: int) -> Progress:
    """Progress of one part among several."""
    prefix = f"{name}: " if count > 1 else ""
    return lambda what, share: report(prefix + what, (place + share) / count)


def _write_model(graph: "onnx.ModelProto", path: Path, limit: int = INLINE_LIMIT) -> Path:
    write_file(path, lambda target: save_model(graph, target, limit=limit))
    load_model(path, weights=False)
    return path


def _require_one(recipe: Recipe, trials: Sequence[Trial]) -> None:
    if any(trial.rejected is None for trial in trials):
        return
    reasons = [f"{trial.backend}: {trial.rejected}" for trial in trials]
    wrong = any(trial.error is not None for trial in trials)
    failure: type[AulaError] = VerificationError if wrong else BackendError
    raise failure(
        f"no backend serves the recipe {recipe.name} ({'; '.join(reasons) or 'none is installed'})",
        next_step="pip install openvino onnxruntime, then aula doctor",
    )


def _require_sense(recipe: Recipe, task: Task | None, reference: float) -> None:
    """A model that is no better than guessing loses nothing by any rounding, so that the gate would say nothing."""
    if task is not None and task.chance is not None and reference < task.chance + LEAST_OVER_CHANCE:
        raise CalibrationError(
            f"{recipe.name} in fp32 has {task.metric} {reference:.4f}, and guessing has {task.chance:.4f}: these "
            "labelled examples cannot judge a lower precision",
            next_step="give labelled examples of what the model was trained for: --labelled FILE",
        )
