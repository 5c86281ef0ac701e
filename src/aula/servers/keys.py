"""API keys: a file of hashes, and the doorman who reads it.

A secret is `sk-aula-<name>-<256 random bits>`. The file holds its SHA-256 alone: of so many random bits nobody finds
the secret again, and a slow hash, made for passwords that people choose, would only slow down every request.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
from starlette.requests import HTTPConnection

from aula.core.clock import Clock
from aula.core.errors import InputError, KeyAbsentError, KeyRefusedError, SettingsError, StorageError
from aula.core.files import write_atomically
from aula.core.settings import Settings
from aula.scheduling.admission import Quota, Quotas
from aula.servers.callers import ABILITIES, TIERS, Caller, header, noted, when_gone
from aula.servers.logs import log_warning

PREFIX = "sk-aula-"
USUAL_ABILITIES = ("transcribe", "speak", "embed", "ask")
"""What a class needs."""
SUBPROTOCOL = "openai-insecure-api-key."
LONGEST_TENANT = 128
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
"""What a secret without a name is compared with, so that it takes as long as any."""


class Key(msgspec.Struct, frozen=True):
    """`created` and `revoked` in Unix time. `rate`, `burst` and `concurrency` are the key's own; a tenant's, which
    all its keys share, are in tenants.file."""

    name: str
    digest: str
    tenant: str
    created: int
    tier: str = "question"
    abilities: tuple[str, ...] = USUAL_ABILITIES
    rate: float | None = None
    burst: int = 10
    concurrency: int | None = None
    note: str = ""
    revoked: int | None = None

    def quota(self) -> Quota:
        return Quota(self.rate, self.burst, self.concurrency)

    def caller(self) -> Caller:
        return Caller(self.tenant, self.tier, frozenset(self.abilities), self.name)


class _File(msgspec.Struct):
    keys: list[Key] = []


class KeyStore:
    """The file. Whoever writes holds a lock beside it; readers see it whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def from_settings(cls, settings: Settings) -> "KeyStore":
        path = settings.text("serve.keys")
        return cls(Path(path).expanduser() if path else settings.home / "keys.json")

    def read(self) -> tuple[Key, ...]:
        """Raises SettingsError for a file that holds something else, StorageError for one that cannot be read."""
        try:
            return tuple(msgspec.json.decode(self.path.read_bytes(), type=_File).keys)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be read ({error.strerror})", next_step="mend its permissions"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{self.path} holds no keys ({error})",
                next_step="put a copy of it back, or move it away and make new keys",
            ) from error

    def create(
        self,
        tenant: str,
        *,
        tier: str = "question",
        abilities: Iterable[str] = USUAL_ABILITIES,
        quota: Quota | None = None,
        note: str = "",
    ) -> tuple[Key, str]:
        """The new key and its secret, which is told this once. Raises InputError."""
        quota = quota or Quota()
        abilities = tuple(dict.fromkeys(abilities))
        _check(tenant, tier, abilities)
        with self._locked():
            keys = self.read()
            taken = {key.name for key in keys}
            name = next(name for name in iter(lambda: secrets.token_hex(4), "") if name not in taken)
            secret = f"{PREFIX}{name}-{secrets.token_urlsafe(32)}"
            made = Key(
                name,
                digest_of(secret),
                tenant,
                int(time.time()),  # a date for people
                tier,
                abilities,
                quota.rate,
                quota.burst,
                quota.concurrency,
                note,
            )
            self._write((*keys, made))
        return made, secret

    def revoke(self, name: str) -> Key:
        """From then on it opens nothing; its row stays, so that it can be told from one that never was. Raises
        InputError for a name that there is not."""
        with self._locked():
            keys = self.read()
            found = next((key for key in keys if key.name == name), None)
            if found is None:
                raise InputError(
                    f"there is no key {name!r}", available=[key.name for key in keys], next_step="run: aula key list"
                )
            revoked = found if found.revoked else msgspec.structs.replace(found, revoked=int(time.time()))
            self._write([revoked if key is found else key for key in keys])
        return revoked

    def _write(self, keys: Sequence[Key]) -> None:
        raw = msgspec.json.format(msgspec.json.encode(_File(list(keys))), indent=1)

        def write(file: IO[bytes]) -> None:
            with suppress(OSError):  # a file system without owners
                Path(file.name).chmod(0o600)
            file.write(raw)

        write_atomically(self.path, write)

    def _locked(self) -> "_Lock":
        return _Lock(self.path.with_name(self.path.name + ".lock"))


