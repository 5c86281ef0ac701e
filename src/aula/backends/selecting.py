"""Several engines of one graph as one session: each run goes to the engine with the least room that still holds it."""

import contextlib
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors
from aula.backends.sizes import Bounds
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class SelectingSession(Session):
    """`bounds` and `openers` are by profile; an engine is opened when the first run needs it. Graphs with states have
    them in one engine, and are opened for one profile."""

    keeps_states = True

    def __init__(self, bounds: Mapping[str, Bounds], openers: Mapping[str, Callable[[], Session]]) -> None:
        self._bounds = dict(sorted(bounds.items(), key=lambda item: _room(item[1])))
        self._openers = openers
        self._sessions: dict[str, Session] = {}
        first = self._session(next(iter(self._bounds)))
        self.backend = first.backend
        # Sizes that differ between the engines are free here; each engine checks its own.
        inputs = [
            TensorSpec(spec.name, spec.dtype, self._shared(spec.name, place, spec.shape))
            for place, spec in enumerate(first.inputs)
        ]
        outputs = [
            TensorSpec(spec.name, spec.dtype, tuple(f"free_{axis}" for axis in range(len(spec.shape))))
            for spec in first.outputs
        ]
        super().__init__(inputs, outputs, SessionOptions())

    def precisions(self) -> dict[str, int]:
        """Of the engines that are open."""
        counts: dict[str, int] = {}
        for session in self._sessions.values():
            for name, count in session.precisions().items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def _accepted(self, tensors: Tensors) -> Tensors:
        """What one of the engines would take: they narrow whole numbers alike."""
        return next(iter(self._sessions.values()))._accepted(tensors)

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        for profile, bounds in self._bounds.items():
            if _holds(bounds, tensors):
                return self._session(profile).run(tensors)
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
        raise BackendError(
            f"no profile of this engine holds {sizes}",
            available=[f"{profile}: {_described(bounds)}" for profile, bounds in self._bounds.items()],
            next_step="pad or cut the arrays, or build for these sizes too: aula build MODEL --profile …",
        )

    def _session(self, profile: str) -> Session:
        if profile not in self._sessions:
            self._sessions[profile] = self._openers[profile]()
        return self._sessions[profile]

    def _close(self) -> None:
        with contextlib.ExitStack() as closing:  # one that fails keeps no other open
            for session in self._sessions.values():
                closing.callback(session.close)

    def _shared(self, name: str, place: int, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        limits = [bounds.get(name, ()) for bounds in self._bounds.values()]
        return tuple(
            limits[0][axis][0] if len({known[axis] for known in limits}) == 1 and len(set(limits[0][axis])) == 1
            else f"free_{place}_{axis}"
            for axis in range(len(shape))
        )  # fmt: skip


def _room(bounds: Bounds) -> int:
    return prod(greatest for limits in bounds.values() for _, greatest in limits)


def _holds(bounds: Bounds, tensors: Tensors) -> bool:
    return all(
        len(limits) == tensors[name].ndim
        and all(least <= size <= greatest for size, (least, greatest) in zip(tensors[name].shape, limits, strict=True))
        for name, limits in bounds.items()
        if name in tensors
    )


def _described(bounds: Bounds) -> str:
    return "; ".join(
        f"{name} " + "x".join(str(a) if a == b else f"{a}-{b}" for a, b in limits) for name, limits in bounds.items()
    )
