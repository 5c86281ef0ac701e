"""`aula key create|list|revoke`"""

from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from aula.cli.output import notices, print_json, results
from aula.core.settings import load_settings
from aula.scheduling.admission import Quota
from aula.servers.callers import ABILITIES, TIERS
from aula.servers.keys import USUAL_ABILITIES, Key, KeyStore


@click.group()
def key() -> None:
    """API keys: who may ask aula serve, for what, and how much.

    \b
    Example:
      aula key create class-5b
      aula key list
    """


@key.command()
@click.argument("tenant")
@click.option(
    "--tier", type=click.Choice(TIERS), default=TIERS[0], show_default=True, help="Its most urgent kind of work."
)
@click.option(
    "--ability",
    "abilities",
    multiple=True,
    type=click.Choice((*ABILITIES, "all")),
    help=f"A door that it opens; several times for several. {', '.join(USUAL_ABILITIES)} if not given.",
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second; no limit if not given.")
@click.option(
    "--burst", type=click.IntRange(1), default=10, show_default=True, help="Requests at once, before the rate holds."
)
@click.option("--concurrency", type=click.IntRange(1), help="Requests and connections at the same time.")
@click.option("--note", default="", help="For whom it is; shown by aula key list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def create(
    tenant: str,
    tier: str,
    abilities: tuple[str, ...],
    rate: float | None,
    burst: int,
    concurrency: int | None,
    note: str,
    as_json: bool,
) -> None:
    """Make a key for TENANT, a class, and print its secret: this once, since only its hash is kept.

    A server that runs takes it at once. Quotas of the class as a whole are in tenants.file.

    \b
    Example:
      aula key create class-5b --rate 5 --burst 30
      aula key create prometheus --ability operate
    """
    chosen = ("*",) if "all" in abilities else abilities or USUAL_ABILITIES
    store = KeyStore.from_settings(load_settings())
    made, secret = store.create(tenant, tier=tier, abilities=chosen, quota=Quota(rate, burst, concurrency), note=note)
    if as_json:
        print_json({**_as_json(made), "secret": secret})
        return
    results().print(secret, markup=False, soft_wrap=True)
    told = f"The key {made.name} of {tenant}; it opens: {', '.join(made.abilities)}. Keep it: it is not shown again."
    notices().print(told, markup=False, soft_wrap=True)


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def list_keys(as_json: bool) -> None:
    """Every key, without its secret.

    \b
    Example:
      aula key list
    """
    store = KeyStore.from_settings(load_settings())
    keys = store.read()
    if as_json:
        print_json({"keys": [_as_json(one) for one in keys]})
        return
    if not keys:
        notices().print("There are no keys: aula serve serves this machine alone. Next: aula key create CLASS")
        return
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("key", "tenant", "tier", "opens", "limits", "made", "note"):
        table.add_column(column, overflow="fold")
    for one in keys:
        row = (one.name, one.tenant, one.tier, " ".join(one.abilities), _limits(one), _date(one.created), one.note)
        cells = [Text(cell, "dim strike" if one.revoked else "") for cell in row]
        table.add_row(*cells)
    results().print(table)


@key.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Let the key NAME open nothing from now on; a server that runs hears of it at once.

    \b
    Example:
      aula key revoke 1a2b3c4d
    """
    revoked = KeyStore.from_settings(load_settings()).revoke(name)
    results().print(f"Revoked {revoked.name} of {revoked.tenant}.", markup=False)


def _limits(key: Key) -> str:
    rate = f"{key.rate:g}/s, {key.burst} at once" if key.rate is not None else ""
    concurrency = f"{key.concurrency} together" if key.concurrency is not None else ""
    return ", ".join(part for part in (rate, concurrency) if part)


def _date(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def _as_json(key: Key) -> dict[str, Any]:
    return {
        "key": key.name,
        "tenant": key.tenant,
        "tier": key.tier,
        "abilities": list(key.abilities),
        "rate": key.rate,
        "burst": key.burst,
        "concurrency": key.concurrency,
        "note": key.note,
        "created": key.created,
        "revoked": key.revoked,
    }
