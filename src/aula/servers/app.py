"""All doors as one ASGI application."""

from starlette.applications import Starlette

from aula.servers import kserve, openai, pages, realtime
from aula.servers.house import House


def build_app(house: House) -> Starlette:
    """Every door on one House; whoever serves it opens and closes the House's runtime."""
    rooms = (openai, realtime, kserve, pages)
    return Starlette(routes=[route for room in rooms for route in room.routes(house)])
