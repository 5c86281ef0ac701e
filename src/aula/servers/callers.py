"""Who stands at the door, and what he may ask for."""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection

from aula.core.types import Context


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a key names. `abilities`: the doors and capabilities that he may use, "*" for all: "transcribe",
    "speak", "embed", "ask" (the course assistant), "infer" (engines as they are), "teach", "operate"."""

    tenant: str = "local"
    tier: str = "question"
    abilities: frozenset[str] = frozenset({"*"})
    key: str | None = None
    """The public name of the key, never the secret."""

    def may(self, ability: str) -> bool:
        return "*" in self.abilities or ability in self.abilities

    def context(self, language: str, deadline: float | None = None) -> Context:
        return Context(language=language, tenant=self.tenant, tier=self.tier, deadline=deadline)


class Doorman(Protocol):
    """Tells callers apart before any work is done for them."""

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        """Whoever the request's key names: `Authorization: Bearer`, or for a browser's WebSocket the subprotocol
        `openai-insecure-api-key.<secret>`. Raises the errors of keys (missing, wrong, revoked, without that
        ability) and OverloadError for one beyond its rate."""
        ...


class EveryoneIsLocal:
    """No keys: for one machine's own use, on loopback alone."""

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:  # noqa: ARG002
        return Caller()
