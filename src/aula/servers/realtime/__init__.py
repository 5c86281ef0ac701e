"""The door for OpenAI Realtime.

door.py          routes, keys and ephemeral secrets, how many at once
visit.py         one connection: its socket, its time, its outbox
wire.py          texts to events, in GA or beta names (beta.py)
conversation.py  the protocol as a state machine, which knows no socket and no model: its items (items.py),
                 responses (responding.py) and settings (options.py, of the shapes in shapes.py)
attendant.py     carries out what it asks: listening.py hears, answering.py answers, sounding.py paces the sound
operations.py    what /docs says of it
"""

from starlette.routing import BaseRoute

from aula.servers.house import House
from aula.servers.realtime.door import Door
from aula.servers.realtime.operations import OPERATIONS

__all__ = ["OPERATIONS", "routes"]


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door."""
    return Door(house).routes()
