"""Sizes of inputs: what their axes are called, what bounds make of them, and which sizes those admit."""

from collections.abc import Mapping, Sequence

from aula.core.errors import BackendError
from aula.core.types import TensorSpec

Limits = tuple[tuple[int, int], ...]
"""Least and greatest size of every axis of an input."""
Bounds = Mapping[str, Limits]


def named(spec: TensorSpec, names: Mapping[str, tuple[str, ...]]) -> TensorSpec:
    """The spec with its free sizes called as the file calls them; `names` is what `dimension_names` read."""
    given = names.get(spec.name, ())
    if len(given) != len(spec.shape):
        return spec
    return TensorSpec(spec.name, spec.dtype, tuple(name or size for name, size in zip(given, spec.shape, strict=True)))


def bounded(inputs: Sequence[TensorSpec], bounds: Bounds) -> list[TensorSpec]:
    """The specs with every axis fixed whose bounds are equal.

    Raises BackendError for bounds of an input that is not there, of another number of axes, whose least exceeds
    their greatest, or that leave out the size the graph fixes.
    """
    unknown = sorted(bounds.keys() - {spec.name for spec in inputs})
    if unknown:
        raise BackendError(
            f"bounds are given for {', '.join(unknown)}, which the graph does not take",
            available=[spec.name for spec in inputs],
            next_step="correct the profile's names",
        )
    return [_bounded(spec, bounds[spec.name]) if spec.name in bounds else spec for spec in inputs]


def _bounded(spec: TensorSpec, limits: Limits) -> TensorSpec:
    if len(limits) != len(spec.shape):
        raise BackendError(
            f"bounds are given for {len(limits)} axes of input {spec.name}, which has {list(spec.shape)}",
            next_step="give least and greatest of every axis",
        )
    shape: list[int | str] = []
    for axis, (size, (least, greatest)) in enumerate(zip(spec.shape, limits, strict=True)):
        if not 0 <= least <= greatest or not (isinstance(size, str) or least <= size <= greatest):
            fixed = "" if isinstance(size, str) else f", and the graph fixes it at {size}"
            raise BackendError(
                f"axis {_axis(axis, size)} of input {spec.name} cannot have sizes from {least} to {greatest}{fixed}",
                next_step="order them least <= greatest, around what the graph fixes",
            )
        shape.append(least if least == greatest else size)
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def check_sizes(name: str, shape: tuple[int, ...], known: tuple[int | str, ...], limits: Limits) -> None:
    """Raises BackendError for a size of input `name` outside the limits; `known` is the graph's own shape.
    A wrong number of axes is left to the comparison with the spec."""
    for axis, (size, (least, greatest)) in enumerate(zip(shape, limits, strict=False)):
        if not least <= size <= greatest:
            raise BackendError(
                f"axis {_axis(axis, known[axis])} of input {name} has size {size}, but this session "
                f"serves {least if least == greatest else f'{least} to {greatest}'}",
                next_step="pad or cut the array, or open the engine for a profile that holds this size",
            )


def _axis(axis: int, name: int | str) -> str:
    return f"{axis} ({name})" if isinstance(name, str) else str(axis)
