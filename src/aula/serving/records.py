"""What a runtime tells of itself."""

from dataclasses import dataclass

from aula.core.errors import AulaError
from aula.core.types import Capability, RungInfo
from aula.scheduling.statistics import SchedulerStatistics


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
    name: str
    capability: Capability
    served: int
    failed: int
    state: str
    unavailable: str | None


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
