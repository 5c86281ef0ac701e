"""Who used how much of late: decayed sums of device time by tenant, bounded in number."""

from aula.core.clock import Clock

HALF_LIFE_S = 60.0
MOST_TENANTS = 1024
SHOWN = 10
"""Labels of a metric are kept for ever by whoever stores them: the ten largest by name are enough to find a glutton."""
REST = "other"


class Usage:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used: dict[str, float] = {}
        self._at = clock.now()

    def add(self, tenant: str, device_ms: float) -> None:
        if self._clock.now() - self._at >= 1.0:
            self._decay()
        self._used[tenant] = self._used.get(tenant, 0.0) + device_ms
        if len(self._used) > MOST_TENANTS:
            self._decay()
            kept = sorted(self._used.items(), key=lambda item: -item[1])[: MOST_TENANTS // 2]
            self._used = dict(kept)

    def shares(self) -> dict[str, float]:
        """The largest by name, what is left as `other`; they sum to 1, or there are none."""
        self._decay()
        total = sum(self._used.values())
        if total <= 0.0:
            return {}
        ordered = sorted(self._used.items(), key=lambda item: -item[1])
        shares = {tenant: used / total for tenant, used in ordered[:SHOWN]}
        if rest := sum(used for _, used in ordered[SHOWN:]):
            shares[REST] = shares.get(REST, 0.0) + rest / total
        return shares

    def _decay(self) -> None:
        now = self._clock.now()
        left = 0.5 ** (max(0.0, now - self._at) / HALF_LIFE_S)
        self._at = max(self._at, now)
        self._used = {tenant: used * left for tenant, used in self._used.items() if used * left > 1e-3}
