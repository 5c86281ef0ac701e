"""The engine of one part for a GPU: a plan for every profile, in every precision that is asked for, proven and raced.

A plan for each profile, not one plan with many: sizes that the profile fixes are written into the graph, which lets
TensorRT choose among more kernels; each has its own usual size to choose for (latency or throughput); 8.6 allows one
context for each profile of a plan; and until 10.8 plans with several profiles could compute wrong numbers.

fp16 is what a GPU is asked for when nothing else is said. It is held to the reference's numbers at every profile, and
to the task's metric where there are labelled examples; int8 to the task and to being faster than fp16. Where no lower
precision passes, fp32 is built.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aula.backends.kernel_program import FORM, Compiled, Program, save_program
from aula.backends.kernel_program import SUFFIX as KERNELS
from aula.backends.selecting import SelectingSession
from aula.backends.session import Session
from aula.core.errors import BackendError, DeviceLostError, DeviceMemoryError, VerificationError
from aula.engine.bundle import session_options
from aula.engine.choice import input_axes, size_of
from aula.engine.dialect import for_tensorrt, specialise
from aula.engine.files import file_digest, write_file
from aula.engine.gpu_trial import GpuProver, GpuTrial
from aula.engine.halves import ISLANDS, lower_precision
from aula.engine.manifest import GraphSize, StoredFile, bounds_of
from aula.engine.onnx_files import save_model
from aula.engine.passes import simplify
from aula.engine.plans import Extents, PlanOptions, UnbuildableError
from aula.engine.precision import Progress
from aula.engine.quantize import restored
from aula.engine.recipe import Profile, Recipe, Task
from aula.engine.restoring import Restoring
from aula.engine.signed import signed_activations, weights_behind_pairs
from aula.engine.store import Store
from aula.engine.stored import store_model
from aula.engine.trial import drop_fault, measure
from aula.engine.workshop import Timings, Workshop

if TYPE_CHECKING:
    import onnx

GPU_ISLANDS = ISLANDS - {"Softmax"}
"""In fp16 a softmax between two products is computed inside one fused kernel, which sums in fp32 by itself; an island
around it would tear the kernel apart."""
MOST_RESTORED = 16
"""Rounds of putting layers back into fp16 for which TensorRT has no int8 kernel."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """An int8 graph, and the plain one that its layers can be taken back from."""

    graph: "onnx.ModelProto"
    plain: "onnx.ModelProto"
    restoring: Restoring = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "restoring", Restoring(self.graph))


class GpuPart:
    """Builds and proves the plans of one part."""

    def __init__(
        self,
        recipe: Recipe,
        workshop: Workshop,
        folder: Path,
        options: PlanOptions,
        timings: Timings,
        *,
        task: Task | None,
        most_drop: float,
        report: Progress,
    ) -> None:
        self.recipe = recipe
        self._workshop = workshop
        self._folder = folder
        self._options = options
        self._timings = timings
        self._task = task
        self._most_drop = most_drop
        self._report = report
        self.prover = GpuProver(recipe, judged=task is not None)
        self.written = self.prover.written

    def prepare(self) -> None:
        """Compute what is right at every profile, once."""
        self.prover.prepare(lambda share: self._report("computing the reference", share))

    def try_precision(self, precision: str, reference: float | None, quantised: Quantised | None = None) -> GpuTrial:
        """Build and prove one precision at every profile. `reference` is the metric that it is held to, None where no
        task judges. What goes wrong with the engine itself is the trial's reason; what goes wrong with the machine is
        raised (a lost device, memory that is short)."""
        trial = GpuTrial(precision)
        try:
            place = 0
            while place < len(self.recipe.profiles):
                profile, known = self.recipe.profiles[place], trial.restored
                self._report(f"building {precision} for {profile.name}", place / len(self.recipe.profiles))
                self._build(trial, profile, quantised)
                # All profiles compute the same: where a later one cannot bear a layer, the earlier are built again.
                place = place + 1 if trial.restored == known or place == 0 else 0
            self._prove(trial, reference)
        except (DeviceLostError, DeviceMemoryError):
            raise
        except (BackendError, VerificationError) as refusal:
            trial.rejected = refusal.what
        return trial

    def _build(self, trial: GpuTrial, profile: Profile, quantised: Quantised | None) -> None:
        for _ in range(MOST_RESTORED):
            try:
                return self._build_once(trial, profile, quantised)
            except UnbuildableError as refusal:
                # 1. What was timed until then is not timed again.
                self._timings.write(refusal.cache)
                # 2. The layers that TensorRT names, and those of their kind, are computed in fp16.
                back = () if quantised is None else quantised.restoring.after(refusal.said, trial.restored)
                if not back:
                    raise
                self._report(f"{', '.join(back)}: no int8 kernel, back to fp16", 0.5)
                trial.restored += back
        raise UnbuildableError(
            f"after {len(trial.restored)} layers were put back TensorRT still has no kernel for others",
            next_step="build without int8",
        )

    def _build_once(self, trial: GpuTrial, profile: Profile, quantised: Quantised | None) -> None:
        if trial.precision == "fp16" and self.prover.recipe_of(profile).program is not None:
            self._compile(trial, profile)
            return
        graph = self._lowered(trial, profile, quantised)
        path = self._folder / f"{trial.precision}-{profile.name}.onnx"
        # Without weights in the plan they lie beside the graph, where every architecture's plan finds the same.
        limit = {"limit": 0} if self._options.stripped else {}
        write_file(path, lambda target: save_model(graph, target, **limit))
        free = _free_extents(graph, profile)
        plan = self._workshop.builder.build(
            path, trial.precision, [free] if free else [], self._options, cache=self._timings.read()
        )
        self._timings.write(plan.cache)
        target = path.with_suffix(".plan")
        write_file(target, lambda made: made.write_bytes(plan.content))
        if self._options.stripped:
            trial.weights[profile.name] = path
        else:
            path.unlink()
        trial.plans[profile.name], trial.digests[profile.name] = target, file_digest(target)

    def _compile(self, trial: GpuTrial, profile: Profile) -> None:
        """Our own kernels in place of a plan."""
        write = self.prover.recipe_of(profile).program
        assert write is not None
        capability = self._workshop.card.capability
        program = write(profile, capability)
        compiled = Compiled(program, self._workshop.compile(program.source, capability), capability)
        target = self._folder / f"{trial.precision}-{profile.name}{KERNELS}"
        write_file(target, lambda made: save_program(compiled, made))
        trial.backend, trial.version = "kernels", str(FORM)
        trial.plans[profile.name], trial.digests[profile.name] = target, file_digest(target)
        if profile is self.recipe.profiles[0]:
            trial.shipped = self._size(program)

    def _size(self, program: Program) -> GraphSize:
        """The same operations, by fewer kernels, on weights of half the bytes."""
        written, weights = size_of(self.written, self.recipe), program.weights.values()
        return GraphSize(
            operators=len(program.launches),
            parameters=sum(one.size for one in weights),
            weight_bytes=sum(one.nbytes for one in weights),
            operations=written.operations,
            read_bytes=written.read_bytes // 2,
        )

    def _lowered(self, trial: GpuTrial, profile: Profile, quantised: Quantised | None) -> "onnx.ModelProto":
        """The graph of a profile in a precision, with the sizes that the profile fixes, in TensorRT's words."""
        precision = trial.precision
        if quantised is not None:
            graph = signed_activations(restored(quantised.graph, quantised.plain, trial.restored))
            if self._workshop.builder.typed:
                graph = lower_precision(graph, "fp16", GPU_ISLANDS, borders=self.recipe.low_borders)
            else:
                graph = weights_behind_pairs(graph)  # flags choose fp16 between the pairs
        else:
            recipe = self.prover.recipe_of(profile)
            graph = self.written if recipe is self.recipe else simplify(recipe.write_graph())
            if precision != "fp32":
                graph = lower_precision(graph, precision, GPU_ISLANDS, borders=self.recipe.low_borders)
        fixed = {name: size.least for name, size in profile.sizes.items() if size.least == size.greatest}
        special = specialise(graph, fixed)
        if profile is self.recipe.profiles[0]:
            trial.shipped = size_of(special, self.recipe)
        return for_tensorrt(special, typed=self._workshop.builder.typed)

    def _prove(self, trial: GpuTrial, reference: float | None) -> None:
        # 2. Numbers, time and layers at every profile, in the session that will serve it.
        for profile in self.recipe.profiles:
            self._report(f"proving {trial.precision} at {profile.name}", 0.9)
            with self._open(trial, profile) as session:
                self.prover.prove(trial, profile, session)
        trial.rejected = self.prover.fault(trial)
        # 3. What the model is for.
        if trial.rejected is None and self._task is not None:
            with self._all_sizes(trial) as session:
                trial.metric = measure(self._task, session)
            if reference is not None:
                trial.rejected = drop_fault(reference - trial.metric, self._most_drop) or None

    def _open(self, trial: GpuTrial, profile: Profile) -> Session:
        path, digest = trial.plans[profile.name], trial.digests[profile.name]
        bounds = bounds_of(input_axes(self.written), _extents_of(profile))
        options = session_options(
            trial.precision,
            0,
            states=self.recipe.states,
            bounds=bounds,
            digest=digest,
            device=self._workshop.card.number,
            weights=trial.weights.get(profile.name),
        )
        return self._workshop.open(path, options)

    def _all_sizes(self, trial: GpuTrial) -> SelectingSession:
        bounds = {
            profile.name: bounds_of(input_axes(self.written), _extents_of(profile)) for profile in self.recipe.profiles
        }
        openers: dict[str, Callable[[], Session]] = {
            profile.name: (lambda chosen=profile: self._open(trial, chosen))  # type: ignore[misc]
            for profile in self.recipe.profiles
        }
        return SelectingSession(bounds, openers)


