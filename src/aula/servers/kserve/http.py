"""The protocol over HTTP, with Triton's binary extension and what its clients ask beyond the protocol."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route

from aula.core.errors import AulaError
from aula.servers.callers import Caller
from aula.servers.faults import message_of
from aula.servers.house import House
from aula.servers.kserve.asking import Asked, ask
from aula.servers.kserve.bodies import LeftError, packed, packing_of, read_body
from aula.servers.kserve.engines import engines_of
from aula.servers.kserve.faults import NotServedError, NowhereError, retry_after, status_of
from aula.servers.kserve.messages import answer, as_json, asked, read_options, read_request
from aula.servers.wire import link_of

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ABILITY = "infer"
_TRITONS_OWN = (
    "/v2/repository/models/",
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
    "/v2/trace",
    "/v2/logging",
)
_INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class _Visit:
    """One request."""

    __slots__ = ("headers", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])

    @property
    def named(self) -> tuple[str, str]:
        """The engine and its version, as the path has them."""
        named = self.scope["path_params"]
        return named.get("model", ""), named.get("version", "")


Answering = Callable[[_Visit], Awaitable[_Reply]]


class _Answer:
    """A door's answer as an ASGI application. A class, so that Starlette lets it have request and answer as they are:
    for small tensors its own objects would cost more than all else here."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._answering(_Visit(scope, receive))
        except LeftError:
            return
        except AulaError as error:
            reply = _refusal(error)
        length = str(len(reply.body)).encode()
        headers = [*reply.headers, (b"content-length", length)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


def http_routes(house: House) -> list[BaseRoute]:
    """The inference first: it is what comes most."""
    door = _Door(house)
    paths: list[tuple[str, str, Answering]] = []
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths += [
            ("POST", f"{model}/infer", door.infer),
            ("GET", f"{model}/ready", door.model_ready),
            ("GET", f"{model}/config", door.config),
            ("GET", f"{model}/stats", door.statistics),
        ]
    paths += [
        ("GET", "/v2/health/live", door.live),
        ("GET", "/v2/health/ready", door.ready),
        ("GET", "/v2/models/stats", door.statistics),
        ("GET", "/v2/models/{model}", door.metadata),
        ("GET", "/v2/models/{model}/versions/{version}", door.metadata),
        ("POST", "/v2/repository/index", door.index),
        ("GET", "/v2", door.server),
    ]
    routes = [
        Route(path, _Answer(answering), methods=[method], name=f"kserve {path}") for method, path, answering in paths
    ]
    nowhere = _Answer(_Nowhere(routes))
    return [*routes, Route("/v2/{rest:path}", nowhere), Route("/v2", nowhere)]


def shortcut(house: House, doors: App) -> App:
    """All doors, and past every table of routes the inference of an engine: nothing comes as often."""
    infer = _Answer(_Door(house).infer)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = _INFER.fullmatch(scope["path"]) if scope.get("method") == "POST" else None
        if found is None:
            await doors(scope, receive, send)
            return
        scope["path_params"] = found.groupdict("")
        await infer(scope, receive, send)

    return app


class _Door:
    """Whoever asks how the server is needs no key: load balancers have none."""

    def __init__(self, house: House) -> None:
        self._engines = engines_of(house)
        self._doorman = house.doorman
        self._clock = house.runtime.clock

    async def live(self, _visit: _Visit) -> _Reply:
        return _well()

    async def ready(self, _visit: _Visit) -> _Reply:
        return _well(self._engines.is_ready())

    async def server(self, _visit: _Visit) -> _Reply:
        return _Reply(as_json(self._engines.server()))

    async def model_ready(self, visit: _Visit) -> _Reply:
        self._admit(visit)
        engine = self._engines.find(*visit.named)
        return _well(self._engines.is_ready(engine.name))

    async def metadata(self, visit: _Visit) -> _Reply:
        self._admit(visit)
        return _Reply(as_json(self._engines.metadata(await self._engines.known(*visit.named))))

    async def config(self, visit: _Visit) -> _Reply:
        self._admit(visit)
        return _Reply(as_json(self._engines.config(await self._engines.known(*visit.named))))

    async def statistics(self, visit: _Visit) -> _Reply:
        self._admit(visit)
        return _Reply(as_json({"model_stats": self._engines.statistics(*visit.named)}))

    async def index(self, visit: _Visit) -> _Reply:
        self._admit(visit)
        options = read_options(await read_body(visit.receive, visit.headers))
        return _Reply(as_json(self._engines.index(only_ready=options.ready)))

    async def infer(self, visit: _Visit) -> _Reply:
        came = self._clock.now()
        caller = self._admit(visit)
        engine = self._engines.find(*visit.named)
        body = await read_body(visit.receive, visit.headers)
        request = read_request(body)

        def read() -> Asked:
            return asked(request, body)

        def write(made: Any) -> list[Any]:
            return answer(engine, request, made)

        parts = await _while_there(visit, ask(self._engines, engine, caller, came, read, write))
        return await _tensors(parts, packing_of(visit.headers))

    def _admit(self, visit: _Visit) -> Caller:
        return self._doorman.admit(HTTPConnection(visit.scope), _ABILITY)


class _Nowhere:
    """What no other route took: a wrong path, a wrong method, or something of Triton's that is not here."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = routes

    async def __call__(self, visit: _Visit) -> _Reply:
        path, method = visit.scope["path"], visit.scope["method"]
        if path.startswith(_TRITONS_OWN):
            raise NotServedError(
                f"{path[:200]} is Triton's own, and not served here",
                next_step="send tensors in the request; engines are named by the setting engines",
            )
        lawful = sorted({one for route in self._routes if route.path_regex.match(path) for one in route.methods or ()})
        if lawful:
            known = ", ".join(lawful)
            what = f"{path[:200]} does not know {method[:20]}; it knows {known}"
            raise NowhereError(what, status=405, next_step="use one of these", allow=known)
        raise NowhereError(f"there is nothing at {path[:200]}", status=404, next_step="see docs/kserve.md for what is")


def _well(is_well: bool = True) -> _Reply:
    """The status says it all."""
    return _Reply(status=200 if is_well else 503, headers=())


async def _tensors(parts: list[Any], packing: str | None) -> _Reply:
    body, is_packed = await packed(parts, packing)
    headers = [_JSON]
    if len(parts) > 1:
        headers = [_BINARY, (b"inference-header-content-length", str(len(parts[0])).encode())]
    if is_packed and packing is not None:
        headers.append((b"content-encoding", packing.encode()))
    return _Reply(body, headers=tuple(headers))


def _refusal(error: AulaError) -> _Reply:
    headers = [_JSON]
    if (seconds := retry_after(error)) is not None:
        headers.append((b"retry-after", seconds.encode()))
    if status_of(error) in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not worth reading
    if isinstance(error, NowhereError) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    return _Reply(as_json({"error": message_of(error)}), status_of(error), tuple(headers))


async def _while_there(visit: _Visit, work: Coroutine[Any, Any, T]) -> T:
    """The work of a client who leaves is left too: nobody would hear of it. Raises LeftError then."""
    asker = asyncio.current_task()
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        if asker is not None:
            asker.cancel()

    async def watch() -> None:
        while (await visit.receive())["type"] != "http.disconnect":
            pass
        leave()

    # A task for each request would cost a tenth of all that the door does.
    link = link_of(visit.scope)
    watching = asyncio.ensure_future(watch()) if link is None else None
    if link is not None:
        link.mourners.add(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and asker is not None and not asker.uncancel():
            raise LeftError from None
        raise
    finally:
        if watching is not None:
            watching.cancel()
        if link is not None:
            link.mourners.discard(leave)
