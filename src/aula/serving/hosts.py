"""Models whose engines live in processes of their own: who is told when such a process comes or goes."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, runtime_checkable

from aula.backends.hosting.records import HostChange, HostHealth, HostState
from aula.core.errors import DeviceLostError, ProcessAwayError, ProcessLostError
from aula.serving.places import Place
from aula.serving.threads import tell


@runtime_checkable
class Hosted(Protocol):
    """A session in a process of its own."""

    on_change: Callable[[HostChange], None] | None

    def health(self) -> HostHealth: ...


class Hosts:
    """`changed` hears of a place, in the loop's thread, that its engine's process is gone (False) or there again."""

    def __init__(self, changed: Callable[[Place, bool], None]) -> None:
        self._told = changed

    def watch(self, place: Place, neighbours: Callable[[], Iterable[Place]]) -> None:
        """Once it is loaded. `neighbours` may be made of the same session."""
        loop = asyncio.get_running_loop()
        for session in hosted_sessions(place):
            session.on_change = partial(tell, loop, self._changed, session, neighbours)
        if not all_there(place):  # it went before anybody watched
            self._told(place, False)

    def _changed(self, session: Hosted, neighbours: Callable[[], Iterable[Place]], change: HostChange) -> None:
        if change.state not in (HostState.READY, HostState.WAITING):
            return
        for place in neighbours():
            if any(one is session for one in hosted_sessions(place)):
                self._told(place, change.state is HostState.READY and all_there(place))


def is_gone(error: Exception | None) -> bool:
    """Whoever can ask elsewhere does, at once. A process comes back by itself, also one that was ended since its GPU
    was lost, and nobody loads anything anew; a GPU that this very process lost comes back with it alone."""
    return isinstance(error, (ProcessAwayError, ProcessLostError, DeviceLostError))


def hosted_sessions(place: Place) -> list[Hosted]:
    """A model that is made of sessions names them."""
    return [session for session in getattr(place.model, "sessions", ()) if isinstance(session, Hosted)]


def all_there(place: Place) -> bool:
    return all(session.health().state is HostState.READY for session in hosted_sessions(place))