@dataclass(frozen=True, slots=True)
class StoredPlans:
    """In the store: the files, and by profile the digests of its plan and, where it comes without, of its weights."""

    files: tuple[StoredFile, ...]
    plans: dict[str, str]
    weights: dict[str, str]


def store_plans(trial: GpuTrial, store: Store) -> StoredPlans:
    """Move a precision's plans, and the weights of those that come without, into the store."""
    files: dict[str, StoredFile] = {}
    weights: dict[str, str] = {}
    for profile, path in trial.plans.items():
        digest = trial.digests[profile]
        if digest not in files:
            files[digest] = store.add_file(path)
    for profile, path in trial.weights.items():
        stored = store_model(path, store)
        weights[profile] = stored[0].digest
        files |= {file.digest: file for file in stored}
    return StoredPlans(tuple(files.values()), dict(trial.digests), weights)


def _extents_of(profile: Profile) -> dict[str, Extents]:
    return {name: (size.least, size.usual, size.greatest) for name, size in profile.sizes.items()}


def _free_extents(graph: "onnx.ModelProto", profile: Profile) -> dict[str, list[Extents]]:
    """For every input that still has a free axis, the extents of all its axes."""
    sizes = _extents_of(profile)
    return {
        name: [(axis, axis, axis) if isinstance(axis, int) else sizes[axis] for axis in axes]
        for name, axes in input_axes(graph).items()
        if any(isinstance(axis, str) for axis in axes)
    }
