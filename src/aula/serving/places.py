"""A rung with its thread, its model and its history."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import AulaError, EngineError, NoRungError, SettingsError, StorageError
from aula.core.types import Capability, RungInfo
from aula.serving.costs import Measured, measure
from aula.serving.memory import resident_bytes
from aula.serving.records import EngineInfo
from aula.serving.tasks import Task
from aula.serving.threads import WorkerThread


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to serve a capability. `load` runs in the thread named `worker`; rungs on one model share both.

    `device` (host, gpu0, gpu1 …) is where the model lies, `needs` says how many bytes it takes there. `forget` is
    called after models were closed or lost: the next `load` must make new ones. `engine` is what an engine that is
    served as it is takes and gives: rungs of engines of one name stand in one ladder, which is that name's alone.
    `at_once`: how many streams its model serves pass by pass (`Sharing`); others have their thread for themselves.
    """

    info: RungInfo
    worker: str
    load: Callable[[], Any]
    device: str = "host"
    needs: Callable[[], int] | None = None
    forget: Callable[[], None] | None = None
    engine: EngineInfo | None = None
    at_once: int = 1

    @property
    def ladder(self) -> str:
        capability = self.info.capability
        return capability if self.engine is None else f"{capability}.{self.engine.name}"


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
        self.runs = 0
        self.run_s = 0.0
        """Of each request that was in a run, the whole run."""
        self.streams = 0
        """Open on this model."""
        self.running = 0
        """Batches in its thread."""
        self.is_leaving = False
        """It is on trial for a rung's place, or its own is being taken."""
        self.holds_bytes = 0
        self.took_bytes = 0
        """When it was last loaded; kept for the next time."""
        self.measured: Mapping[Task, Measured] = {}
        self.used_at = 0.0
        self.tier = 0
        """Of its last request, counted from the most urgent."""

    @property
    def name(self) -> str:
        return self.rung.info.name

    @property
    def capability(self) -> Capability:
        return self.rung.info.capability

    @property
    def ladder(self) -> str:
        return self.rung.ladder

    @property
    def engine(self) -> EngineInfo | None:
        """What the model that is loaded says, or else what was said of it."""
        return getattr(self.model, "info", self.rung.engine)

    @property
    def language(self) -> str:
        """One that it is sure to know."""
        return "en" if self.rung.info.serves("en") else min(self.rung.info.languages)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.streams

    def load(self, clock: Clock) -> dict[Task, Measured]:
        """In its own thread: load the model and run it once. Raises Unloadable, and at once what a user can mend:
        SettingsError and StorageError, which no other rung should hide."""
        before = resident_bytes()
        try:
            model = self.rung.load()
            try:
                measured = measure(self.capability, model, self.language, clock)
            except BaseException:
                if self.rung.forget is None and hasattr(model, "close"):  # else it may be part of a neighbour's
                    with suppress(Exception):
                        model.close()
                raise
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
        if self.rung.device == "host":
            self.took_bytes = max(0, resident_bytes() - before)
        return measured

    def unload(self) -> Any:
        """The model, which nobody asks any longer; whoever has it closes it in its thread."""
        model, self.model, self.holds_bytes = self.model, None, 0
        if self.rung.forget is not None:
            self.rung.forget()
        return model

    def loaded(self) -> None:
        self.unavailable = None

    def broke(self, error: AulaError) -> None:
        self.failed += 1
        self.unavailable = error


def no_rung(places: Sequence[Place], ladder: str, retry_after_s: float | None) -> NoRungError:
    """The refusal where every rung that could serve is out of order, with the reason of each."""
    reasons = "; ".join(f"{place.name} ({place.unavailable or 'out of order'})" for place in places)
    error = NoRungError(f"nothing on this machine can {ladder} now: {reasons}", next_step="run: aula doctor")
    return error if retry_after_s is None else error.refused("no_rung", retry_after_s)
