"""Which optimisation profile of a plan serves the sizes that a session is opened for."""

from pathlib import Path
from typing import Any

from aula.backends.session import SessionOptions
from aula.core.errors import BackendError


def choose_profile(engine: Any, inputs: list[str], options: SessionOptions, plan: Path) -> int:
    """The first optimisation profile that holds the bounds; 0 where none are given. Raises BackendError."""
    count = int(engine.num_optimization_profiles)
    for place in range(count):
        if all(_holds(engine, name, place, options) for name in inputs if name in options.bounds):
            return place
    raise BackendError(
        f"none of the {count} profiles of {plan.name} holds the sizes that are asked for",
        available=[
            ", ".join(f"{name} {_extent(engine, name, place)}" for name in inputs if name in options.bounds)
            for place in range(count)
        ],
        next_step="open it for one of these, or build it for those sizes: aula build MODEL --profile …",
    )


def _holds(engine: Any, name: str, profile: int, options: SessionOptions) -> bool:
    shape = tuple(map(int, engine.get_tensor_shape(name)))
    limits = options.bounds[name]
    if len(shape) != len(limits):
        return False
    if -1 not in shape:
        return all(size == greatest for size, (_, greatest) in zip(shape, limits, strict=True))
    least, _, greatest = engine.get_tensor_profile_shape(name, profile)
    return all(
        low <= asked_low and asked_high <= high
        for low, high, (asked_low, asked_high) in zip(map(int, least), map(int, greatest), limits, strict=True)
    )


def _extent(engine: Any, name: str, profile: int) -> str:
    least, _, greatest = engine.get_tensor_profile_shape(name, profile)
    return f"{list(map(int, least))} to {list(map(int, greatest))}"
