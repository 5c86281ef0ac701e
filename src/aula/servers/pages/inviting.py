"""What a teacher asks for a class that has no keys: a code that can be read from the wall, and its end."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aula.core.errors import InputError
from aula.servers.guests import Guests, Invitation
from aula.servers.house import House
from aula.servers.pages.answers import answer, body_as

ABILITY = "teach"


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    minutes: int


class Inviting:
    def __init__(self, house: House) -> None:
        self._house = house

    async def invitation(self, request: Request) -> Response:
        """The code that holds now, if there is one."""
        host = self._house.doorman.admit(request, ABILITY)
        return _told(self._guests().invitation(host))

    async def invite(self, request: Request) -> Response:
        host = self._house.doorman.admit(request, ABILITY)
        wanted = await body_as(request, Wanted)
        return _told(self._guests().invite(host, 60 * wanted.minutes))

    async def end(self, request: Request) -> Response:
        """Nobody comes in with the code any more; a conversation that is open stays so."""
        host = self._house.doorman.admit(request, ABILITY)
        self._guests().end(host)
        return _told(None)

    def _guests(self) -> Guests:
        if not isinstance(self._house.doorman, Guests):
            raise InputError("this server knows no guests", next_step="give the class a key: aula key create CLASS")
        return self._house.doorman


def _told(invitation: Invitation | None) -> Response:
    if invitation is None:
        return answer({"code": None, "until": None})
    return answer({"code": invitation.code, "until": invitation.until})
