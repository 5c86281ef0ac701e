"""What a model costs, measured when it is loaded: the first runs are its first canary, and warm it too."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.capabilities import RawEngine
from aula.core.clock import Clock
from aula.core.types import Capability, Context, DetectRequest
from aula.scheduling.costs import LEAST_MS
from aula.serving.tasks import DETECT, DETECT_CHUNK, EMBED, INFER, PROBE_TEXT, TASKS, UNDERSTAND, Task
from aula.serving.tensors import size_of

GUESS_MS = 1.0
"""Of the least bucket, until it was measured or run once."""
WORTH_MS = 60.0
"""What is expected to take longer is not measured: nobody should wait for it, and its first run tells."""

Table = Mapping[int, Mapping[int, float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Bucket, batch, milliseconds; `guessed` buckets follow from the least one."""

    table: Table
    guessed: frozenset[int]


def guess(task: Task) -> Measured:
    table = {bucket: {1: GUESS_MS * weight} for bucket, weight in task.buckets.items()}
    return Measured(table, frozenset(table))


def measure(capability: Capability, model: Any, language: str, clock: Clock) -> dict[Task, Measured]:
    """By task. Recognisers and voices are not measured here: their first call reads dictionaries and adapts, which
    says nothing about the next. Raises what the model raises."""
    if capability is Capability.INFER:
        return {INFER: _measured_engine(model, clock)}
    measured = {task: guess(task) for task in TASKS[capability]}
    with _runs(capability, model, language) as runs:
        for task, run in runs.items():
            measured[task] = _measured(task, run, task.most(model), clock)
    return measured


def _measured(task: Task, run: Callable[[int, int], None], most: int, clock: Clock) -> Measured:
    least = min(task.buckets)
    run(least, 1)  # the very first run allocates
    table: dict[int, dict[int, float]] = {}
    guessed = set()
    unit_ms = 0.0
    for bucket, weight in task.buckets.items():
        row: dict[int, float] = {}
        for batch in sorted({1, most}):
            expected = unit_ms * weight * batch
            if (unit_ms and expected > WORTH_MS) or (bucket != least and bucket == max(task.buckets)):
                row[batch] = expected
                guessed.add(bucket)
            else:
                start = clock.now()
                run(bucket, batch)
                row[batch] = max(LEAST_MS, 1e3 * (clock.now() - start))
            unit_ms = unit_ms or row[batch]
        # More at once never costs less; a hiccup in the first must not say so.
        row[1] = min(row.values())
        table[bucket] = row
    return Measured(table, frozenset(guessed))


def _measured_engine(engine: RawEngine, clock: Clock) -> Measured:
    """At its usual size, one row and as many as it takes; more numbers cost in proportion until they were run once."""
    usual = engine.example()
    engine.infer(usual)
    most = max(1, engine.max_batch)
    row: dict[int, float] = {}
    for batch in sorted({1, most}):
        expected = row.get(1, 0.0) * batch
        if expected > WORTH_MS:
            row[batch] = expected
            continue
        tensors = engine.example(batch)
        start = clock.now()
        engine.infer(tensors)
        row[batch] = max(LEAST_MS, 1e3 * (clock.now() - start))
    row[1] = min(row.values())
    size = size_of(usual)
    table = {edge: {batch: ms * max(1.0, edge / size) for batch, ms in row.items()} for edge in INFER.buckets}
    own = min(edge for edge in INFER.buckets if edge >= min(size, max(INFER.buckets)))
    table[own] = row
    return Measured(table, frozenset(INFER.buckets) - {own})


@contextmanager
def _runs(capability: Capability, model: Any, language: str) -> Iterator[dict[Task, Callable[[int, int], None]]]:
    context = Context(language=language)
    if capability is Capability.EMBED:
        yield {EMBED: lambda bucket, batch: _raise(EMBED.run(model, [(_text(bucket),)] * batch))}
    elif capability is Capability.UNDERSTAND:
        yield {UNDERSTAND: lambda bucket, batch: _raise(UNDERSTAND.run(model, [(_text(bucket), context)] * batch))}
    elif capability is Capability.DETECT:
        stream = model.start(DetectRequest(), context)

        def opened(_bucket: int, _batch: int) -> None:
            model.start(DetectRequest(), context).close()

        def fed(bucket: int, _batch: int) -> None:
            DETECT_CHUNK.run(model, [(stream, np.zeros(bucket, np.float32))])

        try:
            yield {DETECT: opened, DETECT_CHUNK: fed}
        finally:
            stream.close()
    else:
        yield {}


def _text(characters: int) -> str:
    return (PROBE_TEXT * (characters // len(PROBE_TEXT) + 1))[:characters]


def _raise(values: Any) -> None:
    for value in values:
        if isinstance(value, Exception):
            raise value
