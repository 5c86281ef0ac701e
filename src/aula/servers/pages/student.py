"""What the student's page asks besides its questions, which go to the Realtime door: who I am, courses, passages."""

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response

from aula.assistant.course import Course, CourseInfo
from aula.assistant.documents import COURSE_FILE
from aula.assistant.packs import bundled_packs, open_library
from aula.core.errors import InputError
from aula.servers.guests import Guests
from aula.servers.house import House
from aula.servers.pages.answers import admit_any, answer

ABILITIES = ("ask", "teach", "operate")


class Student:
    def __init__(self, house: House) -> None:
        self._house = house

    async def me(self, request: Request) -> Response:
        """Who the key names, which pages are for him, and the courses. `for` is the ability that the page needs;
        `ready`: engines and the usual course are loaded."""
        wanted = request.query_params.get("for", "ask")
        if wanted not in ABILITIES:
            raise InputError(f"no page is for {wanted[:40]!r}", available=ABILITIES, next_step="name one of these")
        caller = self._house.doorman.admit(request, wanted)
        courses = await asyncio.to_thread(self._courses)
        return answer(
            {
                "tenant": caller.tenant,
                "key": caller.key,
                "abilities": [ability for ability in ABILITIES if caller.may(ability)],
                "course": self._house.settings.text("course"),
                "courses": courses,
                "ready": self._house.traffic.is_warm,
                "invites": isinstance(self._house.doorman, Guests) and not self._house.doorman.is_open,
                "longest": self._house.settings.whole("question.max_characters"),
            }
        )

    async def passage(self, request: Request) -> Response:
        """A passage that an answer cites, with what stands before and after it in its document."""
        admit_any(self._house.doorman, request, ("ask", "teach"))
        asked = {name: request.query_params.get(name, "") for name in ("course", "document", "passage")}
        course = await self._house.course(asked["course"] or None)
        return answer(find_passage(course, asked["document"], asked["passage"]))

    def _courses(self) -> list[dict[str, str]]:
        """By title; those that come with aula too, whether or not they have been asked before."""
        infos = {info.name: info for info in open_library(self._house.settings).list() if not info.damage}
        packs = {name: _described(name, folder) for name, folder in bundled_packs().items() if name not in infos}
        known = sorted([*infos.values(), *packs.values()], key=lambda info: (info.title, info.name))
        return [
            {"name": info.name, "title": info.title, "language": info.language, "description": info.description}
            for info in known
        ]


def find_passage(course: Course, document: str, label: str) -> dict[str, Any]:
    """Raises InputError for one that the course does not have."""
    passages = course.passages
    place = next((n for n, one in enumerate(passages) if (one.document, one.label) == (document, label)), None)
    if place is None:
        raise InputError(
            f"the course {course.name} has no passage {label[:80]!r} in {document[:80]!r}",
            next_step="ask again: the course was changed since",
        )
    found = passages[place]

    def beside(step: int) -> str:
        other = place + step
        return passages[other].text if 0 <= other < len(passages) and passages[other].document == document else ""

    return {
        "course": course.info.title,
        "document": document,
        "headings": found.headings,
        "language": found.language,
        "text": found.text,
        "before": beside(-1),
        "after": beside(1),
    }


@cache
def _described(name: str, folder: Path) -> CourseInfo:
    """A pack that nobody has asked yet, by the front matter of its course.md."""
    text = (folder / COURSE_FILE).read_text(encoding="utf-8")
    matter = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    return CourseInfo(
        name,
        str(matter.get("title", name)),
        str(matter.get("language", "")),
        str(matter.get("description", "")),
    )
