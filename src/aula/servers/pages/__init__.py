"""The door for pages for students, teachers and operators."""

from starlette.routing import BaseRoute

from aula.servers.house import House


def routes(house: House) -> list[BaseRoute]:  # noqa: ARG001
    """Every route of this door."""
    return []
