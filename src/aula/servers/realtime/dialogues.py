"""One warm dialogue a course, of which every conversation gets a sibling: no connection loads anything of its own."""

import asyncio

from aula.assistant.dialogue import Dialogue
from aula.core.errors import AulaError
from aula.core.types import Context
from aula.servers.house import House


class Dialogues:
    def __init__(self, house: House) -> None:
        self._house = house
        self._warmed: dict[str, asyncio.Task[Dialogue]] = {}

    async def open(self, course: str) -> Dialogue:
        """A conversation on that course, with what a turn needs loaded. Raises CourseNotFoundError."""
        opened = await self._house.course(course)
        key = f"{opened.name} {opened.info.version}"
        warming = self._warmed.get(key)
        if warming is None or (warming.done() and (warming.cancelled() or warming.exception() is not None)):
            dialogue = Dialogue(self._house.runtime, opened, self._house.settings)
            warming = self._warmed[key] = asyncio.ensure_future(_warmed(dialogue))
        dialogue = (await asyncio.shield(warming)).another()
        dialogue.is_continued = self._house.generator is not None
        return dialogue


async def _warmed(dialogue: Dialogue) -> Dialogue:
    """Whatever cannot be warmed will say so to the question that needs it."""
    context = Context(language=dialogue.course.info.language)
    for listening in (True, False):
        try:
            await dialogue.warm(context, listening=listening)
            break
        except AulaError:
            continue
    dialogue.vocabulary()
    return dialogue
