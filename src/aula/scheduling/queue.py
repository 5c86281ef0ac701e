"""Who is next: tiers by least share, tenants by fairness, and inside a tenant the earliest deadline.

A lane holds what can share a batch: one tier, one route, one bucket, the same rungs left to try. Nothing is dug
out of a heap: a cancelled ticket, or a tenant whose virtual time has moved on, is noticed when it comes up.
"""

import heapq
from collections.abc import Callable, Mapping
from itertools import count

from aula.core.errors import InputError, SettingsError
from aula.scheduling.fairness import FairShare
from aula.scheduling.routes import Route
from aula.scheduling.tickets import State, Ticket

LaneKey = tuple[Route, int, int]
"""`Ticket.lane`"""
"""Route, bucket, and the index of the first rung that may still be tried."""

Runnable = Callable[[Ticket], bool]

LEAST_SHARES: Mapping[str, float] = {"question": 0.5, "caption": 0.15, "vision": 0.1, "batch": 0.05}
"""Of the device's time. What is left over goes to the first tier that has work."""


class _Line:
    """One tenant's tickets in one lane, earliest deadline first."""

    __slots__ = ("at", "heap", "live")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Ticket]] = []
        self.live = 0
        self.at = 0.0
        """Virtual time of its one valid entry in the lane's order."""

    def head(self) -> Ticket:
        while self.heap[0][2].state is not State.WAITING:
            heapq.heappop(self.heap)
        return self.heap[0][2]

    def compact(self) -> None:
        """Cancelled tickets with late deadlines would else be kept as long as earlier ones keep coming."""
        if len(self.heap) > 2 * self.live + 16:
            self.heap = [entry for entry in self.heap if entry[2].state is State.WAITING]
            heapq.heapify(self.heap)


class _Lane:
    __slots__ = ("length", "lines", "order")

    def __init__(self) -> None:
        self.lines: dict[str, _Line] = {}
        self.order: list[tuple[float, str]] = []
        self.length = 0


class TierQueue:
    """The tickets of one tier. `credit_ms` is what the device owes it of its least share."""

    def __init__(self, name: str, share: float, fair: FairShare) -> None:
        self.name = name
        self.share = share
        self.fair = fair
        self.credit_ms = 0.0
        self.length = 0
        self.backlog_ms = 0.0
        self.tenant_length: dict[str, int] = {}
        self.tenant_backlog_ms: dict[str, float] = {}
        self._lanes: dict[LaneKey, _Lane] = {}
        self._order = count()

    def push(self, ticket: Ticket) -> None:
        tenant = ticket.tenant
        self.fair.wake(tenant)
        lane = self._lanes.setdefault(ticket.lane, _Lane())
        line = lane.lines.get(tenant)
        if line is None:
            line = lane.lines[tenant] = _Line()
            line.at = self.fair.virtual(tenant)
            heapq.heappush(lane.order, (line.at, tenant))
        heapq.heappush(line.heap, (ticket.deadline, next(self._order), ticket))
        line.live += 1
        lane.length += 1
        self.length += 1
        self.backlog_ms += ticket.unit_ms
        self.tenant_length[tenant] = self.tenant_length.get(tenant, 0) + 1
        self.tenant_backlog_ms[tenant] = self.tenant_backlog_ms.get(tenant, 0.0) + ticket.unit_ms

    def leave(self, ticket: Ticket) -> None:
        """The ticket, whose state is no longer waiting, is out of every count."""
        tenant, key = ticket.tenant, ticket.lane
        lane = self._lanes[key]
        line = lane.lines[tenant]
        line.live -= 1
        lane.length -= 1
        self.length -= 1
        self.backlog_ms = self.backlog_ms - ticket.unit_ms if self.length else 0.0
        self.tenant_length[tenant] -= 1
        self.tenant_backlog_ms[tenant] -= ticket.unit_ms
        if line.live:
            line.compact()
        else:
            del lane.lines[tenant]
            if not lane.lines:
                del self._lanes[key]
        if not self.tenant_length[tenant]:
            del self.tenant_length[tenant], self.tenant_backlog_ms[tenant]
            self.fair.rest(tenant)

    def charge(self, tenant: str, device_ms: float) -> None:
        self.fair.charge(tenant, device_ms)
        if device_ms < 0 and tenant in self.tenant_length:
            # Its entries in the lanes stand too far back now; entries that stand too far ahead mend themselves.
            for lane in self._lanes.values():
                line = lane.lines.get(tenant)
                if line is not None and self.fair.virtual(tenant) < line.at:
                    line.at = self.fair.virtual(tenant)
                    heapq.heappush(lane.order, (line.at, tenant))

    def lane_length(self, key: LaneKey) -> int:
        lane = self._lanes.get(key)
        return lane.length if lane else 0

    def head(self, key: LaneKey) -> Ticket | None:
        """Whose turn it is in this lane."""
        lane = self._lanes.get(key)
        if lane is None:
            return None
        while True:
            virtual, tenant = lane.order[0]
            present = self.fair.virtual(tenant)
            line = lane.lines.get(tenant)
            if line is None or virtual != line.at:
                heapq.heappop(lane.order)
            elif virtual < present:
                line.at = present
                heapq.heapreplace(lane.order, (present, tenant))
            else:
                return line.head()

    def next(self, runnable: Runnable | None = None) -> Ticket | None:
        """Whose turn it is in any lane whose head is `runnable`: least virtual time, then the earliest deadline."""
        best: tuple[float, float] | None = None
        chosen = None
        for key in self._lanes:
            head = self.head(key)
            if head is not None and (runnable is None or runnable(head)):
                rank = (self.fair.virtual(head.tenant), head.deadline)
                if best is None or rank < best:
                    best, chosen = rank, head
        return chosen

    def waiting(self) -> list[Ticket]:
        return [
            ticket
            for lane in self._lanes.values()
            for line in lane.lines.values()
            for _, _, ticket in line.heap
            if ticket.state is State.WAITING
        ]


