"""Who stands at the door, and what he may ask for."""

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.requests import HTTPConnection

from aula.core.clock import Clock
from aula.core.errors import InputError, NotAllowedError
from aula.core.types import Context

ANYTHING = "any"
"""The ability that every caller has: to be told what there is."""
ABILITIES = ("transcribe", "speak", "embed", "ask", "infer", "teach", "operate", "delegate")
TIERS = ("question", "caption", "vision", "batch")
"""The most urgent first."""
TENANT_HEADER, TIER_HEADER, DEADLINE_HEADER = "x-aula-tenant", "x-aula-tier", "x-aula-deadline-ms"
TENANT_PATTERN = "^[A-Za-z0-9_.-]{1,128}$"
_TENANT = re.compile(TENANT_PATTERN)
DEPARTURES = "aula.departures"
"""Where a request's scope keeps what is called when it has ended; only whoever serves HTTP puts it there."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a key names. `abilities`: the doors and capabilities that he may use, "*" for all: "transcribe",
    "speak", "embed", "ask" (the course assistant), "infer" (engines as they are), "teach", "operate", and
    "delegate" (to name another tenant by a header)."""

    tenant: str = "local"
    tier: str = "question"
    abilities: frozenset[str] = frozenset({"*"})
    key: str | None = None
    """The public name of the key, never the secret."""

    def may(self, ability: str) -> bool:
        return ability == ANYTHING or "*" in self.abilities or ability in self.abilities

    def context(self, language: str, deadline: float | None = None) -> Context:
        return Context(language=language, tenant=self.tenant, tier=self.tier, deadline=deadline)

    def at(self, connection: HTTPConnection, ability: str) -> "Caller":
        """He as the request's headers want him: a tier that is no more urgent than his own, and another tenant where
        he may. Raises NotAllowedError, and InputError for headers that name nothing."""
        if not self.may(ability):
            raise NotAllowedError(
                f"the key {self.key!r} does not open this door",
                available=sorted(self.abilities),
                next_step=f"ask for a key with the ability {ability!r}",
            )
        tenant = header(connection, TENANT_HEADER, self.tenant)
        tier = header(connection, TIER_HEADER, self.tier)
        if tenant != self.tenant and not self.may("delegate"):
            raise NotAllowedError(
                f"the key {self.key!r} is of {self.tenant!r}, and may not speak for others",
                next_step=f"leave the header {TENANT_HEADER} out",
            )
        if tenant != self.tenant:
            tenant_named(tenant)
        if tier not in TIERS:
            raise InputError(f"{TIER_HEADER} is {tier[:40]!r}", available=TIERS, next_step="name one of these")
        if TIERS.index(tier) < TIERS.index(self.tier):
            raise NotAllowedError(
                f"the key {self.key!r} is for {self.tier!r}, and {tier!r} is more urgent",
                available=TIERS[TIERS.index(self.tier) :],
                next_step="name one of these",
            )
        return self if (tenant, tier) == (self.tenant, self.tier) else replace(self, tenant=tenant, tier=tier)


def tenant_named(name: object) -> str:
    """What whoever speaks for others may call them: it becomes a label of metrics. Raises InputError."""
    if not isinstance(name, str) or not _TENANT.fullmatch(name):
        raise InputError(
            f"the tenant is {str(name)[:40]!r}", next_step="name it in at most 128 of these: A-Z a-z 0-9 _ . -"
        )
    return name


class Doorman(Protocol):
    """Tells callers apart before any work is done for them."""

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        """Whoever the request's key names: `Authorization: Bearer`, or for a browser's WebSocket the subprotocol
        `openai-insecure-api-key.<secret>`. Raises the errors of keys (missing, wrong, revoked, without that
        ability) and OverloadError for one beyond its rate."""
        ...

    def again(self, caller: Caller) -> None:
        """One more question of somebody who was admitted and stayed. Raises KeyAbsentError and KeyRefusedError where
        he would not come in any more, and OverloadError for one beyond his rate."""
        ...


class EveryoneIsLocal:
    """No keys: for one machine's own use, on loopback alone."""

    is_open = True

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        return noted(connection, Caller().at(connection, ability))

    def again(self, caller: Caller) -> None:
        """Anybody may."""


def deadline_of(connection: HTTPConnection, clock: Clock) -> float | None:
    """The moment until which the caller waits, from the milliseconds that he names. Raises InputError."""
    told = header(connection, DEADLINE_HEADER)
    if not told:
        return None
    try:
        milliseconds = float(told)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < 1e9:
        raise InputError(f"{DEADLINE_HEADER} is {told[:40]!r}", next_step="give milliseconds from now, like 500")
    return clock.now() + milliseconds / 1000


def header(connection: HTTPConnection, name: str, otherwise: str = "") -> str:
    """The first of that name (in small letters): a look at the list, where Starlette would make an object first."""
    wanted = name.encode("latin-1")
    for key, value in connection.scope["headers"]:
        if key == wanted:
            return str(value, "latin-1")
    return otherwise


def noted(connection: HTTPConnection, caller: Caller) -> Caller:
    """The caller, remembered for the log: tenant and key's name."""
    connection.scope["aula.caller"] = caller
    return caller


def when_gone(scope: Mapping[str, Any], call: Callable[[], Awaitable[None] | None]) -> bool:
    """Call it, and await what it gives, when the request has ended, however it ended; False where nobody tells when
    that is."""
    departures = scope.get(DEPARTURES)
    if departures is None:
        return False
    departures.append(call)
    return True
