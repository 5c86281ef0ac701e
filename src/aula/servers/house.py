"""What every door shares: one runtime, one doorman, the courses, and the log of turns."""

import asyncio
from dataclasses import dataclass, field

from aula.assistant.course import Course
from aula.assistant.generator import Generator
from aula.assistant.packs import open_course
from aula.core.settings import Settings
from aula.runtime import Runtime
from aula.servers.callers import Doorman
from aula.servers.traffic import Traffic
from aula.servers.turn_log import TurnLog


@dataclass(eq=False)
class House:
    runtime: Runtime
    settings: Settings
    doorman: Doorman
    turns: TurnLog = field(default_factory=TurnLog)
    traffic: Traffic = field(default_factory=Traffic)
    generator: Generator | None = None
    _courses: dict[str, "asyncio.Task[Course]"] = field(default_factory=dict)

    async def course(self, name: str | None = None) -> Course:
        """The course of that name, or the one that the settings name; loaded once. Raises CourseNotFoundError."""
        name = name or self.settings.text("course")
        loading = self._courses.get(name)
        if loading is None:
            loading = self._courses[name] = asyncio.ensure_future(open_course(self.runtime, self.settings, name))
        try:
            return await asyncio.shield(loading)
        except BaseException:
            if loading.done() and (loading.cancelled() or loading.exception() is not None):
                self._courses.pop(name, None)
            raise
