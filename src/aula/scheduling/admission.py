"""Who may come in: a tenant's quotas. What they leave is judged by `prediction`.

Everything here costs microseconds, so that a refusal comes at once and its sender can do something else.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from aula.core.errors import SettingsError
from aula.scheduling.tickets import Reason, Refusal

MOST_TENANTS = 4096
"""Whose quotas are remembered while they ask nothing; the one idle longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use; None is no limit. `burst` requests may come at once before `rate` a second holds."""

    rate: float | None = None
    burst: int = 10
    concurrency: int | None = None
    device_ms_a_minute: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "burst", "concurrency", "device_ms_a_minute"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} of a quota is {value}", next_step="make it positive, or leave it out")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What of its rate a tenant has left: `remaining` of `limit` requests, all of them again in `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: float


class _Account:
    """What a tenant has left. Buckets refill as time passes; nothing runs to refill them."""

    __slots__ = ("at", "in_flight", "milliseconds", "requests")

    def __init__(self, quota: Quota, now: float) -> None:
        self.at = now
        self.in_flight = 0
        self.requests = float(quota.burst)
        self.milliseconds = quota.device_ms_a_minute or 0.0

    def refill(self, quota: Quota, now: float) -> None:
        passed = max(0.0, now - self.at)
        self.at = max(self.at, now)
        if quota.rate is not None:
            self.requests = min(float(quota.burst), self.requests + passed * quota.rate)
        if quota.device_ms_a_minute is not None:
            most = quota.device_ms_a_minute
            self.milliseconds = min(most, self.milliseconds + passed * most / 60.0)


class Quotas:
    """`quotas` by tenant; `usual` for everybody else."""

    def __init__(self, quotas: Mapping[str, Quota] | None = None, usual: Quota | None = None) -> None:
        self._quotas = dict(quotas or {})
        self._usual = usual or Quota()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def check(self, tenant: str, now: float) -> Refusal | None:
        """Why the tenant may not send one more now; nothing is spent yet."""
        quota, account = self._open(tenant, now)
        if quota.concurrency is not None and account.in_flight >= quota.concurrency:
            # Which of them ends first nobody knows here; a tenth of a second is a turn's own scale.
            return Refusal(Reason.CONCURRENCY, 0.1)
        if quota.rate is not None and account.requests < 1.0:
            return Refusal(Reason.RATE, (1.0 - account.requests) / quota.rate)
        if quota.device_ms_a_minute is not None and account.milliseconds <= 0.0:
            return Refusal(Reason.DEVICE_TIME, (1.0 - account.milliseconds) * 60.0 / quota.device_ms_a_minute)
        return None

    def allowance(self, tenant: str, now: float) -> Allowance | None:
        """None without a limit of its rate."""
        quota, account = self._open(tenant, now)
        if quota.rate is None:
            return None
        missing = max(0.0, quota.burst - account.requests)
        return Allowance(quota.burst, max(0, int(account.requests)), missing / quota.rate)

    def enter(self, tenant: str, now: float) -> None:
        _, account = self._open(tenant, now)
        account.in_flight += 1
        account.requests -= 1.0

    def leave(self, tenant: str) -> None:
        self._accounts[tenant].in_flight -= 1

    def charge(self, tenant: str, device_ms: float) -> None:
        account = self._accounts.get(tenant)
        if account is not None:
            account.milliseconds -= device_ms

    def _open(self, tenant: str, now: float) -> tuple[Quota, _Account]:
        quota = self._quotas.get(tenant, self._usual)
        account = self._accounts.get(tenant)
        if account is None:
            self._forget_one()
            account = self._accounts[tenant] = _Account(quota, now)
        else:
            self._accounts.move_to_end(tenant)
        account.refill(quota, now)
        return quota, account

    def _forget_one(self) -> None:
        if len(self._accounts) < MOST_TENANTS:
            return
        idle = next((name for name, account in self._accounts.items() if not account.in_flight), None)
        if idle is not None:
            del self._accounts[idle]
