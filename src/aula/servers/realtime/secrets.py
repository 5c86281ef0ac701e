"""Ephemeral client secrets: what a page's server hands to a browser, so that no key ever leaves that server.

A secret is `ek_<name>_<secret>`. Only the SHA-256 of its second part is kept, in memory: a restart forgets them all.
Whoever brings one is who asked for it, with the same tenant, tier and abilities, until it expires.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import time

from aula.core.clock import Clock
from aula.servers.callers import Caller
from aula.servers.realtime.errors import JsonObject

PREFIX = "ek_"
USUAL_SECONDS = 600
LEAST_SECONDS, MOST_SECONDS = 10, 7200
MOST_KEPT = 10_000
MOST_OF_A_TENANT = 1_000
_NOBODY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Minted:
    """`value` is shown once; `expires_at` is Unix time in seconds."""

    value: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who stands behind a secret, and the `session` object that it was made for."""

    caller: Caller
    session: JsonObject


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: bytes
    until: float
    bearer: Bearer


class ClientSecrets:
    """Bounded: the oldest of a tenant that asks for too many is forgotten, and no other tenant's."""

    def __init__(self, clock: Clock, wall: Callable[[], float] = time) -> None:
        self._clock = clock
        self._wall = wall
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def mint(self, caller: Caller, session: JsonObject, seconds: int = USUAL_SECONDS) -> Minted:
        self._forget(caller.tenant)
        name, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        bearer = Bearer(caller, session)
        self._kept[name] = _Kept(_digest(secret), self._clock.now() + seconds, bearer)
        return Minted(f"{PREFIX}{name}_{secret}", int(self._wall()) + seconds)

    def find(self, value: str) -> Bearer | None:
        """Who brings it; None for one that nobody minted, or that has expired. Takes as long whatever is wrong."""
        name, _, secret = value.removeprefix(PREFIX).partition("_")
        kept = self._kept.get(name)
        same = hmac.compare_digest(_digest(secret), _NOBODY if kept is None else kept.digest)
        if kept is None or not same or not value.startswith(PREFIX) or self._clock.now() >= kept.until:
            return None
        return kept.bearer

    def _forget(self, tenant: str) -> None:
        now = self._clock.now()
        for name in [name for name, kept in self._kept.items() if now >= kept.until]:
            del self._kept[name]
        own = [name for name, kept in self._kept.items() if kept.bearer.caller.tenant == tenant]
        for name in own[: max(0, len(own) - MOST_OF_A_TENANT + 1)]:
            del self._kept[name]
        while len(self._kept) >= MOST_KEPT:
            self._kept.popitem(last=False)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
