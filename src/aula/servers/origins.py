"""Which pages of other sites may call (CORS), and by which names this server is called (against DNS rebinding)."""

import re
from dataclasses import dataclass
from typing import Self

from aula.core.settings import Settings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
METHODS = "GET, POST, PUT, PATCH, DELETE, OPTIONS"
TOLD = "X-Request-Id, Retry-After, Retry-After-Ms, X-Aula-Rung, Inference-Header-Content-Length"
"""Headers that a page's script may read."""
_HEADER_NAMES = re.compile(r"[\w-]+(\s*,\s*[\w-]+)*")


@dataclass(frozen=True, slots=True)
class Origins:
    """`allowed` besides the server's own; `hosts` by which it may be called, None for any."""

    allowed: frozenset[str] = frozenset()
    hosts: frozenset[str] | None = None

    @classmethod
    def from_settings(cls, settings: Settings, *, only_loopback: bool = False) -> Self:
        """`only_loopback`: without keys, a page that a name server points here must not be taken for our own."""
        hosts = _words(settings.text("serve.hosts"))
        return cls(_words(settings.text("serve.origins")), hosts or (LOOPBACK if only_loopback else None))

    def knows_host(self, headers: dict[bytes, bytes]) -> bool:
        host = _host_of(headers)
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        return self.hosts is None or name in self.hosts

    def admits(self, headers: dict[bytes, bytes]) -> bool:
        """A program names no origin; a page names its own, which may be this server's."""
        origin = origin_of(headers)
        if origin is None or "*" in self.allowed or origin in self.allowed:
            return True
        return origin.partition("://")[2] == _host_of(headers)

    def headers(self, origin: str) -> dict[str, str]:
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": TOLD, "Vary": "Origin"}

    def preflight(self, headers: dict[bytes, bytes], origin: str) -> dict[str, str]:
        wanted = headers.get(b"access-control-request-headers", b"").decode("latin-1")
        allowed = wanted if _HEADER_NAMES.fullmatch(wanted) else "Authorization, Content-Type"
        return {
            **self.headers(origin),
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "600",
        }


def origin_of(headers: dict[bytes, bytes]) -> str | None:
    origin = headers.get(b"origin")
    return None if origin is None else origin.decode("latin-1").lower()


def _host_of(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"host", b"").decode("latin-1").lower()


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().rstrip("/").lower() for word in text.split(",") if word.strip())
