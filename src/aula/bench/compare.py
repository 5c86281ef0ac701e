"""The comparison: engines and rivals, each in a process of its own, raced at every shape, the floor beside them."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aula.bench import race as racing
from aula.bench.machine import LIBRARIES, Load, Roof, busy, processor, versions
from aula.bench.process import CompetitorFailedError, Process, worker
from aula.bench.protocol import Arrays
from aula.bench.race import Race, race
from aula.bench.records import BenchOptions, Report, Row, Skipped
from aula.bench.rivals import Rival, rivals_of
from aula.bench.subjects import Shape, Subject
from aula.core.clock import Clock, SystemClock
from aula.core.errors import AulaError, EngineError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.graph import report as report_graph
from aula.engine.identity import usable_cores
from aula.engine.precision import Progress
from aula.engine.recipe import WHOLE
from aula.engine.targets import MIXED, share_in


def bench(
    subject: Subject,
    options: BenchOptions | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Report:
    """Build what is not built yet, then race.

    Raises what building the fp32 engine raises; everything else that fails is left out of the rows and named in
    `skipped`. Raises EngineError where no engine at all could be timed.
    """
    options = options or BenchOptions()
    return _Bench(subject, options, progress or (lambda _what, _share: None), clock or SystemClock()).run()


@dataclass(slots=True)
class _Entrant:
    """A process that runs at a shape. `about` is what it said of itself."""

    process: Process
    about: dict[str, Any] = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict)


class _Bench:
    def __init__(self, subject: Subject, options: BenchOptions, progress: Progress, clock: Clock) -> None:
        self._subject = subject
        self._options = options
        self._progress = progress
        self._clock = clock
        self._threads = options.threads or usable_cores()
        self._roof = Roof(self._threads, clock)
        self._skipped: dict[tuple[str, str], None] = {}
        self._done = 0

    def run(self) -> Report:
        subject = self._subject
        load = busy()
        bundles = self._build()
        rows: list[Row] = []
        with tempfile.TemporaryDirectory(prefix="aula-bench-") as folder:
            for part in dict.fromkeys(shape.part for shape in subject.shapes):
                rows += self._race_part(part, bundles, Path(folder))
        if not rows:
            reasons = "; ".join(f"{what}: {why}" for what, why in self._skipped)
            raise EngineError(f"no engine of {subject.name} could be timed ({reasons})", next_step="aula doctor")
        return Report(
            model=subject.name,
            seeded=subject.seeded,
            rows=tuple(rows),
            skipped=tuple(Skipped(*one) for one in self._skipped),
            versions=versions(LIBRARIES),
            machine={**processor(), "threads": self._threads, "load_before": load, **self._roof.as_json()},
        )

    def _build(self) -> dict[str, Bundle]:
        """A bundle for each precision. The fp32 one is always built: its graph is what ONNX Runtime runs."""
        bundles: dict[str, Bundle] = {}
        wanted = list(dict.fromkeys(("fp32", *self._options.precisions)))
        for place, precision in enumerate(wanted):
            tried = tuple(dict.fromkeys(("fp32", precision)))
            # Where both are asked for, int8 is plain; else it is what aula build --precision int8 makes.
            without = (MIXED,) if precision == "int8" and MIXED in wanted else ()
            options = BuildOptions(tried, self._threads, without=without)

            def report(what: str, share: float, place: int = place, precision: str = precision) -> None:
                self._progress(f"building {precision}: {what}", 0.5 * (place + share) / len(wanted))

            try:
                bundles[precision] = build(
                    self._subject.model, self._subject.store, options, progress=report, clock=self._clock
                )
            except AulaError as error:
                if precision == "fp32":
                    raise
                self._skip(precision, error.what)
        return bundles

    def _race_part(self, part: str, bundles: Mapping[str, Bundle], folder: Path) -> list[Row]:
        """Rivals stay for all shapes of a part; engines are opened for each."""
        rows: list[Row] = []
        shapes = [shape for shape in self._subject.shapes if shape.part == part]
        engines = self._engines(part, bundles)
        found = rivals_of(self._subject.model.parts[part], part, bundles["fp32"], self._options.against, self._threads)
        with ExitStack() as stack:
            rivals: dict[Rival, Process] = {}
            for rival in found:
                if isinstance(rival.order, str):
                    self._skip(rival.name, rival.order)
                else:
                    rivals[rival] = stack.enter_context(worker(rival.name, rival.order))
            for rival, process in list(rivals.items()):
                self._progress(f"starting {rival.name}", self._share)
                try:
                    process.started()
                except CompetitorFailedError as failure:
                    self._skip(rival.name, str(failure))
                    del rivals[rival]
            for shape in shapes:
                rows += self._race_shape(shape, engines, rivals, folder)
                self._done += 1
        return rows

    def _engines(self, part: str, bundles: Mapping[str, Bundle]) -> dict[str, Bundle]:
        """The bundles whose engine of this part truly has the precision that was asked for, by that which it has: int8
        may have become int8+bf16."""
        engines: dict[str, Bundle] = {}
        for precision in self._options.precisions:
            if precision not in bundles:
                continue
            engine = bundles[precision].engine(part)
            if engine.precision == precision or (precision, engine.precision) == ("int8", MIXED):
                engines[engine.precision] = bundles[precision]
            else:
                told = (precision, "int8") if precision == MIXED else (precision,)
                reasons = [
                    f"{candidate.backend}: {candidate.rejected}"
                    for candidate in engine.candidates
                    if candidate.precision in told and candidate.rejected
                ]
                what = precision if part == WHOLE else f"{part} in {precision}"
                self._skip(what, f"the builder ships none ({'; '.join(reasons) or 'it was not the fastest'})")
        return engines

    def _race_shape(
        self, shape: Shape, engines: Mapping[str, Bundle], rivals: dict[Rival, Process], folder: Path
    ) -> list[Row]:
        label = shape.name if shape.part == WHOLE else f"{shape.part} {shape.name}"
        generator = np.random.default_rng(0)
        inputs = folder / "inputs.npz"
        np.savez(inputs, **self._subject.model.parts[shape.part].example(shape.sizes, generator))  # type: ignore[arg-type]
        with ExitStack() as stack:
            # 1. Everybody loads the shape; nobody is timed yet.
            entrants: dict[str, _Entrant] = {}
            opened = {}
            for precision, bundle in engines.items():
                order = {
                    "kind": "engine",
                    "store": str(bundle.files.parent),
                    "key": bundle.manifest.key,
                    "part": shape.part,
                    "profile": self._subject.profiles[shape.part, shape.name],
                }
                opened[precision] = stack.enter_context(worker(precision, order))
            named = {f"engine {precision}": process for precision, process in opened.items()}
            named |= {rival.name: process for rival, process in rivals.items()}
            for name, process in named.items():
                self._progress(f"{label}: preparing {name}", self._share)
                try:
                    if name.startswith("engine "):
                        process.started()
                    about = process.prepare(inputs)
                    entrants[name] = _Entrant(process, about, process.outputs(folder / "outputs.npz"))
                except CompetitorFailedError as failure:
                    self._skip(f"{name} at {label}", str(failure))
            # 2. The race.
            ran = race(
                {name: entrant.process for name, entrant in entrants.items()},
                self._clock,
                self._options.rounds,
                lambda share: self._progress(f"{label}: racing", self._share + share * self._step),
            )
            for name, why in ran.failed.items():
                self._skip(f"{name} at {label}", why)
        for rival in list(rivals):
            if rival.name in ran.failed or rival.name not in entrants:
                rivals.pop(rival).close()
        # 3. The floor, when nobody else is busy.
        self._progress(f"{label}: measuring this machine's limits", self._share)
        rows = []
        for precision, bundle in engines.items():
            if f"engine {precision}" in ran.timings:
                load = _load(bundle, shape)
                rows += self._rows(shape, precision, bundle, entrants, ran, load, list(rivals))
        return rows

    def _rows(
        self,
        shape: Shape,
        precision: str,
        bundle: Bundle,
        entrants: Mapping[str, _Entrant],
        ran: Race,
        load: Load | None,
        rivals: list[Rival],
    ) -> list[Row]:
        name = f"engine {precision}"
        timing, entrant = ran.timings[name], entrants[name]
        floor = None if load is None else self._roof.floor_ms(load, precision)
        layers = entrant.about.get("layers") or {}
        common = {
            "part": None if shape.part == WHOLE else shape.part,
            "shape": shape.name,
            "precision": precision,
            "engine_ms": round(timing.median, 3),
            "metric_drop": _metric_drop(bundle, shape.part),
            "floor_ms": None if floor is None else round(floor, 3),
            "backend": str(entrant.about.get("backend", "")),
            "layer_share": round(share_in(layers, precision), 3) if layers else None,
            "engine_spread_ms": _rounded(timing.spread),
        }
        rows = []
        for rival in rivals:
            if rival.name in ran.timings:
                theirs = ran.timings[rival.name]
                rows.append(
                    Row(
                        **common,  # type: ignore[arg-type]
                        native=rival.name,
                        native_ms=round(theirs.median, 3),
                        ratio=round(racing.ratio(theirs, timing), 2),
                        relative_error=relative_error(entrant.outputs, entrants[rival.name].outputs),
                        native_spread_ms=_rounded(theirs.spread),
                        native_variant=entrants[rival.name].about.get("variant") or None,
                    )
                )
        nobody = {"native": None, "native_ms": None, "ratio": None, "relative_error": None}
        return rows or [Row(**common, **nobody, native_spread_ms=None, native_variant=None)]  # type: ignore[arg-type]

    @property
    def _step(self) -> float:
        return 0.5 / len(self._subject.shapes)

    @property
    def _share(self) -> float:
        return 0.5 + self._done * self._step

    def _skip(self, what: str, why: str) -> None:
        self._skipped[what, why] = None


def relative_error(ours: Arrays, theirs: Arrays) -> float | None:
    """The largest difference over the largest value, the worst of the outputs that both give as floating-point
    numbers; None where there is none."""
    worst: float | None = None
    for name in ours.keys() & theirs.keys():
        mine, wanted = (np.asarray(side[name]) for side in (ours, theirs))
        if mine.shape != wanted.shape or mine.dtype.kind != "f" or wanted.dtype.kind != "f":
            continue
        difference = float(np.abs(mine.astype(np.float64) - wanted).max())
        relative = difference / max(float(np.abs(wanted).max()), 1e-30)
        # A comparison with NaN is never true: it must not pass as small.
        worst = relative if worst is None or not relative <= worst else worst
    return worst if worst is None or np.isfinite(worst) else float("inf")


def _metric_drop(bundle: Bundle, part: str) -> float | None:
    engine = bundle.engine(part)
    metric = engine.chosen.metric
    return None if engine.gate is None or metric is None else round(engine.gate.reference - metric, 5)


def _load(bundle: Bundle, shape: Shape) -> Load | None:
    """None for a graph whose work cannot be counted."""
    import onnx

    try:
        told = report_graph(onnx.load(str(bundle.model_file(shape.part))), shape.sizes)
    except EngineError:
        return None
    counted = told.read_bytes is not None and told.flops is not None
    return Load(told.read_bytes or 0, told.flops or 0) if counted else None


def _rounded(spread: tuple[float, float]) -> tuple[float, float]:
    return round(spread[0], 3), round(spread[1], 3)
