"""Examples for any graph, from npz files: real ones to calibrate on, labelled ones to be judged by.

A file holds one array for each input, under the input's name. An array with one axis more than the input has examples
along that axis; an array with as many axes as the input has examples along the first, each with a first axis of 1.
Labelled files hold `labels`, integers [n], besides. The metric is the accuracy of the largest of the first output.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import CalibrationError
from aula.core.types import TensorSpec
from aula.engine.quantize import FEWEST_EXAMPLES
from aula.engine.recipe import Arrays, Calibration, Task
from aula.models.labels import FEWEST_LABELLED, check_range, check_variety, majority_share, task_digest

LABELS = "labels"
METRIC = "accuracy"
MOST_EXAMPLES = 300
"""Calibration examples that are used."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """`inputs[i]` is one run; `labels` int64 [n], None where the file has none; `digest` is of all arrays."""

    source: str
    inputs: Sequence[Arrays]
    labels: NDArray[np.int64] | None
    digest: str


def read_npz(path: Path) -> Arrays:
    """Every array of an npz file. Raises CalibrationError for a file that is not one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise many types on damaged bytes, MemoryError among them
        raise CalibrationError(f"{path} cannot be read as npz ({error})", next_step="write it with np.savez") from error


def read_examples(path: Path, specs: Sequence[TensorSpec], *, labelled: bool = False) -> Examples:
    """Raises CalibrationError, saying what was expected, for a file that cannot be read, and for arrays with wrong
    names, types or shapes, too few examples, examples that are all alike, or values that are not finite."""
    arrays = read_npz(path)
    labels = arrays.pop(LABELS, None)
    expected = _expected(specs, labelled)
    if arrays.keys() != {spec.name for spec in specs}:
        raise CalibrationError(
            f"{path.name} holds the arrays {', '.join(sorted(arrays)) or 'none'}, but the model takes "
            f"{', '.join(spec.name for spec in specs)}",
            available=[_described(spec) for spec in specs],
            next_step=expected,
        )
    for spec in specs:
        _check_array(arrays[spec.name], spec, path.name, expected)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(
            f"the arrays of {path.name} hold different numbers of examples: {told}", next_step=expected
        )
    count = next(iter(counts.values()), 0)
    least = FEWEST_LABELLED if labelled else FEWEST_EXAMPLES
    if count < least:
        raise CalibrationError(f"{count} examples in {path.name} are too few: {least} are needed", next_step=expected)
    if labelled:
        labels = _checked_labels(labels, count, path.name, expected)
    inputs = [_example(arrays, specs, place) for place in range(count)]
    _check_shared_sizes(inputs[0] if inputs else {}, specs, path.name, expected)
    if not labelled:
        check_variety(inputs, path.name)
    return Examples(path.name, inputs, labels if labelled else None, _digest(arrays, labels if labelled else None))


def calibration(examples: Examples) -> Calibration:
    """At most MOST_EXAMPLES, spread over all."""
    step = max(1, len(examples.inputs) // MOST_EXAMPLES)
    return Calibration(examples.inputs[::step][:MOST_EXAMPLES], examples.source, examples.digest)


def task(examples: Examples, output: str) -> Task:
    """Accuracy: how often the largest element of `output` stands where the label says. `evaluate` raises
    CalibrationError for a label beyond that output's last axis."""
    labels = examples.labels
    assert labels is not None

    def evaluate(session: Session) -> float:
        guesses: list[int] = []
        for inputs in examples.inputs:
            session.reset()
            scores = session.run(inputs)[output]
            if not guesses:
                check_range(labels, scores.shape[-1], examples.source)
            guesses.append(int(scores.argmax()))
        return float((np.asarray(guesses) == labels).mean())

    return Task(
        METRIC,
        len(labels),
        task_digest(METRIC, examples.digest),
        evaluate,
        examples.inputs,
        chance=majority_share(labels.tolist()),
    )


def _check_array(array: NDArray[Any], spec: TensorSpec, source: str, expected: str) -> None:
    if array.ndim == len(spec.shape) + 1:
        fits = spec.admits(array.shape[1:]) and 0 not in array.shape[1:]
    else:
        # Each row is an example of its own, so the input must take a first axis of 1.
        fits = array.ndim > 0 and spec.admits((1, *array.shape[1:])) and 0 not in array.shape[1:]
    if array.dtype != np.dtype(spec.dtype) or not fits:
        raise CalibrationError(
            f"{spec.name} in {source} is {array.dtype}{list(array.shape)}, but the model takes {_described(spec)}",
            next_step=expected,
        )
    if not np.isfinite(array).all():
        raise CalibrationError(f"{spec.name} in {source} holds values that are not finite", next_step="clean the data")


def _checked_labels(labels: NDArray[Any] | None, count: int, source: str, expected: str) -> NDArray[np.int64]:
    if labels is None:
        raise CalibrationError(f"{source} has no array {LABELS} to judge by", next_step=expected)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
        raise CalibrationError(
            f"{LABELS} in {source} is {labels.dtype}{list(labels.shape)}, not int64 [{count}] from 0 on",
            next_step=expected,
        )
    return labels.astype(np.int64)


def _check_shared_sizes(
    example: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec], source: str, expected: str
) -> None:
    """One free dimension has one size in all inputs of an example."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for name, size in zip(spec.shape, example[spec.name].shape if example else (), strict=False):
            if isinstance(name, str) and sizes.setdefault(name, (size, spec.name))[0] != size:
                raise CalibrationError(
                    f"the dimension {name} is {size} in {spec.name} of {source}, "
                    f"but {sizes[name][0]} in {sizes[name][1]}",
                    next_step=expected,
                )


def _example(arrays: Arrays, specs: Sequence[TensorSpec], place: int) -> Arrays:
    return {
        spec.name: np.ascontiguousarray(
            arrays[spec.name][place]
            if arrays[spec.name].ndim > len(spec.shape)
            else arrays[spec.name][place : place + 1]
        )
        for spec in specs
    }


def _digest(arrays: Arrays, labels: NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(str(size) for size in spec.shape)}]"


def _expected(specs: Sequence[TensorSpec], labelled: bool) -> str:
    names = [f"{spec.name}={spec.dtype} [n, {', '.join(str(size) for size in spec.shape)}]" for spec in specs]
    return f"np.savez(FILE, {', '.join(names)}{f', {LABELS}=int64 [n]' if labelled else ''}), n examples"