class Queue:
    """All tiers, first the one that gets what is left over."""

    def __init__(self, shares: Mapping[str, float] = LEAST_SHARES, weights: Mapping[str, float] | None = None) -> None:
        if not shares or any(share <= 0 for share in shares.values()) or sum(shares.values()) > 1.0 + 1e-9:
            raise SettingsError(
                f"least shares of tiers must be positive and sum to at most 1: {dict(shares)}",
                next_step="lower some of them",
            )
        if any(not 0 < weight < float("inf") for weight in (weights or {}).values()):
            raise SettingsError("the weight of a tenant must be positive", next_step="use 1 for an ordinary class")
        self.tiers = {name: TierQueue(name, share, FairShare(weights)) for name, share in shares.items()}

    def tier(self, name: str) -> TierQueue:
        try:
            return self.tiers[name]
        except KeyError:
            raise InputError(f"there is no tier {name!r}", available=list(self.tiers), next_step="use one") from None

    def bill(self, tenant: str, device_ms: float) -> None:
        """Charge a tenant in every tier, so that its questions count when it sends captions beside others'.

        Each tier keeps its own times: who waits long in a tier of a small share gains no right to a burst in another.
        """
        for tier in self.tiers.values():
            tier.charge(tenant, device_ms)

    @property
    def length(self) -> int:
        return sum(tier.length for tier in self.tiers.values())

    def choose(self, runnable: Runnable | None = None) -> tuple[TierQueue, bool] | None:
        """The tier whose turn it is, and whether it is served out of what is left over."""
        busy = [tier for tier in self.tiers.values() if tier.length and (runnable is None or tier.next(runnable))]
        if not busy:
            return None
        owed = max(busy, key=lambda tier: tier.credit_ms)
        return (owed, False) if owed.credit_ms > 0 else (busy[0], True)

    def charge(self, parts: Mapping[str, float], owed: str | None) -> None:
        """Bill tiers for a batch: each earns its least share of it, and the one that it was owed to pays its own part.

        Work that was served as spare, or filled places that would have been empty, is held against no tier. An idle
        tier earns only until it owes nothing, so that it saves nothing up.
        """
        total = sum(parts.values())
        for tier in self.tiers.values():
            paid = parts.get(tier.name, 0.0) if tier.name == owed else 0.0
            tier.credit_ms += tier.share * total - paid
            if not tier.length:
                tier.credit_ms = min(tier.credit_ms, 0.0)

    def share_now(self, name: str) -> float:
        """The part of the device that a tier can count on while the others that wait go on waiting."""
        others = sum(tier.share for tier in self.tiers.values() if tier.length and tier.name != name)
        first = next((tier.name for tier in self.tiers.values() if tier.length or tier.name == name), name)
        return 1.0 - others if first == name or not others else self.tiers[name].share
