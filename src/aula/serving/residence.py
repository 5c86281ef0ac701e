"""Which model lives where: loading, making room, and letting go of one that has been replaced."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from aula.core.clock import Clock
from aula.core.errors import AulaError, DeviceMemoryError
from aula.core.telemetry import LOADS, Telemetry
from aula.serving.budget import Budget
from aula.serving.costs import Measured
from aula.serving.hosts import Hosts
from aula.serving.places import Place, Unloadable
from aula.serving.tasks import Task
from aula.serving.threads import WorkerThread

Learn = Callable[[str, str, Mapping[Task, Measured]], None]


class Residence:
    """Rungs by ladder and name. `learn` hears what a model costs that serves from now on."""

    def __init__(
        self,
        places: Sequence[Place],
        budget: Budget,
        clock: Clock,
        telemetry: Telemetry,
        learn: Learn,
        hosts: Hosts,
    ) -> None:
        self.places = {(place.ladder, place.name): place for place in places}
        self._budget = budget
        self._budget.places += places
        self._clock = clock
        self._telemetry = telemetry
        self._learn = learn
        self._hosts = hosts

    def serves(self, place: Place) -> bool:
        """False where another has its name, or it has not come to it yet."""
        return self.places.get((place.ladder, place.name)) is place

    def needs_room(self, place: Place) -> bool:
        return self._budget.need(place) > 0

    async def make_room(self, place: Place) -> None:
        """Put idle models away until the place's own would fit. Raises DeviceMemoryError where it never would."""
        if not self.needs_room(place):
            return
        victims = self._budget.reserve(place, await place.thread.call(self._budget.read))
        for victim in [one for group in victims for one in group]:
            model = victim.unload()
            if hasattr(model, "close"):
                await victim.thread.call(close_quietly, model)

    async def load(self, place: Place) -> AulaError | None:
        """Load the model now, or say why it cannot be. Raises SettingsError and StorageError."""

        def work() -> Mapping[Task, Measured]:
            return place.load(self._clock) if place.model is None else {}

        thread = place.thread
        place.running += 1  # nobody may put away meanwhile what it may be made of
        try:
            await self.make_room(place)
            self.loaded(place, await thread.call(work))
            return None
        except Unloadable as error:
            failure = error.error
        except DeviceMemoryError as error:
            failure = error
        finally:
            if place.thread is thread:
                place.running -= 1
        self.not_loaded(place, failure)
        return failure

    def loaded(self, place: Place, measured: Mapping[Task, Measured]) -> None:
        if not measured:
            return  # it was there before
        place.loaded()
        place.measured = measured
        place.holds_bytes = self._budget.need(place)
        self._telemetry.add(LOADS, place.capability, place.name, "ok")
        self._hosts.watch(place, self.places.values)
        if self.serves(place):
            self._learn(place.ladder, place.name, measured)

    def not_loaded(self, place: Place, error: AulaError) -> None:
        place.broke(error)
        place.holds_bytes = 0
        self._telemetry.add(LOADS, place.capability, place.name, "failed")

    def prepare(self, new: Place) -> None:
        """It will be tried beside the others, and counts against the memory meanwhile."""
        new.is_leaving = True
        self._budget.places.append(new)

    def replace(self, old: Place, new: Place) -> None:
        """From now on `new` serves under the rung's name; `old` goes when its last batch and stream have ended."""
        new.is_leaving = False
        self.places[new.ladder, new.name] = new
        self._learn(new.ladder, new.name, new.measured)
        self.let_go(old)

    def withdraw(self, new: Place) -> None:
        """It was tried, and must not serve."""
        self._budget.places.remove(new)

        def put_away() -> None:
            close_quietly(new.unload())  # in its thread, behind a load that may still be under way

        if not new.thread.is_ending:
            new.thread.post(put_away)
            new.thread.stop()

    def abandon(self, lost: WorkerThread, fresh: WorkerThread) -> None:
        """What lived in the lost thread is gone, streams and all; whoever serves there begins anew in another."""
        for place in [one for one in self._budget.places if one.thread is lost]:
            place.unload()
            place.thread, place.running, place.streams = fresh, 0, 0
            if not self.serves(place):
                self._budget.places.remove(place)

    def renew(self, place: Place) -> None:
        """Its canary failed: a sticky error ends only with the model, so let the next canary load it anew."""
        if not self.serves(place) or not place.is_idle or place.model is None:
            return
        if all(
            other.model is None for other in self._budget.places if other.thread is place.thread and other is not place
        ):
            self._close(place)
        else:
            place.unload()  # others may be made of it; it goes with the last of them

    def stream_closed(self, place: Place) -> None:
        place.streams -= 1
        self.let_go(place)

    def let_go(self, place: Place) -> None:
        """Close the model of a place that has been replaced, once nothing runs on it."""
        if self.serves(place) or not place.is_idle or place not in self._budget.places:
            return
        self._budget.places.remove(place)
        # Also such as have been replaced, and serve a last stream.
        neighbours = [other for other in self._budget.places if other.thread is place.thread]
        if all(other.model is None for other in neighbours):
            self._close(place)  # else its model may be part of theirs
        if not neighbours:
            place.thread.stop()

    def _close(self, place: Place) -> None:
        model = place.unload()
        if hasattr(model, "close"):
            place.thread.post(partial(close_quietly, model))


def close_quietly(model: Any) -> None:
    with suppress(Exception):  # nobody is left to be told
        if hasattr(model, "close"):
            model.close()
