"""Guests of a class: those who have no key, and bring the code that their teacher shows.

A code is ten of 32 letters and digits, so that it can be read from a wall and typed: 50 random bits. Whoever guessed
two thousand a second for eight hours would find one of a hundred codes with a chance below one in a hundred thousand.
It opens what the student's page asks and nothing else, ends with its time, by its teacher's word or with the key that
it was made with, and lives in memory alone.
"""

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import time

from starlette.requests import HTTPConnection

from aula.core.clock import Clock
from aula.core.errors import InputError, KeyRefusedError, NotAllowedError, OverloadError
from aula.scheduling.admission import Quota, Quotas
from aula.servers.callers import Caller, Doorman, noted, when_gone
from aula.servers.keys import secret_of

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without I, O, 0 and 1, which are mistaken for others."""
LENGTH = 10
LEAST_SECONDS, MOST_SECONDS = 60, 86_400
DOORS = frozenset({"/pages/me", "/pages/passage", "/v1/realtime"})
QUOTA = Quota(rate=50.0, burst=500, concurrency=500)
"""Of one code: a full lecture hall, and no more."""


_GUEST = "/guest"
"""Behind the name of the key that he was invited with."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """`until`: Unix time."""

    code: str
    until: float


@dataclass(frozen=True, slots=True)
class _Kept:
    invitation: Invitation
    ends: float
    host: Caller


class Guests:
    """A Doorman before another one, who knows keys."""

    def __init__(
        self, doorman: Doorman, clock: Clock, holds: Callable[[str], bool], wall: Callable[[], float] = time
    ) -> None:
        """`holds`: whether the key of that name opens anything still."""
        self._doorman = doorman
        self._clock = clock
        self._holds = holds
        self._wall = wall
        self._kept: dict[bytes, _Kept] = {}
        self._quotas = Quotas(usual=QUOTA)
        self.refused: Counter[str] = Counter()
        """How many came beyond a key's quota or a code's, by the reason: nothing behind the doors hears of them."""

    @property
    def is_open(self) -> bool:
        """Nobody needs a key, and nobody a code."""
        return bool(getattr(self._doorman, "is_open", False))

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        try:
            return self._admitted(connection, ability)
        except OverloadError as error:
            self.refused[str(error.reason)] += 1
            raise

    def _admitted(self, connection: HTTPConnection, ability: str) -> Caller:
        code = _code_of(secret_of(connection))
        if code is None or self.is_open:
            return self._doorman.admit(connection, ability)
        kept = self._find(code)
        guest = Caller(kept.host.tenant, kept.host.tier, frozenset({"ask"}), f"{kept.host.key}{_GUEST}")
        noted(connection, guest)
        if connection.scope["path"] not in DOORS:
            raise NotAllowedError("the code of a class opens its page alone", next_step="ask for a key")
        guest = guest.at(connection, ability)
        self._enter(code, guest)
        if not when_gone(connection.scope, lambda: self._quotas.leave(code)):
            self._quotas.leave(code)
        return noted(connection, guest)

    def again(self, caller: Caller) -> None:
        """A guest stays as long as his host has a code that holds, and asks no faster than all of one code may."""
        try:
            if caller.key is None or not caller.key.endswith(_GUEST):
                self._doorman.again(caller)
                return
            host = caller.key.removesuffix(_GUEST)
            self._forget()
            kept = next((one for one in self._kept.values() if one.host.key == host), None)
            if kept is None or not self._holds(host):
                raise _over()
            code = kept.invitation.code
            self._enter(code, caller)
            self._quotas.leave(code)
        except OverloadError as error:
            self.refused[str(error.reason)] += 1
            raise

    def _enter(self, code: str, guest: Caller) -> None:
        now = self._clock.now()
        refusal = self._quotas.check(code, now)
        if refusal is not None:
            raise refusal.error(guest.tenant)
        self._quotas.enter(code, now)

    def invite(self, host: Caller, seconds: float) -> Invitation:
        """A new code in place of the one that the host's key made before. Raises InputError and NotAllowedError."""
        if self.is_open or host.key is None:
            raise InputError("no key is needed here, and so no code", next_step="give the address of this server alone")
        if not host.may("ask"):
            raise NotAllowedError("this key may not ask, nor let others ask", next_step="ask for a key that may: ask")
        if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
            raise InputError(
                f"a code for {seconds:g} s", next_step=f"give {LEAST_SECONDS} to {MOST_SECONDS} seconds, like 7200"
            )
        self.end(host)
        code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        invitation = Invitation(code, self._wall() + seconds)
        self._kept[_digest(code)] = _Kept(invitation, self._clock.now() + seconds, host)
        return invitation

    def invitation(self, host: Caller) -> Invitation | None:
        """The one that holds now."""
        self._forget()
        return next((one.invitation for one in self._kept.values() if one.host.key == host.key), None)

    def end(self, host: Caller) -> None:
        self._forget()
        self._kept = {digest: one for digest, one in self._kept.items() if one.host.key != host.key}

    def _find(self, code: str) -> _Kept:
        # Looked up by its hash: how long that takes says nothing about the code.
        kept = self._kept.get(_digest(code))
        if kept is None or self._clock.now() >= kept.ends or not self._holds(str(kept.host.key)):
            raise _over()
        return kept

    def _forget(self) -> None:
        now = self._clock.now()
        self._kept = {digest: one for digest, one in self._kept.items() if now < one.ends}


def _over() -> KeyRefusedError:
    return KeyRefusedError("this code is not known here, or its time is over", next_step="ask for a new one")


def _code_of(brought: str | None) -> str | None:
    """A code however it was typed: with hyphens, spaces, in small letters. None for what is none."""
    if brought is None or len(brought) > 2 * LENGTH:
        return None
    code = brought.replace("-", "").replace(" ", "").upper()
    return code if len(code) == LENGTH and set(code) <= set(ALPHABET) else None


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()
