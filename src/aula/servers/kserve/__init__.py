"""The door for the Open Inference Protocol v2: every engine as it is, over HTTP and over gRPC.

tensors    raw bytes and numbers become arrays, and arrays these
engines    what is told of the engines; counts, of what came of requests
asking     the one way in: a request of either door, and the runtime's answer
bodies     HTTP's bodies: packed, aligned, limited; messages, the JSON in them
http       the routes; operations, what /docs says of them
protocol/  gRPC's messages; rpc, its server; calls, what stands before it
faults     errors in the protocol's words
"""

from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from aula.servers.house import House
from aula.servers.kserve.http import http_routes, shortcut
from aula.servers.kserve.operations import OPERATIONS

if TYPE_CHECKING:
    import grpc

__all__ = ["OPERATIONS", "grpc_server", "routes", "shortcut"]


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door over HTTP."""
    return http_routes(house)


async def grpc_server(house: House, address: str) -> "grpc.aio.Server":
    """The same over gRPC, on a port of its own ("127.0.0.1:8001"): bound, not started. Raises SettingsError for an
    address that cannot be listened on."""
    from aula.servers.kserve.rpc import make_server  # gRPC is loaded only where it is served

    return make_server(house, address)
