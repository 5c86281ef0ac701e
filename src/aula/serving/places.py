"""A rung with its thread, its model and its history."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import AulaError, EngineError, NoRungError, SettingsError, StorageError
from aula.core.types import Capability, RungInfo
from aula.serving.costs import Measured, measure
from aula.serving.tasks import Task
from aula.serving.threads import WorkerThread


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to serve a capability. `load` runs in the thread named `worker`; rungs on one model share both."""

    info: RungInfo
    worker: str
    load: Callable[[], Any]


class Unloadable(Exception):  # noqa: N818 - it carries the error that is told
    """The rung cannot be loaded; the next one may serve."""

    def __init__(self, error: AulaError) -> None:
        super().__init__(str(error))
        self.error = error


class Place:
    """Where a rung's model lives. `unavailable` is why it last could not serve."""

    def __init__(self, rung: Rung, thread: WorkerThread) -> None:
        self.rung = rung
        self.thread = thread
        self.model: Any = None
        self.unavailable: AulaError | None = None
        self.served = 0
        self.failed = 0
        self.streams = 0
        """Open on this model."""

    @property
    def name(self) -> str:
        return self.rung.info.name

    @property
    def capability(self) -> Capability:
        return self.rung.info.capability

    @property
    def language(self) -> str:
        """One that it is sure to know."""
        return "en" if self.rung.info.serves("en") else min(self.rung.info.languages)

    def load(self, clock: Clock) -> dict[Task, Measured]:
        """In its own thread: load the model and run it once. Raises Unloadable, and at once what a user can mend:
        SettingsError and StorageError, which no other rung should hide."""
        try:
            model = self.rung.load()
            measured = measure(self.capability, model, self.language, clock)
        except (SettingsError, StorageError):
            raise
        except AulaError as error:
            raise Unloadable(error) from error
        except Exception as error:  # whatever a foreign library raises, the next rung may still serve
            raise Unloadable(
                EngineError(
                    f"{self.name} failed to load: {type(error).__name__}: {error}", next_step="run: aula doctor"
                )
            ) from error
        self.model = model
        return measured

    def loaded(self) -> None:
        self.unavailable = None

    def broke(self, error: AulaError) -> None:
        self.failed += 1
        self.unavailable = error


def no_rung(places: Sequence[Place], capability: Capability, retry_after_s: float | None) -> NoRungError:
    """The refusal where every rung that could serve is out of order, with the reason of each."""
    reasons = "; ".join(f"{place.name} ({place.unavailable or 'out of order'})" for place in places)
    error = NoRungError(f"nothing on this machine can {capability} now: {reasons}", next_step="run: aula doctor")
    return error if retry_after_s is None else error.refused("no_rung", retry_after_s)
