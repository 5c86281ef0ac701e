"""`aula bench`"""

from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aula.bench.compare import bench as compare
from aula.bench.race import ROUNDS
from aula.bench.records import RIVALS, BenchOptions, Report, Row
from aula.bench.subjects import open_subject
from aula.cli.build import calibrate_option, labelled_option, store_option
from aula.cli.engine_tables import plain
from aula.cli.output import print_json, progress_bar, results
from aula.core.settings import load_settings
from aula.engine.store import open_store
from aula.models.catalogue import Evidence

BUSY = 0.5
"""Load a core above which the figures are not to be trusted."""


@click.command(short_help="Race a model's engines against PyTorch and ONNX Runtime.")
@click.argument("model")
@click.option("--against", default=",".join(RIVALS), show_default=True, help="The rivals, with commas between them.")
@click.option(
    "--precision", "precisions", default="fp32,int8", show_default=True, help="Engines to race, commas between them."
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    help='Sizes to run at, one for each free dimension in order: "1x32", or "encoder/1x500" where there are parts. '
    "May be given several times.",
)
@click.option(
    "--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1, 1000), help="How often everybody has a turn."
)
@calibrate_option
@labelled_option
@store_option
@click.option("--json", "as_json", is_flag=True, help="The JSON line alone.")
def bench(
    model: str,
    against: str,
    precisions: str,
    shapes: tuple[str, ...],
    rounds: int,
    calibrate: Path | None,
    labelled: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Race a model's engines against PyTorch and ONNX Runtime, and show how far from this machine's floor they are.

    MODEL is an architecture by name (bert-base, bert-base-chinese, whisper-tiny to whisper-large-v3,
    efficientnet-b0), which is measured on made-up weights of the true sizes, or whatever aula build takes ("minilm",
    a folder, owner/name on the hub, an .onnx file; one with free dimensions gets their sizes by --shape). Everybody
    runs in a process of their own with the same number of threads, in turns. PyTorch is eager, fp32, with the faster of
    its attentions; ONNX Runtime has its defaults.

    \b
    Example:
      aula bench minilm
      aula bench bert-base --shape 1x32 --shape 1x128
      aula bench whisper-small --shape encoder/1x500 --against torch --json
      aula bench model.onnx --shape 1x32
    """
    settings = load_settings()
    options = BenchOptions(_list(against), _list(precisions), rounds, settings.whole("threads"))
    place = open_store(store or settings.home / "engines", settings.home / "fetched")
    with (
        progress_bar(quiet=as_json) as report,
        open_subject(
            model, Evidence(calibrate, labelled), shapes, store=place, home=settings.home, progress=report
        ) as subject,
    ):
        measured = compare(subject, options, progress=report)
    if not as_json:
        print_report(results(), measured)
    print_json(measured.as_json())


def print_report(console: Console, report: Report) -> None:
    """The table for people, within 80 columns, with what has to be known to read it."""
    machine = report.machine
    weights = "made-up weights of the true sizes" if report.seeded else "its own weights"
    about = plain(f", {weights}; {machine['processor']}, {machine['threads']} threads")
    _line(console, plain(report.model, "bold"), about)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=14)
    for column in ("ms", "p10–p90", "ratio", "error", "floor ms"):
        table.add_column(column, justify="right", no_wrap=True)
    engines = []
    for _, group in groupby(report.rows, key=lambda row: (row.part, row.shape, row.precision)):
        rows = list(group)
        engines.append(rows[0])
        table.add_row(*_engine_cells(rows[0]), style="bold")
        for row in rows:
            if row.native is not None:
                table.add_row(*_rival_cells(row))
    console.print(table)
    for row in engines:
        _line(console, plain(f"{_name(row)}: {_told(row)}"))
    for skipped in report.skipped:
        _line(console, Text("Left out", "yellow"), plain(f" {skipped.what}: {skipped.why}"))
    if (load := machine.get("load_before")) is not None and load > BUSY * int(machine["cores"]):
        _line(
            console,
            Text("This machine was busy before the race began", "yellow"),
            plain(
                f" (load {load} on {machine['cores']} cores): whoever waits by spinning, as PyTorch and ONNX Runtime "
                "do, suffers most. Run it again on an idle one."
            ),
        )
    _line(console, plain(_legend(report), "dim"))


def _name(row: Row) -> str:
    return f"{row.part} {row.shape} {row.precision}" if row.part else f"{row.shape} {row.precision}"


def _told(row: Row) -> str:
    """What is known of an engine besides its times."""
    told = [row.backend]
    if row.layer_share is not None:
        told.append(f"{100 * row.layer_share:.0f} % of layers in {row.precision}")
    if row.metric_drop is not None:
        told.append(f"drop {100 * row.metric_drop:.2f} points")
    return ", ".join(told)


def _engine_cells(row: Row) -> list[Text]:
    floor = f"{row.floor_ms:.2f} ({row.engine_ms / row.floor_ms:.1f}×)" if row.floor_ms else ""
    cells = [_name(row), f"{row.engine_ms:.2f}", _spread(row.engine_spread_ms), "", "", floor]
    return [plain(cell) for cell in cells]


def _rival_cells(row: Row) -> list[Text]:
    variant = f" ({row.native_variant})" if row.native_variant else ""
    milliseconds = "" if row.native_ms is None else f"{row.native_ms:.2f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
    error = "" if row.relative_error is None else f"{row.relative_error:.0e}"
    cells = [f"  {row.native}{variant}", milliseconds, _spread(row.native_spread_ms), ratio, error, ""]
    return [plain(cell) for cell in cells]


def _line(console: Console, *pieces: Text) -> None:
    console.print(Text.assemble(*pieces), soft_wrap=True)


def _legend(report: Report) -> str:
    machine = report.machine
    reading = ", ".join(
        f"{machine[name]} GB/s from {name.removeprefix('read_gb_s_').replace('_mib', ' MiB')}"
        for name in machine
        if name.startswith("read_gb_s_")
    )
    rates = ", ".join(
        f"{machine[name] / 1000:.2f} T/s in {name.removesuffix('_gop_s')}"
        for name in machine
        if name.endswith("_gop_s")
    )
    return (
        "ms: median over all runs, everybody in turns. ratio: the rival's time over the engine's, median over the "
        "rounds. error: largest difference of the outputs over the rival's largest value. floor: weights read and "
        f"products computed at the limits measured here and now ({reading}; {rates} operations)."
    )


def _spread(spread: tuple[float, float] | None) -> str:
    return (
        ""
        if spread is None
        else f"{spread[0]:.3g}–{spread[1]:.3g}"
        if spread[1] < 1000
        else f"{spread[0]:.0f}–{spread[1]:.0f}"
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
