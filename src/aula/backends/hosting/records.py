"""How an engine is hosted, and what is told of it."""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING

from aula.core.errors import SettingsError

if TYPE_CHECKING:
    from aula.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Hosting:
    """How patient the host is with its engine's process.

    `hang_s`: a run longer than this is a hang, and the process is ended. `load_s`: so is a load longer than that.
    `memory_bytes`: the most address space (RLIMIT_AS), 0 for no limit; CUDA reserves far more than it uses, so give
    none to an engine on a GPU. `close_s`: how long a process may take to end politely.
    A process that dies is started anew at once if it had been whole for `settled_s`; each death sooner than that
    doubles the wait, from `wait_s` to `longest_wait_s`. `spare` keeps a second process that has imported the backend
    and waits: 30 to 60 MB for a quarter of the time without an engine.
    """

    hang_s: float = 30.0
    load_s: float = 300.0
    close_s: float = 5.0
    memory_bytes: int = 0
    settled_s: float = 0.5
    wait_s: float = 0.1
    longest_wait_s: float = 30.0
    spare: bool = False

    def __post_init__(self) -> None:
        for name in ("hang_s", "load_s", "close_s", "wait_s", "longest_wait_s"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value}, which is no time to wait", next_step="give seconds above 0")
        if not (isfinite(self.settled_s) and self.settled_s >= 0):
            raise SettingsError(f"settled_s is {self.settled_s}", next_step="give seconds, 0 or more")
        if self.wait_s > self.longest_wait_s:
            raise SettingsError(
                f"the first wait ({self.wait_s} s) is longer than the longest ({self.longest_wait_s} s)",
                next_step="raise longest_wait_s",
            )
        if self.memory_bytes < 0:
            raise SettingsError(f"memory_bytes is {self.memory_bytes}", next_step="give bytes, or 0 for no limit")


def hosting_for(settings: "Settings", device: str) -> Hosting | None:
    """What the operator's setting `isolate` says of engines for a "cpu" or a "gpu"; None: in this process."""
    return Hosting(spare=True) if settings.text("isolate") in ("always", device) else None


class HostState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class HostChange:
    """The process came, went, or is waited for: `cause` in words."""

    moment: float
    state: HostState
    cause: str


@dataclass(frozen=True, slots=True)
class HostHealth:
    """`since` and `retry_at` are moments of the clock; `retry_at` is when a waiting host starts its process anew. `pid`
    is 0 where there is none. `last_death` tells how the last process ended, "" before the first death."""

    state: HostState
    since: float
    pid: int
    retry_at: float | None
    last_death: str


@dataclass(frozen=True, slots=True)
class HostStatistics:
    """submitted = answered + refused + failed + lost + late + in flight.

    `refused`: nothing was tried, since the process was away or the states were lost. `failed`: the engine itself
    refused the run. `lost`: the process ended with it. `late`: the deadline passed. `starts` counts processes, `deaths`
    those that ended unasked, `hung` the deaths for want of an answer. `shared_bytes` is memory shared with the process.
    """

    submitted: int
    answered: int
    refused: int
    failed: int
    lost: int
    late: int
    in_flight: int
    starts: int
    deaths: int
    hung: int
    shared_bytes: int
