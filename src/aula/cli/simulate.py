"""`aula simulate`: a school's minute, decided by the real scheduler, without a model or a GPU."""

import click
from rich.table import Table

from aula.bench.scenarios import SCENARIOS
from aula.bench.simulate import Share, Simulated
from aula.bench.simulate import simulate as run_simulation
from aula.cli.output import print_json, results

MOST_ROWS = 12
_STORIES = "\n".join(f"  {name:<16} {one.story}" for name, one in SCENARIOS.items())


@click.command(
    help=f"""Run the scheduler itself under a simulated clock and load.

\b
  aula simulate heavy
  aula simulate greedy --classes 20 --seed 7 --json

\b
Scenarios:
{_STORIES}

The costs of a batch are made up; refusals and shares hold in proportion, the number of students a card carries
does not. The same seed gives the same result.
"""
)
@click.argument("scenario", type=click.Choice(list(SCENARIOS)))
@click.option("--classes", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many tenants.")
@click.option("--students", type=click.IntRange(1, 10_000), default=30, show_default=True, help="In each class.")
@click.option("--cards", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers that serve.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and jitter.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(scenario: str, classes: int, students: int, cards: int, seed: int, as_json: bool) -> None:
    sized = SCENARIOS[scenario].sized(tenants=classes, students=students, cards=cards, seed=seed)
    simulated = run_simulation(sized)
    if as_json:
        print_json(simulated.as_json())
    else:
        _print(simulated)


def _print(one: Simulated) -> None:
    out = results()
    refused = ", ".join(f"{count:,} {reason}" for reason, count in one.refused.items()) or "none"
    out.print(
        f"{one.scenario}: {one.tenants_count} classes, {one.cards} card(s), {one.seconds:g} s seen, "
        f"load {one.load:.2f} of capacity, seed {one.seed}"
    )
    out.print(
        f"goodput {one.goodput_ratio:.1%} of what was asked or possible; p50 {one.p50_ms:g} ms, p99 {one.p99_ms:g} ms"
    )
    out.print(
        f"{one.submitted:,} asked, {one.answered:,} answered ({one.late:,} late), {one.failed:,} failed; "
        f"refused: {refused}"
    )
    for change in one.changes:
        out.print(f"  {change}")
    for title, rows in (("tier", one.tiers), ("class", one.tenants)):
        out.print(_table(title, rows))


def _table(title: str, rows: dict[str, Share]) -> Table:
    table = Table(title, "asked", "answered", "refused", "late", "in time", "share of work")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in list(rows.items())[:MOST_ROWS]:
        counts = (f"{count:,}" for count in (row.submitted, row.answered, row.refused, row.late))
        table.add_row(name, *counts, f"{row.goodput_ratio:.1%}", f"{row.device_share:.1%}")
    if len(rows) > MOST_ROWS:
        table.caption = f"and {len(rows) - MOST_ROWS} more: --json shows all"
    return table
