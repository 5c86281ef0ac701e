"""`aula course add|list|show|remove`"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from aula.assistant.courses import CourseInfo
from aula.assistant.languages import SERVED
from aula.assistant.packs import add_course, bundled_packs, open_library
from aula.cli.output import notices, print_json, progress_bar, results
from aula.core.errors import CourseNotFoundError
from aula.core.settings import load_settings
from aula.runtime import open_runtime


@click.group()
def course() -> None:
    """Courses: what the assistant knows.

    \b
    Example:
      aula course add lecture.pdf --name physics
      aula ask --course physics --text "What is a photon?"
    """


@course.command()
@click.argument("path", type=click.Path(path_type=Path, readable=False))
@click.option("--name", help="What to call it; from the file's or folder's name if not given.")
@click.option("--title", help="A title for people.")
@click.option("--language", type=click.Choice(SERVED), help='"en" or "zh"; found from the text if not given.')
@click.option("--skip-bad", is_flag=True, help="Leave out documents that cannot be read, and say which.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def add(path: Path, name: str | None, title: str | None, language: str | None, skip_bad: bool, as_json: bool) -> None:
    """Add a document, or a folder of documents, as a course; one of the same name is replaced.

    Markdown, text, PDF, DOCX, PPTX, HTML, CSV question lists and WebVTT captions. An error or an interrupt
    leaves the library as it was.

    \b
    Example:
      aula course add lessons/ --name mechanics --language en
    """
    settings = load_settings()

    async def work() -> CourseInfo:
        with progress_bar(quiet=as_json) as report:
            async with open_runtime(settings, progress=report) as runtime:
                return await add_course(
                    runtime,
                    open_library(settings),
                    path,
                    name,
                    title=title,
                    language=language,
                    skip_bad=skip_bad,
                    progress=report,
                )

    info = asyncio.run(work())
    if as_json:
        print_json(_as_json(info))
        return
    counts = f"{_count(len(info.documents), 'document')}, {_count(info.passages, 'passage')}"
    results().print(f"Added [bold]{info.name}[/bold]: {counts}.")
    for document, reason in info.skipped:
        notices().print(f"  left out {document}: {reason}", markup=False)
    notices().print(f'Next: aula ask --course {info.name} --text "…"', markup=False)


@course.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def list_courses(as_json: bool) -> None:
    """The courses in the library, and the packs that come with aula.

    \b
    Example:
      aula course list
    """
    infos = open_library(load_settings()).list()
    names = {info.name for info in infos}
    packs = [name for name in bundled_packs() if name not in names]
    if as_json:
        print_json({"courses": [_as_json(info) for info in infos], "packs": packs})
        return
    table = Table(box=None, header_style="bold")
    for column in ("name", "title", "language", "documents", "passages", ""):
        table.add_column(column)
    for info in infos:
        counts = (str(len(info.documents)), str(info.passages))
        damage = info.damage and f"damaged: {info.damage}"
        table.add_row(*map(Text, (info.name, info.title, info.language, *counts, damage)))
    for name in packs:
        table.add_row(name, "", "", "", "", "comes with aula; added when first asked")
    results().print(table)


@course.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def show(name: str, as_json: bool) -> None:
    """One course: its documents, concepts and what they build on.

    \b
    Example:
      aula course show mechanics-en
    """
    with _packs_explained(name):
        info = open_library(load_settings()).show(name)
    if as_json:
        print_json(_as_json(info))
        return
    console = results()
    head = Text.assemble((info.title, "bold"), f" ({info.name}, {info.language}, version {info.version})")
    console.print(head)
    if info.description:
        console.print(info.description, markup=False)
    table = Table(box=None, header_style="bold")
    for column in ("document", "title", "passages", "concepts"):
        table.add_column(column)
    for document in info.documents:
        row = (document.name, document.title, str(document.passages), ", ".join(document.concepts))
        table.add_row(*map(Text, row))
    console.print(table)


@course.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a course from the library; the documents it came from are not touched.

    \b
    Example:
      aula course remove physics
    """
    with _packs_explained(name):
        open_library(load_settings()).remove(name)
    results().print(f"Removed {name}.", markup=False)


@contextmanager
def _packs_explained(name: str) -> Iterator[None]:
    """A pack that comes with aula and was not asked yet is not unknown; say what adds it."""
    try:
        yield
    except CourseNotFoundError as error:
        if name not in bundled_packs():
            raise
        raise CourseNotFoundError(
            f"{name} comes with aula and has not been added to the library yet",
            next_step=f'ask it something, and it is added: aula ask --course {name} --text "…"',
        ) from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _as_json(info: CourseInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "title": info.title,
        "language": info.language,
        "description": info.description,
        "version": info.version,
        "embedder": info.embedder,
        "passages": info.passages,
        "documents": [
            {
                "name": document.name,
                "title": document.title,
                "language": document.language,
                "passages": document.passages,
                "concepts": list(document.concepts),
                "prerequisites": list(document.prerequisites),
            }
            for document in info.documents
        ],
        "prerequisites": {concept: list(needed) for concept, needed in info.prerequisites.items()},
        "skipped": [{"document": name, "reason": reason} for name, reason in info.skipped],
        "damage": info.damage,
    }
