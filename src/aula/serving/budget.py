"""Memory of each device: what is loaded there, what a load would need, and who makes room for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aula.core.errors import DeviceMemoryError
from aula.serving.memory import Memory, Reader, read_memory
from aula.serving.places import Place

FULL = 0.92
"""Part of a device that may be used: what is left is for activations, and for others on the machine."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """`limit` and `used` are None where the machine does not tell; `loaded`: rungs and the bytes that each holds."""

    device: str
    limit: int | None
    used: int | None
    loaded: tuple[tuple[str, int], ...]


class Budget:
    """The books of all groups. `limits` in bytes by device, `gpu` for each of them; where there is none, FULL of what
    the device has."""

    def __init__(self, limits: Mapping[str, int] | None = None, read: Reader = read_memory) -> None:
        self.places: list[Place] = []
        self.read = read
        self._limits = dict(limits or {})

    def need(self, place: Place) -> int:
        """What it says that it needs, or took when it was loaded before; 0 where nobody knows."""
        return place.rung.needs() if place.rung.needs is not None else place.took_bytes

    def reserve(self, place: Place, memories: Sequence[Memory]) -> list[list[Place]]:
        """Enter the load into the books, and say who must be put away for it first: idle threads with all that lives
        there, those of the lowest tier and longest idle before others. Raises DeviceMemoryError where that is not
        enough, changing nothing."""
        need = self.need(place)
        device = place.rung.device
        room = self._room(device, memories)
        victims: list[list[Place]] = []
        if room is not None:
            idle = self._idle(place)
            while room < need and idle:
                victims.append(idle.pop(0))
                room += sum(one.holds_bytes for one in victims[-1])
            if room < need:
                raise self._full(place, need, room)
        place.holds_bytes = need
        return victims

    def report(self, memories: Sequence[Memory]) -> tuple[DeviceLoad, ...]:
        devices = dict.fromkeys([*(one.device for one in memories), *(place.rung.device for place in self.places)])
        used = {one.device: one.used for one in memories}
        return tuple(
            DeviceLoad(
                device,
                self._limit(device, memories),
                used.get(device),
                tuple((one.name, one.holds_bytes) for one in self._there(device)),
            )
            for device in devices
        )

    def _there(self, device: str) -> list[Place]:
        """What is loaded, or about to be."""
        return [one for one in self.places if one.rung.device == device and (one.model is not None or one.holds_bytes)]

    def _limit(self, device: str, memories: Sequence[Memory]) -> int | None:
        total = next((int(FULL * one.total) for one in memories if one.device == device), None)
        own = self._limits.get(device) or self._limits.get(device.rstrip("0123456789"))
        return total if not own else own if total is None else min(own, total)

    def _room(self, device: str, memories: Sequence[Memory]) -> int | None:
        """The less of what the books leave and what the machine has; None where neither says."""
        limit = self._limit(device, memories)
        if limit is None:
            return None
        books = limit - sum(one.holds_bytes for one in self.places if one.rung.device == device)
        machine = next((int(FULL * one.total) - one.used for one in memories if one.device == device), books)
        return min(books, machine)

    def _idle(self, place: Place) -> list[list[Place]]:
        """By thread, since models of one thread may be parts of one another."""
        by_thread: dict[int, list[Place]] = {}
        for one in self.places:
            by_thread.setdefault(id(one.thread), []).append(one)
        groups = [
            group
            for group in by_thread.values()
            if place not in group
            and not any(one.is_leaving for one in group)
            and any(one.model is not None and one.rung.device == place.rung.device for one in group)
            and all(one.is_idle for one in group)
        ]
        # The most urgent work that a thread did last decides; then who has been idle longest.
        return sorted(groups, key=lambda group: (-min(one.tier for one in group), max(one.used_at for one in group)))

    def _full(self, place: Place, need: int, room: int) -> DeviceMemoryError:
        device, mib = place.rung.device, 2**20
        left = f"{max(0, room) / mib:,.0f} MiB are left"
        return DeviceMemoryError(
            f"loading {place.name} needs {need / mib:,.0f} MiB on {device}, where {left}",
            available=[f"{one.name} {one.holds_bytes / mib:,.0f} MiB" for one in self._there(device)],
            next_step="take a rung out of a ladder (ladder.…), raise memory.host_mb or memory.gpu_mb, or free memory",
        )
