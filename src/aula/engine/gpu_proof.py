"""Engines on a GPU against the reference: numbers at every profile, states read back, and what the inspector tells.

What is told of an engine's numbers must not depend on how many rows it has, or the same arithmetic would pass in an
engine of 64 and fail in one of 320: a greatest difference over more values is greater. So `PROVEN_ROWS` rows are
compared, however many there are. Each output's differences are relative to the largest value that went into it: its own
largest, and where an output is the difference of larger numbers (a logarithm of a probability is one of logits), what
the recipe's `scales` say. A probability near one half has a logarithm near 0.7 between logits of fifty; rounded logits
move it by a tenth of itself, which says nothing of the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aula.backends.device_tensor import DeviceTensor
from aula.backends.session import Session
from aula.core.errors import VerificationError
from aula.engine.manifest import Inspection
from aula.engine.recipe import Arrays, Profile, Recipe

if TYPE_CHECKING:
    import onnx

PROVEN_ROWS = 4
"""So many of the rows of a batch are computed by the reference and compared; the others do not depend on them."""
TIMED_RUNS, WARM_RUNS = 100, 10


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, states among them, and the reference's outputs of the first rows. `axes` tells where an output's rows
    are; one that is not there has none. `scales` are what differences are relative to at least, by output."""

    inputs: Arrays
    wanted: Arrays
    rows: int | None
    axes: Mapping[str, int]
    scales: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class OnDevice(Protocol):
    """What a session on a GPU can do beyond the contract."""

    def read_state(self, name: str) -> NDArray[Any]: ...

    def write_state(self, name: str, array: NDArray[Any]) -> None: ...

    def device_milliseconds(self, repetitions: int) -> list[float]: ...

    def layers(self) -> list[dict[str, Any]]: ...

    def precisions(self) -> dict[str, int]: ...


@runtime_checkable
class HandsOver(OnDevice, Protocol):
    """One whose tensors another session may make or take where they lie."""

    def device_tensor(self, name: str) -> DeviceTensor: ...

    def attach(self, name: str, tensor: DeviceTensor) -> None: ...


def cases(recipe: Recipe, profile: Profile, graph: "onnx.ModelProto") -> list[Case]:
    """Inputs at the profile's corners, each once, and what is right for them."""
    generator = np.random.default_rng(20)
    corners = [dict(sizes) for sizes in dict.fromkeys(tuple(sorted(corner.items())) for corner in profile.corners)]
    return [_case(recipe, corner, graph, generator) for corner in corners]


def _case(recipe: Recipe, sizes: Mapping[str, int], graph: "onnx.ModelProto", generator: np.random.Generator) -> Case:
    inputs = recipe.example(sizes, generator)
    rows = None if sizes.get(recipe.rows, 0) <= PROVEN_ROWS else PROVEN_ROWS
    places = _places(graph.graph.input, recipe.rows)
    few = inputs if rows is None else {name: _first(array, places.get(name), rows) for name, array in inputs.items()}
    wanted = recipe.reference(few)
    scales = dict(recipe.least_scales)
    for name, scale in ({} if recipe.scales is None else recipe.scales(few)).items():
        scales[name] = max(scale, scales.get(name, 0.0))
    axes = {} if rows is None else _places(graph.graph.output, recipe.rows)
    return Case(inputs, wanted, rows, axes, scales)


def engine_error(session: Session, proven: Sequence[Case], recipe: Recipe) -> float:
    """The largest of `engine_errors`."""
    return max(engine_errors(session, proven, recipe).values(), default=0.0)


def engine_errors(session: Session, proven: Sequence[Case], recipe: Recipe) -> dict[str, float]:
    """Of every output the largest difference from the reference, relative to the largest value there or to the case's
    scale, whichever is more; infinite where either is not finite. Raises VerificationError where outputs and reference
    do not match, BackendError."""
    worst: dict[str, float] = {}
    for case in proven:
        produced = run_case(session, case.inputs, recipe)
        if case.wanted.keys() != produced.keys() - set(recipe.unproven):
            raise VerificationError(
                f"the reference gives {', '.join(sorted(case.wanted)) or 'nothing'}, the engine "
                f"{', '.join(sorted(produced)) or 'nothing'}",
                next_step="let the recipe's reference compute every output, or name those that it leaves out",
            )
        for name, wanted in case.wanted.items():
            # Cut first: the outputs of hundreds of rows are gigabytes.
            few = produced[name] if case.rows is None else _first(produced[name], case.axes.get(name), case.rows)
            worst[name] = max(worst.get(name, 0.0), _difference(name, few, wanted, case.scales.get(name, 1e-30)))
    return worst


def _difference(name: str, produced: NDArray[Any], wanted: NDArray[Any], least: float) -> float:
    if produced.shape != np.shape(wanted):
        raise VerificationError(
            f"output {name} is {list(produced.shape)}, the reference's is {list(np.shape(wanted))}",
            next_step="mend the recipe's reference or its graph",
        )
    got = produced.astype(np.float64)
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.abs(got - wanted).max(initial=0.0)) / max(float(np.abs(wanted).max(initial=0.0)), least)


def run_case(session: Session, inputs: Arrays, recipe: Recipe) -> Arrays:
    """All outputs, states among them; inputs in the types in which the engine takes them."""
    states = {pair.input: pair for pair in recipe.states}
    session.reset()
    if states and isinstance(session, OnDevice):
        for name in states:
            session.write_state(name, _typed(session, name, inputs[name]))
    given = {spec.name: _typed(session, spec.name, inputs[spec.name]) for spec in session.inputs}
    produced = session.run(given)
    if states and isinstance(session, OnDevice):
        produced |= {pair.output: session.read_state(name) for name, pair in states.items()}
    return produced


def usual_inputs(session: Session, recipe: Recipe, profile: Profile) -> Arrays:
    inputs = recipe.example(profile.usual, np.random.default_rng(0))
    return {spec.name: _typed(session, spec.name, inputs[spec.name]) for spec in session.inputs}


def inspection(layers: Sequence[Mapping[str, Any]], precisions: Mapping[str, int], operators: int) -> Inspection:
    """What the inspector's layers come to. A layer that holds several operators names them with "+", or as a region
    {ForeignNode[first...last]}."""
    fused = [layer for layer in layers if _is_fused(str(layer.get("Name", "")))]
    return Inspection(precisions=dict(precisions), operators=operators, layers=len(layers), fused=len(fused))


def _is_fused(name: str) -> bool:
    return "ForeignNode[" in name or " + " in name or "PWN(" in name


def _typed(session: Session, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """As the engine takes it: a low border takes what the recipe gives in float32."""
    dtype = session.dtype_of(name)
    return array if array.dtype.kind != "f" or str(array.dtype) == dtype else array.astype(dtype)


def _places(values: Sequence[Any], dimension: str) -> dict[str, int]:
    """The axis of each tensor that is called so."""
    found = {}
    for value in values:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param == dimension:
                found[value.name] = axis
                break
    return found


def _first(array: NDArray[Any], axis: int | None, count: int) -> NDArray[Any]:
    return array if axis is None else array[(slice(None),) * axis + (slice(count),)]
