"""Models as OpenAI's clients name them.

`aula` is the assistant on the usual course, `aula:<course>` on another; `aula-transcribe`, `aula-speak` and
`aula-embed` are capabilities, whose best rung serves. OpenAI's own names of speech models mean the same capability,
for programs that have them written down. Those of embeddings do not: a vector of another model under its name would
spoil an index.
"""

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from aula.assistant.packs import bundled_packs, open_library
from aula.core.types import Capability
from aula.servers.callers import ANYTHING
from aula.servers.house import House
from aula.servers.openai.shapes import Model, ModelList
from aula.servers.openai.wire import FieldError, reply

ASSISTANT = "aula"
CAPABILITIES: Mapping[str, Capability] = {
    "aula-transcribe": Capability.TRANSCRIBE,
    "aula-speak": Capability.SPEAK,
    "aula-embed": Capability.EMBED,
}
ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"), "aula-transcribe"),
    **dict.fromkeys(("tts-1", "tts-1-hd", "gpt-4o-mini-tts"), "aula-speak"),
}
_OWNER = "aula"
_DOORS: Mapping[Capability, str] = {
    Capability.TRANSCRIBE: "/v1/audio/transcriptions",
    Capability.SPEAK: "/v1/audio/speech",
    Capability.EMBED: "/v1/embeddings",
}


def check_model(name: str, capability: Capability) -> None:
    """Raises FieldError, with 404, for a model that is not of that capability."""
    own = next(one for one, able in CAPABILITIES.items() if able is capability)
    if ALIASES.get(name, name) != own:
        known = CAPABILITIES.get(ALIASES.get(name, name))
        elsewhere = f"it is for {_DOORS[known]}" if known else f"name {own}"
        raise unknown_model(name, [own, *(alias for alias, one in ALIASES.items() if one == own)], elsewhere)


def course_of(name: str, usual: str) -> str:
    """The course that a model of the assistant is about. Raises FieldError, with 404, for another model."""
    if name == ASSISTANT:
        return usual
    assistant, colon, course = name.partition(":")
    if assistant != ASSISTANT or not colon or not course:
        raise unknown_model(name, [ASSISTANT, f"{ASSISTANT}:<course>"], "GET /v1/models lists them")
    return course


def unknown_model(name: str, available: list[str], next_step: str) -> FieldError:
    return FieldError(
        f"there is no model {name[:80]!r} here",
        param="model",
        available=available,
        next_step=next_step,
        code="model_not_found",
        status=404,
    )


class Models:
    """GET /v1/models, and one of them."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def every(self, request: Request) -> Response:
        self._house.doorman.admit(request, ANYTHING)
        return reply(ModelList(await self._all()))

    async def show(self, request: Request) -> Response:
        self._house.doorman.admit(request, ANYTHING)
        name = request.path_params["model"]
        models = await self._all()
        found = next((model for model in models if model.id == ALIASES.get(name, name)), None)
        if found is None:
            raise unknown_model(name, [model.id for model in models], "name one of these")
        return reply(found)

    async def _all(self) -> list[Model]:
        there = {rung.capability for rung in self._house.runtime.statistics().rungs}
        courses = await asyncio.to_thread(self._courses)
        return [
            Model(ASSISTANT, 0, _OWNER, capability="ask"),
            *(Model(f"{ASSISTANT}:{name}", made, _OWNER, capability="ask") for name, made in courses.items()),
            *(Model(name, 0, _OWNER, capability=str(one)) for name, one in CAPABILITIES.items() if one in there),
        ]

    def _courses(self) -> dict[str, int]:
        """When each was made, in Unix time; 0 for a pack that nobody asked yet."""
        infos = {info.name: int(info.created) for info in open_library(self._house.settings).list() if not info.damage}
        return dict(sorted({**dict.fromkeys(bundled_packs(), 0), **infos}.items()))
