"""Engines as they are: tensors in, tensors out. What may come in, and how requests of one shape share a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.capabilities import RawEngine
from aula.core.errors import EngineError, InputError
from aula.core.types import TensorSpec
from aula.serving.records import EngineInfo

Tensors = Mapping[str, NDArray[Any]]

ELEMENTS: Mapping[int, float] = {4**power: 1.0 for power in range(4, 15)}
"""Numbers in all inputs together, up to 268 million. Nobody can guess what an engine makes of them before it is
measured, so the guess is the same for all: a request that is refused would teach nothing."""


def checked_tensors(info: EngineInfo, tensors: Any) -> dict[str, NDArray[Any]]:
    """The tensors if the engine takes them. Raises InputError for a wrong name, dtype or shape, for sizes that no
    profile holds, and for NaN."""
    wanted = [spec.name for spec in info.inputs]
    if not isinstance(tensors, Mapping) or set(tensors) != set(wanted):
        got = sorted(map(str, tensors)) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise InputError(
            f"{info.name} was given {got}",
            available=[_described(spec) for spec in info.inputs],
            next_step="pass exactly these tensors",
        )
    sizes: dict[str, int] = {}
    for spec in info.inputs:
        _check_one(info, spec, tensors[spec.name], sizes)
    _check_sizes(info, sizes)
    return {name: tensors[name] for name in wanted}


def size_of(tensors: Tensors) -> int:
    return max(1, sum(array.size for array in tensors.values()))


def infer(model: RawEngine, payloads: Sequence[Tensors]) -> list[dict[str, NDArray[Any]]]:
    """Requests whose rows have the same shape run together, as many rows as the engine takes; each gets its own."""
    values: dict[int, dict[str, NDArray[Any]]] = {}
    for members in _together(payloads, model.max_batch):
        rows = [_rows(payloads[index]) for index in members]
        first = payloads[members[0]]
        if len(members) == 1:
            made = model.infer(first)
        else:
            made = model.infer({name: np.concatenate([payloads[index][name] for index in members]) for name in first})
        if model.max_batch > 1:
            _check_rows(made, sum(rows))
        if len(members) == 1:
            values[members[0]] = dict(made)
            continue
        ends = np.cumsum(rows)
        for index, end, count in zip(members, ends, rows, strict=True):
            values[index] = {name: array[end - count : end].copy() for name, array in made.items()}
    return [values[index] for index in range(len(payloads))]


def _check_rows(made: Tensors, rows: int) -> None:
    for name, array in made.items():
        if not array.ndim or len(array) != rows:
            raise EngineError(f"output {name} is {list(array.shape)} for {rows} rows", next_step="run: aula doctor")


def _together(payloads: Sequence[Tensors], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room: dict[Any, int] = {}
    latest: dict[Any, list[int]] = {}
    for index, tensors in enumerate(payloads):
        rows = _rows(tensors)
        key = tuple((name, array.shape[1:]) for name, array in tensors.items())
        if most > 1 and rows <= room.get(key, 0):
            latest[key].append(index)
        else:
            latest[key] = [index]
            groups.append(latest[key])
            room[key] = most
        room[key] -= rows
    return groups


def _rows(tensors: Tensors) -> int:
    first = next(iter(tensors.values()), None)
    return len(first) if first is not None and first.ndim else 1


def _check_one(info: EngineInfo, spec: TensorSpec, array: Any, sizes: dict[str, int]) -> None:
    dtype = np.dtype(spec.dtype) if spec.dtype else None
    if (
        not isinstance(array, np.ndarray)
        or (dtype is not None and array.dtype != dtype)
        or not spec.admits(array.shape)
    ):
        told = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(
            f"input {spec.name} of {info.name} is {told}", available=[_described(spec)], next_step="convert it"
        )
    if not array.size:
        raise InputError(
            f"input {spec.name} of {info.name} is {list(array.shape)}, which holds nothing",
            available=[_described(spec)],
            next_step="send one row at least",
        )
    for axis, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
            raise InputError(
                f"{axis} is {sizes[axis]} in one input of {info.name} and {size} in {spec.name}",
                available=[_described(one) for one in info.inputs],
                next_step="give axes of one name one size",
            )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"input {spec.name} of {info.name} holds NaN", next_step="replace such values")


def _check_sizes(info: EngineInfo, sizes: Mapping[str, int]) -> None:
    def holds(profile: Mapping[str, tuple[int, int]]) -> bool:
        return all(low <= sizes.get(axis, low) <= high for axis, (low, high) in profile.items())

    if info.profiles and not any(map(holds, info.profiles)):
        raise InputError(
            f"no profile of {info.name} holds " + ", ".join(f"{axis} {size}" for axis, size in sizes.items()),
            available=[
                ", ".join(f"{axis} {low} to {high}" for axis, (low, high) in profile.items())
                for profile in info.profiles
            ],
            next_step="send less at once, or build the engine with a larger profile",
        )


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]".replace("  ", " ")
