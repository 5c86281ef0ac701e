"""What a build ends with: which candidate ships, and how that is put into the manifest."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aula.engine import graph as graphs
from aula.engine.manifest import Candidate, Gate, GraphSize, Quantisation
from aula.engine.precision import Variant
from aula.engine.recipe import Calibration, Recipe, Task
from aula.engine.targets import PRECISIONS

if TYPE_CHECKING:
    import onnx

CLEARLY = 0.97
"""A lower precision ships if it takes at most this share of the time: less is within the noise of the race."""


def size_of(graph: "onnx.ModelProto", recipe: Recipe) -> GraphSize:
    told = graphs.report(graph, recipe.profiles[0].usual)
    return GraphSize(
        operators=sum(told.operators.values()),
        parameters=told.parameters,
        weight_bytes=told.weight_bytes,
        operations=told.flops or 0,
        read_bytes=told.read_bytes or 0,
    )


def input_axes(graph: "onnx.ModelProto") -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param
            for axis in value.type.tensor_type.shape.dim
        )
        for value in graph.graph.input
    }


def profile_sizes(recipe: Recipe) -> dict[str, dict[str, tuple[int, int, int]]]:
    return {
        profile.name: {name: (size.least, size.usual, size.greatest) for name, size in profile.sizes.items()}
        for profile in recipe.profiles
    }


def choose(recipe: Recipe, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the smallest sum of latencies relative to the best at each profile; a lower precision must be
    clearly faster than the higher ones."""
    good = [candidate for candidate in candidates if candidate.rejected is None]
    best = {
        profile.name: min(candidate.milliseconds[profile.name] for candidate in good) for profile in recipe.profiles
    }

    def score(candidate: Candidate) -> float:
        return sum(candidate.milliseconds[name] / max(best[name], 1e-9) for name in best)

    chosen = min(good, key=lambda candidate: PRECISIONS.index(candidate.precision))
    for precision in PRECISIONS:
        fastest = min((one for one in good if one.precision == precision), key=score, default=chosen)
        margin = 1.0 if fastest.precision == chosen.precision else CLEARLY
        if score(fastest) <= margin * score(chosen):
            chosen = fastest
    return chosen


def left_out_if_slower(candidates: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """A lower precision that passed its gate but lost the race to a higher one says so."""
    reason = f"not clearly faster than {best.precision} on {best.backend}"
    rank = PRECISIONS.index
    return [
        replace(candidate, rejected=reason)
        if candidate.rejected is None and rank(candidate.precision) > rank(best.precision)
        else candidate
        for candidate in candidates
    ]


def gate_of(task: Task | None, reference: float, most_drop: float) -> Gate | None:
    return None if task is None else Gate(task.metric, reference, task.examples, task.digest, most_drop)


def quantisation_of(variants: Sequence[Variant], calibration: Calibration | None) -> Quantisation | None:
    found = next((variant for variant in variants if variant.precision == "int8"), None)
    if found is None:
        return None
    return Quantisation(
        method=found.method,
        examples=len(calibration.inputs) if calibration else 0,
        source=calibration.source if calibration else "the weights alone",
        digest=calibration.digest if calibration else "",
        restored=found.restored,
        tried=dict(found.tried),
    )
