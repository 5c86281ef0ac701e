"""All doors as one ASGI application."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from aula.core.errors import AulaError
from aula.servers import describing, health, kserve, openai, pages, realtime
from aula.servers.faults import refusal, shaped
from aula.servers.front import Front
from aula.servers.house import House
from aula.servers.origins import Origins


def build_app(house: House, origins: Origins | None = None) -> Starlette:
    """Every door on one House; whoever serves it opens and closes the House's runtime."""
    rooms = (health, openai, realtime, kserve, pages)
    routes = [route for room in rooms for route in room.routes(house)]
    operations = [one for room in rooms for one in getattr(room, "OPERATIONS", ())]
    return Starlette(
        routes=[*describing.routes(operations), *routes],
        middleware=[Middleware(Front, house=house, origins=origins)],
        exception_handlers={HTTPException: _http_fault, AulaError: _fault},
    )


async def _http_fault(request: Request, error: HTTPException) -> Response:
    """No such path, or not by this method."""
    path = request.url.path
    words = {
        404: "there is nothing at this path. Next: see /docs for what there is",
        405: "this path does not know that method. Next: see /docs for those that it knows",
    }
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    told = words.get(error.status_code, str(error.detail))
    return shaped(path, error.status_code, code, told, dict(error.headers or {}))


async def _fault(request: Request, error: AulaError) -> Response:
    return refusal(request.url.path, error)
