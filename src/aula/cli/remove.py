"""`aula remove`"""

from dataclasses import asdict

import click

from aula.cli.build import store_option
from aula.cli.output import print_json, results
from aula.core.errors import EngineError
from aula.core.settings import load_settings
from aula.engine.store import open_store


@click.command(short_help="Remove a bundle and the engines that only it needs.")
@click.argument("bundle")
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def remove(bundle: str, store: str | None, as_json: bool) -> None:
    """Remove BUNDLE: a key, or a model's name if only one bundle of it is there. Files that another bundle needs
    stay. The model it was made from is not touched, so it can be built again.

    \b
    Example:
      aula remove minilm
      aula remove my-encoder-0123456789abcdef --store s3://school/engines
    """
    settings = load_settings()
    engines = open_store(store or settings.home / "engines", settings.home / "fetched")
    keys = engines.keys_of(bundle)
    if len(keys) > 1:
        raise EngineError(
            f"there are {len(keys)} bundles of {bundle!r}, the newest first",
            available=keys,
            next_step=f"name the one to remove: aula remove {keys[-1]}",
        )
    removed = engines.remove(keys[0])
    if as_json:
        print_json({"store": str(engines), **asdict(removed)})
    else:
        results().print(f"Removed {removed.key}: {removed.freed_bytes / 1e6:.1f} MB are free again.", markup=False)
