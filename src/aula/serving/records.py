"""What a runtime tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aula.core.errors import AulaError
from aula.core.types import Capability, RungInfo, TensorSpec
from aula.scheduling.statistics import SchedulerStatistics


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine that is served as it is. `platform` is the backend that runs it, "onnx" where that is chosen when it is
    built; `version` the digest of what it was made from. `max_batch`: rows of one run, where the first axis of every
    input and output is the batch; else 1. A free axis is its name in a shape, and `profiles` hold its least and
    greatest size. A dtype is "" while only loading it would tell."""

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    profiles: tuple[Mapping[str, tuple[int, int]], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class RungChanged:
    """A rung was left or came back (`state` open or closed), or an operator chose one (`rung` None: no longer)."""

    moment: float
    capability: Capability
    rung: str | None
    state: str
    cause: str


@dataclass(frozen=True, slots=True)
class RungStatistics:
    """`engine` is the name of one that is served as it is. `runs` share out `served` requests, and `run_s` counts the
    whole of a run for each that was in it."""

    name: str
    capability: Capability
    served: int
    failed: int
    state: str
    unavailable: str | None
    engine: str | None = None
    runs: int = 0
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RungReport:
    """What loading a rung came to: `load_ms` in milliseconds, or the `error` that keeps it from serving."""

    info: RungInfo
    load_ms: float
    error: AulaError | None


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """submitted = answered + refused + failed + cancelled + in_flight. `schedulers` count tickets: a request of many
    texts has many, and so has a stream."""

    submitted: int
    answered: int
    refused: int
    failed: int
    cancelled: int
    in_flight: int
    rungs: tuple[RungStatistics, ...]
    schedulers: tuple[SchedulerStatistics, ...]
