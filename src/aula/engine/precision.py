"""Graphs of a lower precision: bf16 by its arithmetic, int8 by a search that keeps the task's metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aula.backends.session import available_backends, open_session
from aula.core.errors import BackendError
from aula.engine.files import write_file
from aula.engine.halves import lower_precision
from aula.engine.onnx_files import save_model
from aula.engine.quantize import (
    CONVOLUTION_METHODS,
    TRANSFORMER_METHODS,
    Method,
    quantize,
    quantized_layers,
    restored,
    sensitivities,
)
from aula.engine.recipe import Arrays, Calibration, Recipe
from aula.engine.targets import TARGETS
from aula.engine.unsigned import unsigned_activations

if TYPE_CHECKING:
    import onnx

PRECISIONS = TARGETS["cpu"].precisions
"""What a CPU engine can be built in, the most exact first."""
Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""
WATCHED_EXAMPLES = 64
"""How many examples the search for sensitive layers looks at."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One precision of a graph, as a file; int8 and int8+bf16 share one. `restored` are the layers left in fp32;
    `tried` is the metric of every method; `failed` says why no engine of it may ship."""

    precision: str
    path: Path
    method: str = ""
    restored: tuple[str, ...] = ()
    tried: dict[str, float] = field(default_factory=dict)
    failed: str = ""


def lower_variant(
    precision: str,
    graph: "onnx.ModelProto",
    recipe: Recipe,
    folder: Path,
    *,
    calibration: Calibration | None,
    evaluate: Callable[[Path], float] | None,
    watched: Sequence[Arrays],
    reference: float,
    most_drop: float,
    progress: Progress,
) -> Variant:
    """`graph` in a lower precision, written into `folder`: by the recipe itself, where it knows how, else by the
    builder. `evaluate` is None where no task can judge, because the weights are made up; see `quantised_variant`."""
    path = folder / f"{precision}.onnx"
    if precision in recipe.written:
        progress(f"writing the {precision} graph", 0.0)
        _write(recipe.written[precision](), path)
        return Variant(precision, path, method="the recipe's own")
    if precision == "bf16":
        _write(lower_precision(graph, precision), path)
        return Variant(precision, path)
    assert calibration is not None
    if evaluate is None:
        method = (TRANSFORMER_METHODS if recipe.transformer else CONVOLUTION_METHODS)[0]
        progress(f"quantising: {method.name}", 0.0)
        made = quantize(graph, calibration, method, transformer=recipe.transformer, seeded=recipe.seeded)
        _write(unsigned_activations(made), path)
        return Variant(precision, path, method.name)
    return quantised_variant(
        graph,
        calibration,
        path,
        transformer=recipe.transformer,
        evaluate=evaluate,
        watched=watched,
        reference=reference,
        most_drop=most_drop,
        progress=progress,
    )


def quantised_variant(
    graph: "onnx.ModelProto",
    calibration: Calibration,
    path: Path,
    *,
    transformer: bool,
    evaluate: Callable[[Path], float],
    watched: Sequence[Arrays] = (),
    reference: float,
    most_drop: float,
    progress: Progress,
) -> Variant:
    """Write the best INT8 graph found to `path`: the first method that loses nothing against `reference`, else the
    one that loses least; and where even that loses more than `most_drop`, with its most sensitive layers put back,
    twice as many each time, until the metric holds. They are ranked on `watched`, else on the calibration data."""
    least = reference - most_drop
    methods = TRANSFORMER_METHODS if transformer else CONVOLUTION_METHODS
    tried: dict[str, float] = {}
    best: tuple[float, Method, onnx.ModelProto] | None = None
    for index, method in enumerate(methods):
        progress(f"quantising: {method.name}", 0.7 * index / len(methods))
        candidate = quantize(graph, calibration, method, transformer=transformer)
        tried[method.name] = _metric(candidate, path, evaluate)
        if best is None or tried[method.name] > best[0]:
            best = (tried[method.name], method, candidate)
        if tried[method.name] >= reference:
            break
    assert best is not None
    metric, method, quantised = best
    layers = quantized_layers(quantised)
    back: tuple[str, ...] = ()
    if metric < least:
        progress("finding sensitive layers", 0.7)
        ranking = [name for name, _ in sensitivities(quantised, graph, _runner(watched or calibration.inputs, path))]
        count = 1
        while metric < least and count <= len(ranking):
            progress(f"putting back {count} of {len(ranking)} layers", 0.9)
            back = tuple(ranking[:count])
            metric = _metric(restored(quantised, graph, back), path, evaluate)
            count = min(2 * count, len(ranking)) if count < len(ranking) else count + 1
    _write(unsigned_activations(restored(quantised, graph, back)), path)
    failed = "" if metric >= least and len(back) < len(layers) else "no layer bears int8 within the gate"
    return Variant("int8", path, method.name, back, tried, failed)


def _metric(model: "onnx.ModelProto", path: Path, evaluate: Callable[[Path], float]) -> float:
    _write(unsigned_activations(model), path)
    return evaluate(path)


def _write(model: "onnx.ModelProto", path: Path) -> None:
    write_file(path, lambda target: save_model(model, target))


def _runner(inputs: Sequence[Arrays], path: Path) -> Callable[["onnx.ModelProto"], list[Arrays]]:
    """Runs a graph on a few of the inputs, spread over all, on the first backend that takes it."""
    step = max(1, len(inputs) // WATCHED_EXAMPLES)
    examples = inputs[::step][:WATCHED_EXAMPLES]

    def run(model: "onnx.ModelProto") -> list[Arrays]:
        _write(model, path)
        refusals = []
        for backend in available_backends():
            try:
                with open_session(backend, path) as session:
                    return [session.run(example) for example in examples]
            except BackendError as refusal:
                refusals.append(refusal.what)
        raise BackendError("; ".join(refusals), next_step="build without int8")

    return run
