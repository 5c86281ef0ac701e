"""`aula build`, `aula inspect` and `aula verify`"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from aula.cli.output import print_json, progress_bar, results
from aula.core.errors import EngineError
from aula.core.settings import load_settings
from aula.engine.build import PRECISIONS, BuildOptions, verify
from aula.engine.build import build as build_engine
from aula.engine.store import Engine, EngineStore, Manifest
from aula.models.catalogue import NAMES, Evidence, find_recipe


@click.command(short_help="Turn a trained model into the fastest engine that passes its gate.")
@click.argument("model")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Also try this precision; fp32 always runs. May be given several times.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Real examples for int8: sentences, one a line, or an npz file.",
)
@click.option(
    "--labelled", type=click.Path(path_type=Path), help="Labelled ones: lines of label, tab, sentence, or an npz file."
)
@click.option("--store", type=click.Path(path_type=Path), help="Folder of engines; the home's if not given.")
@click.option("--rebuild", is_flag=True, help="Build again, even if the same inputs were built before.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def build(
    model: str,
    precisions: tuple[str, ...],
    calibrate: Path | None,
    labelled: Path | None,
    store: Path | None,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Turn a trained model into the fastest engine that passes its gate, for this machine's CPU.

    MODEL is "minilm", or a folder (config.json, model.safetensors) with a sentence encoder of the BERT family or
    an EfficientNet. Every precision is proven on every backend against a plain float64 reference; int8 is
    calibrated on real examples, judged by the task's own metric on labelled ones, and shipped only if it loses
    less than one point and is faster.

    \b
    Example:
      aula build minilm --precision int8
      aula build ./my-encoder --precision int8 --calibrate sentences.txt --labelled labelled.tsv
      aula build ./digits --precision int8 --calibrate calibration.npz --labelled test.npz
    """
    settings = load_settings()
    recipe = find_recipe(model, Evidence(calibrate, labelled))
    engines = EngineStore(store or settings.home / "engines")
    options = BuildOptions(("fp32", *precisions), settings.whole("threads"), rebuild=rebuild)
    with progress_bar(quiet=as_json) as report:
        engine = build_engine(recipe, engines, options, progress=report)
    if as_json:
        print_json(_as_json(engine))
    else:
        print_manifest(results(), engine.manifest)
        results().print(f"Next: aula inspect {engine.manifest.key}", markup=False)


@click.command(short_help="What an engine is, and what proves it.")
@click.argument("engine")
@click.option("--store", type=click.Path(path_type=Path), help="Folder of engines; the home's if not given.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def inspect(engine: str, store: Path | None, as_json: bool) -> None:
    """Show the manifest of ENGINE: a key, or a model's name if only one engine of it is there.

    \b
    Example:
      aula inspect minilm
    """
    found = _find(engine, store)
    if as_json:
        print_json(_as_json(found))
    else:
        print_manifest(results(), found.manifest)


@click.command("verify", short_help="Prove an engine again, here and now.")
@click.argument("engine")
@click.option("--model", default=None, help="The model it was made from, if it is not one of aula's names.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="What it was calibrated on, if not aula's own.")
@click.option("--labelled", type=click.Path(path_type=Path), help="What it was judged by, if not aula's own.")
@click.option("--store", type=click.Path(path_type=Path), help="Folder of engines; the home's if not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_engine(
    engine: str,
    model: str | None,
    calibrate: Path | None,
    labelled: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Check the file's digest and run the gate of ENGINE again on this machine; exit code 5 if it fails.

    \b
    Example:
      aula verify minilm
    """
    found = _find(engine, store)
    verdict = verify(found, find_recipe(model or found.manifest.name, Evidence(calibrate, labelled)))
    if as_json:
        print_json({"engine": found.manifest.key, **asdict(verdict)})
    else:
        console = results()
        word = "[green]passed[/green]" if verdict.passed else f"[red]failed[/red]: {verdict.reason}"
        console.print(f"{found.manifest.key}: {word}")
        console.print(f"  relative error {verdict.relative_error:.1e}", markup=False)
        if verdict.metric is not None:
            drop = "" if verdict.drop is None else f", drop {100 * verdict.drop:.2f} points"
            console.print(f"  metric {verdict.metric:.4f}{drop}", markup=False)
        for name, milliseconds in verdict.milliseconds.items():
            console.print(f"  {name}: {milliseconds:.2f} ms", markup=False)
    if not verdict.passed:
        raise SystemExit(EngineError.exit_code)


def print_manifest(console: Console, manifest: Manifest) -> None:
    """The engine for people: what it is, and the table of what was tried."""
    console.print(
        f"[bold]{manifest.name}[/bold] for {manifest.target}: {manifest.precision} on {manifest.backend} "
        f"{manifest.backend_version}, {manifest.threads} threads, {manifest.model_digest[:12]}"
    )
    table = Table(box=None, header_style="bold")
    for column in ("precision", "backend", *manifest.profiles, "rel. error", "metric", "layers", ""):
        table.add_column(column)
    for candidate in manifest.candidates:
        times = [
            f"{candidate.milliseconds[name]:.2f} ms" if name in candidate.milliseconds else ""
            for name in manifest.profiles
        ]
        table.add_row(
            candidate.precision,
            candidate.backend,
            *times,
            "" if candidate.relative_error is None else f"{candidate.relative_error:.1e}",
            "" if candidate.metric is None else f"{candidate.metric:.4f}",
            ", ".join(f"{count} {precision}" for precision, count in candidate.layers.items()),
            candidate.rejected or ("← chosen" if candidate is manifest.chosen else ""),
        )
    console.print(table)
    if manifest.gate is not None:
        gate = manifest.gate
        console.print(f"Gate: {gate.metric} on {gate.examples} examples, reference {gate.reference:.4f}", markup=False)
    if manifest.quantisation is not None:
        made = manifest.quantisation
        back = f", {len(made.restored)} layers left in fp32" if made.restored else ""
        console.print(f"int8: {made.method} on {made.examples} examples of {made.source}{back}", markup=False)


def _find(name: str, store: Path | None) -> Engine:
    engines = EngineStore(store or load_settings().home / "engines").engines()
    found = [engine for engine in engines if name in (engine.manifest.key, engine.manifest.name)]
    if len(found) == 1:
        return found[0]
    what = f"there are {len(found)} engines of {name!r}" if found else f"there is no engine {name!r}"
    raise EngineError(
        what,
        available=[engine.manifest.key for engine in found or engines],
        next_step=f"name one of these, or build one: aula build {NAMES[0]}",
    )


def _as_json(engine: Engine) -> dict[str, Any]:
    return {"folder": str(engine.folder), **asdict(engine.manifest)}
