"""`aula doctor`"""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from aula.cli.output import print_json, progress_bar, results
from aula.core.settings import load_settings
from aula.diagnosis import Diagnosis, Part, diagnose
from aula.runtime import open_runtime


@click.command(short_help="What this machine can run, and what to install for more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def doctor(as_json: bool) -> None:
    """What this machine can run, found out by trying, and what to install for more.

    The first run builds the engines (about half a minute). Exit code 0 if every capability has a rung that
    works, 5 if not.

    \b
    Example:
      aula doctor
      aula doctor --json | python -m json.tool
    """
    settings = load_settings()

    async def examine() -> Diagnosis:
        with progress_bar(quiet=as_json) as report:
            async with open_runtime(settings, progress=report) as runtime:
                return await diagnose(settings, runtime)

    diagnosis = asyncio.run(examine())
    if as_json:
        print_json(_as_json(diagnosis))
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise SystemExit(5)


def _print(diagnosis: Diagnosis) -> None:
    console = results()
    console.print(_parts("Machine", diagnosis.machine))
    console.print(_parts("Targets and backends", (*diagnosis.targets, *diagnosis.backends)))
    console.print(_rungs(diagnosis))
    console.print(_parts("Engines built", diagnosis.engines))
    console.print("[italic]Sound devices[/italic]")
    for line in diagnosis.devices:
        console.print(f"    {line}", markup=False)
    licences = Table(title="Licences of what is loaded", title_justify="left", show_header=False, box=None)
    for licence in diagnosis.licences:
        licences.add_row(licence.component, licence.licence, licence.note)
    console.print(licences)


def _parts(title: str, parts: Iterable[Part]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for part in parts:
        mark = "[green]✓[/green]" if part.present else "[yellow]·[/yellow]"
        table.add_row(mark, escape(part.name), escape(part.details + (f"  →  {part.advice}" if part.advice else "")))
    if not table.row_count:
        table.add_row("[yellow]·[/yellow]", "none", "")
    return table


def _rungs(diagnosis: Diagnosis) -> Table:
    table = Table(title="Capabilities and their rungs", title_justify="left", show_header=False, box=None)
    for report in diagnosis.rungs:
        languages = ", ".join(sorted(report.info.languages)).replace("*", "any")
        if report.error is None:
            row = ("[green]✓[/green]", f"loaded in {report.load_ms:.0f} ms; {report.info.note}")
        else:
            row = ("[red]✗[/red]", escape(f"{report.error.what}  →  {report.error.next_step}"))
        table.add_row(row[0], report.info.capability.value, report.info.name, languages, row[1])
    return table


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    plain = {
        name: [asdict(part) for part in getattr(diagnosis, name)]
        for name in ("machine", "backends", "targets", "engines", "settings_files", "licences")
    }
    rungs = [
        {
            "name": report.info.name,
            "capability": report.info.capability.value,
            "languages": sorted(report.info.languages),
            "note": report.info.note,
            "load_ms": round(report.load_ms, 1),
            "error": str(report.error) if report.error else None,
        }
        for report in diagnosis.rungs
    ]
    return {
        "healthy": diagnosis.healthy,
        **plain,
        "rungs": rungs,
        "devices": list(diagnosis.devices),
        "settings": diagnosis.settings,
    }
