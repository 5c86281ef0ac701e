"""Courses at hand: the library in the user's home, and the packs that come with aula."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import aula
from aula.assistant.courses import Course, CourseInfo, CourseLibrary, Progress
from aula.core.errors import CourseNotFoundError, StorageError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Float32
from aula.runtime import Runtime

T = TypeVar("T")
EMBEDDED_LANGUAGES = frozenset({"en"})


def open_library(settings: Settings) -> CourseLibrary:
    return CourseLibrary(settings.home / "courses")


def bundled_packs() -> dict[str, Path]:
    """Course folders that come with aula, by name: inside the installed package, or beside its sources."""
    package = Path(aula.__file__).parent
    for folder in (package / "courses", package.parents[1] / "courses"):
        if folder.is_dir():
            return {entry.name: entry for entry in sorted(folder.iterdir()) if (entry / "course.md").is_file()}
    return {}


async def add_course(
    runtime: Runtime,
    library: CourseLibrary,
    path: Path,
    name: str | None = None,
    *,
    title: str | None = None,
    language: str | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> CourseInfo:
    """Read, embed (on the runtime's `embed` rung) and index a course. Raises what CourseLibrary.add raises."""

    def embed(texts: Sequence[str]) -> Float32:
        request = runtime.submit(Capability.EMBED, list(texts), Context(tier="batch"))
        outcome = asyncio.run_coroutine_threadsafe(request, loop).result()
        vectors: Float32 = outcome.value
        return vectors

    loop = asyncio.get_running_loop()
    return await _in_thread(
        lambda report: library.add(
            path,
            name,
            title=title,
            language=language,
            embed=embed,
            embedder="minilm",
            embeds=EMBEDDED_LANGUAGES,
            progress=report,
            skip_bad=skip_bad,
        ),
        progress,
    )


async def open_course(
    runtime: Runtime, settings: Settings, name: str | None = None, progress: Progress | None = None
) -> Course:
    """The course of that name (or the one the settings name), ready to search.

    A pack that comes with aula is added to the library the first time it is asked for. Raises
    CourseNotFoundError with what there is, and StorageError.
    """
    library = open_library(settings)
    name = name or settings.text("course")
    packs = bundled_packs()
    try:
        return await asyncio.to_thread(library.load, name)
    except StorageError:
        if name not in packs:
            raise
        # Damaged, or made by an older aula: the pack is at hand, so make it anew.
    except CourseNotFoundError as error:
        if name not in packs:
            available = sorted({*(info.name for info in library.list()), *packs})
            raise CourseNotFoundError(
                error.what, available=available, next_step="choose one of these, or: aula course add PATH"
            ) from error
    await add_course(runtime, library, packs[name], name, progress=progress)
    return await asyncio.to_thread(library.load, name)


async def _in_thread(work: Callable[[Progress], T], progress: Progress | None) -> T:
    """Run long work beside the event loop; when the caller is cancelled, the work stops at its next report."""
    stopped = threading.Event()

    def report(what: str, share: float) -> None:
        if stopped.is_set():
            raise InterruptedError("the caller went away")
        if progress is not None:
            progress(what, share)

    try:
        return await asyncio.to_thread(work, report)
    finally:
        stopped.set()
