"""Weighted virtual time between tenants, charged in device milliseconds (after VTC, OSDI'24).

A tenant's virtual time is what it was served, divided by its weight; who has least is next. One that was idle is lifted
to where the others are now: having asked nothing for an hour buys no hour of everybody's card.
"""

from collections.abc import Mapping

FORGET_ABOVE = 1024
"""Tenants that are remembered before idle ones are looked through."""

MOST_DEBT_MS = 1000.0
"""How far behind a tenant can be when it comes back: capacity that nobody else wanted is no lasting debt."""


class FairShare:
    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._virtual: dict[str, float] = {}
        self._busy: set[str] = set()
        self._floor = 0.0
        self._look_at = FORGET_ABOVE
        self.active_weight = 0.0
        """Of all tenants that wait now."""

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def virtual(self, tenant: str) -> float:
        return self._virtual.get(tenant, self._floor)

    def is_busy(self, tenant: str) -> bool:
        return tenant in self._busy

    def wake(self, tenant: str) -> None:
        """The tenant has work again: lift it to the present."""
        if tenant in self._busy:
            return
        if len(self._virtual) > self._look_at:
            self._forget()
        self._virtual[tenant] = min(max(self.virtual(tenant), self._floor), self._floor + MOST_DEBT_MS)
        self._busy.add(tenant)
        self.active_weight += self.weight(tenant)

    def rest(self, tenant: str) -> None:
        """The tenant has no work waiting. What it owes is remembered, what it saved is not."""
        if tenant in self._busy:
            self._busy.discard(tenant)
            self.active_weight = self.active_weight - self.weight(tenant) if self._busy else 0.0

    def chosen(self, tenant: str) -> None:
        """Time goes on to the tenant whose turn it is, never back."""
        self._floor = max(self._floor, self.virtual(tenant))

    def charge(self, tenant: str, device_ms: float) -> None:
        """Bill it; a negative amount gives back what was predicted too high."""
        self._virtual[tenant] = self.virtual(tenant) + device_ms / self.weight(tenant)

    def _forget(self) -> None:
        self._virtual = {
            tenant: virtual
            for tenant, virtual in self._virtual.items()
            if tenant in self._busy or virtual > self._floor
        }
        self._look_at = max(FORGET_ABOVE, 2 * len(self._virtual))
