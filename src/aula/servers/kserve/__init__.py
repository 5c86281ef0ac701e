"""The door for the Open Inference Protocol v2."""

from starlette.routing import BaseRoute

from aula.servers.house import House


def routes(house: House) -> list[BaseRoute]:  # noqa: ARG001
    """Every route of this door."""
    return []
