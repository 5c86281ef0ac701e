"""The pages' files, read once from the package and handed out from memory: what is not in the table does not exist."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing from elsewhere, nothing inline, no frame around it, and no string that becomes markup."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), fullscreen=(self), camera=(), geolocation=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
"""`no-cache`: a browser keeps a file and asks whether it is still the same, so that an update is seen at once."""


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    media_type: str
    tag: str


class Files:
    async def file(self, request: Request) -> Response:
        return _reply(request, request.path_params["name"])

    def page(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def reply(request: Request) -> Response:
            return _reply(request, name)

        return reply


@cache
def table() -> dict[str, File]:
    """Every file below static/ by its path there."""
    return {name: _read(one, name) for name, one in _below(files("aula.servers.pages") / "static", "")}


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            yield from _below(entry, name + "/")
        elif any(name.endswith(suffix) for suffix in MEDIA_TYPES):
            yield name, entry


def _read(entry: Traversable, name: str) -> File:
    content = entry.read_bytes()
    suffix = name[name.rindex(".") :]
    return File(content, MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def _reply(request: Request, name: str) -> Response:
    file = table().get(name)
    if file is None:
        return PlainTextResponse("There is no such file.", 404, HEADERS)
    headers = {**HEADERS, "ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