class _Lock:
    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path, timeout=10)

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self._lock.acquire()
        except (Timeout, OSError) as error:
            raise StorageError(
                f"{self._lock.lock_file} cannot be taken", next_step="wait for the other aula key, or mend permissions"
            ) from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class KeyedDoorman:
    """Admits whoever brings a key of the store, which is read again when it changes.

    While the store has never held a key, `is_open`: everybody is local. One key closes that for good: that a file is
    taken away opens nothing.
    """

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        """Raises what reading the store raises."""
        self._store = store
        self._clock = clock
        self._keys: Mapping[str, Key] = {}
        self._quotas = Quotas()
        self._stamp = _stamp(store.path)
        self._take(store.read())
        self.is_open = not self._keys

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        self._refresh()
        if self.is_open:
            return noted(connection, Caller().at(connection, ability))
        key = self._find(secret_of(connection))
        caller = noted(connection, key.caller()).at(connection, ability)
        self._enter(connection, key)
        return noted(connection, caller)

    def holds(self, name: str) -> bool:
        """Whether the key of that name opens anything still."""
        self._refresh()
        key = self._keys.get(name)
        return key is not None and key.revoked is None

    def again(self, caller: Caller) -> None:
        self._refresh()
        if self.is_open:
            return
        if caller.key is None:
            raise _absent()
        key = self._keys.get(caller.key)
        if key is None or key.revoked is not None:
            raise KeyRefusedError(f"the key {caller.key} was revoked", next_step="ask who runs the server for another")
        self._count(key)
        self._quotas.leave(key.name)

    def _find(self, secret: str | None) -> Key:
        if secret is None:
            raise _absent()
        name = secret.removeprefix(PREFIX).partition("-")[0]
        key = self._keys.get(name)
        is_right = secrets.compare_digest(digest_of(secret), key.digest if key else _NOBODY)
        if key is None or not is_right:
            raise KeyRefusedError("this key is not known here", next_step="see that it was copied as a whole")
        if key.revoked is not None:
            raise KeyRefusedError(f"the key {name} was revoked", next_step="ask who runs the server for another")
        return key

    def _enter(self, connection: HTTPConnection, key: Key) -> None:
        quotas = self._quotas
        self._count(key)
        if not when_gone(connection.scope, lambda: quotas.leave(key.name)):
            quotas.leave(key.name)

    def _count(self, key: Key) -> None:
        """Whoever calls lets it leave again."""
        now = self._clock.now()
        refusal = self._quotas.check(key.name, now)
        if refusal is not None:
            raise refusal.error(key.tenant)
        self._quotas.enter(key.name, now)

    def _refresh(self) -> None:
        stamp = _stamp(self._store.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(self._store.read())
        except (SettingsError, StorageError) as error:
            log_warning("the keys could not be read again; those from before hold", why=error.what)

    def _take(self, keys: Iterable[Key]) -> None:
        self._keys = {key.name: key for key in keys}
        self._quotas = Quotas({key.name: key.quota() for key in self._keys.values()})
        if self._keys:
            self.is_open = False


def _absent() -> KeyAbsentError:
    return KeyAbsentError(
        "this server asks for a key",
        next_step="send it (Authorization: Bearer sk-aula-…); who runs the server makes one: aula key create",
    )


def secret_of(connection: HTTPConnection) -> str | None:
    """What the client brought, in whichever way its protocol has."""
    scheme, _, value = header(connection, "authorization").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    for name in ("x-api-key", "api-key"):
        if value := header(connection, name):
            return value
    offered: Sequence[str] = connection.scope.get("subprotocols") or ()
    return next((one.removeprefix(SUBPROTOCOL) for one in offered if one.startswith(SUBPROTOCOL)), None)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _check(tenant: str, tier: str, abilities: Sequence[str]) -> None:
    if not 0 < len(tenant) <= LONGEST_TENANT or not tenant.isprintable():
        raise InputError(f"the tenant is {tenant[:40]!r}", next_step="name a class, in at most 128 letters")
    if tier not in TIERS:
        raise InputError(f"the tier is {tier!r}", available=TIERS, next_step="choose one of these")
    if unknown := [one for one in abilities if one not in (*ABILITIES, "*")]:
        raise InputError(
            f"there is no ability {unknown[0]!r}", available=(*ABILITIES, "*"), next_step="choose among these"
        )


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
