"""`aula bundle`"""

import shlex

import click

from aula.cli.build import store_option
from aula.cli.engine_tables import bundle_as_json, print_bundle
from aula.cli.output import print_json, results
from aula.core.settings import load_settings
from aula.engine.merge import find_bundles
from aula.engine.merge import merge as merge_bundles
from aula.engine.store import open_store
from aula.engine.targets import read_targets
from aula.engine.verdicts import read_verdict


@click.group(short_help="Bundles that were built on several machines.")
def bundle() -> None:
    """Make one bundle of those that were built where their targets are.

    \b
    Example:
      aula bundle merge parts/sm75 parts/sm89 --require sm75,sm89
    """


@bundle.command(short_help="One bundle for all targets, of bundles for one each.")
@click.argument("bundles", nargs=-1)
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    metavar="FILE",
    help="What aula build --verdict wrote: refuse if that build failed, else merge its bundle. May be given several "
    "times.",
)
@click.option("--require", metavar="TARGETS", help="Refuse unless there are engines for all of these: sm75,sm89,cpu.")
@store_option
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def merge(
    bundles: tuple[str, ...], verdicts: tuple[str, ...], require: str | None, store: str | None, as_json: bool
) -> None:
    """Merge BUNDLES: keys or models' names in the store, or folders and URLs of other stores that hold one bundle
    each, as CI keeps them. All must be of one model, made from the same files, and each lower precision must have
    passed its gate; exit code 5 says what does not agree, 9 that a verdict is not there yet. Engines are copied, so
    merging the same bundles again gives the same one.

    \b
    Example:
      aula bundle merge parts/sm75 parts/sm89 --require sm75,sm89
      aula bundle merge --verdict sm75.json --verdict sm89.json --store s3://school/engines
    """
    required = read_targets(require) if require is not None else ()
    settings = load_settings()
    cache = settings.home / "fetched"
    engines = open_store(store or settings.home / "engines", cache)
    told = [read_verdict(place) for place in verdicts]
    merged = merge_bundles(find_bundles(bundles, told, engines, cache), engines, require=required)
    if as_json:
        print_json(bundle_as_json(merged))
    else:
        print_bundle(results(), merged)
        again = f" --store {shlex.quote(store)}" if store else ""
        results().print(f"Next: aula inspect {shlex.quote(merged.manifest.key)}{again}", markup=False, soft_wrap=True)
