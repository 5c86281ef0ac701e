"""`aula build`, `aula inspect` and `aula verify`"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from aula.cli.output import print_json, progress_bar, results
from aula.core.errors import EngineError
from aula.core.settings import Settings, load_settings
from aula.engine.build import MOST_DROP, TARGETS, BuildOptions
from aula.engine.build import build as build_bundle
from aula.engine.bundle import Bundle
from aula.engine.manifest import GraphSize, Part, TargetEngine
from aula.engine.precision import PRECISIONS
from aula.engine.store import Store, open_store
from aula.engine.verify import Verdict, verify
from aula.models.catalogue import NAMES, Evidence, find_model

calibrate_option = click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Real examples for int8: sentences, one a line; a list of clips; or an npz file.",
)
labelled_option = click.option(
    "--labelled",
    type=click.Path(path_type=Path),
    help="Labelled ones to be judged by: lines of label, tab, sentence; of clip, tab, text; or an npz file.",
)
profile_option = click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="SPEC",
    help='Sizes to serve, like "question:batch=1,sequence=3-16-64", or "@requests.jsonl" for recorded ones.',
)
store_option = click.option("--store", help="Folder of bundles, or an fsspec URL (s3://…); the home's if not given.")


@click.command(short_help="Turn a trained model into the fastest engines that pass their gate.")
@click.argument("model")
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="What to build for.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Also try this precision; fp32 always runs. May be given several times.",
)
@profile_option
@calibrate_option
@labelled_option
@store_option
@click.option(
    "--most-drop",
    type=click.FloatRange(0, 100),
    default=100 * MOST_DROP,
    show_default=True,
    help="Points of its task's metric (0 to 100) that a lower precision may lose.",
)
@click.option("--rebuild", is_flag=True, help="Build again, even if the same inputs were built before.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def build(
    model: str,
    target: str,
    precisions: tuple[str, ...],
    profiles: tuple[str, ...],
    calibrate: Path | None,
    labelled: Path | None,
    store: str | None,
    most_drop: float,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Turn a trained model into the fastest engines that pass their gate.

    MODEL is "minilm"; a folder (config.json, model.safetensors) of the BERT family, Whisper or EfficientNet; a file
    that ends in .onnx; or owner/name on the Hugging Face hub (owner/name@revision pins one). Every precision is
    proven on every backend, at every profile, against a plain reference; lower precisions are judged by the task's
    own metric on labelled examples, and shipped only if they lose less than one point and are faster.

    \b
    Example:
      aula build minilm --precision int8
      aula build ./my-encoder --precision int8 --calibrate sentences.txt --labelled labelled.tsv
      aula build ./digits --precision int8 --calibrate calibration.npz --labelled test.npz
      aula build model.onnx --profile "usual:batch=1-1-8,sequence=3-16-64"
      aula build openai/whisper-small --store s3://school/engines
    """
    settings = load_settings()
    engines = _store(store, settings)
    options = BuildOptions(
        ("fp32", *precisions), settings.whole("threads"), most_drop / 100, target=target, rebuild=rebuild
    )
    with progress_bar(quiet=as_json) as report:
        found = find_model(model, Evidence(calibrate, labelled), profiles=profiles, home=settings.home, progress=report)
        bundle = build_bundle(found, engines, options, progress=report)
    if as_json:
        print_json(_as_json(bundle))
    else:
        print_bundle(results(), bundle)
        results().print(f"Next: aula inspect {bundle.manifest.key}", markup=False)


@click.command(short_help="What a bundle holds, and what proves it.")
@click.argument("bundle", required=False)
@store_option
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def inspect(bundle: str | None, store: str | None, as_json: bool) -> None:
    """Show the manifest of BUNDLE: a key, or a model's name if only one bundle of it is there. Its files are compared
    with their digests. Without BUNDLE: the keys of all.

    \b
    Example:
      aula inspect minilm
    """
    engines = _store(store, load_settings())
    if bundle is None:
        keys = engines.keys()
        if as_json:
            print_json({"store": str(engines), "bundles": keys})
        else:
            for key in keys or [f"There is no bundle in {engines} yet. Next: aula build {NAMES[0]}"]:
                results().print(key, markup=False)
        return
    found = engines.open(bundle)
    found.check()
    if as_json:
        print_json(_as_json(found))
    else:
        print_bundle(results(), found)


@click.command("verify", short_help="Prove a bundle again, here and now.")
@click.argument("bundle")
@click.option("--model", default=None, help="The model it was made from, if it is not one of aula's names.")
@profile_option
@calibrate_option
@labelled_option
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_bundle(
    bundle: str,
    model: str | None,
    profiles: tuple[str, ...],
    calibrate: Path | None,
    labelled: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Check the files' digests and run the gate of every part and profile of BUNDLE again on this machine; exit
    code 5 if one fails. What the build was given (--calibrate, --labelled, --profile) is given again.

    \b
    Example:
      aula verify minilm
      aula verify my-encoder --model ./my-encoder --labelled labelled.tsv
    """
    settings = load_settings()
    found = _store(store, settings).open(bundle)
    evidence = Evidence(calibrate, labelled)
    origin = found.manifest.origin
    source = model or (f"{origin.name}@{origin.revision}" if origin else found.manifest.name)
    with progress_bar(quiet=as_json) as report:
        again = find_model(source, evidence, profiles=profiles, home=settings.home, progress=report)
        report("proving", 0.5)
        verdicts = verify(found, again)
        report("proving", 1.0)
    passed = all(verdict.passed for verdict in verdicts)
    if as_json:
        parts = [asdict(verdict) for verdict in verdicts]
        print_json({"bundle": found.manifest.key, "passed": passed, "parts": parts})
    else:
        for verdict in verdicts:
            _print_verdict(results(), found, verdict)
    if not passed:
        raise SystemExit(EngineError.exit_code)


def print_bundle(console: Console, bundle: Bundle) -> None:
    """The bundle for people: what it is, and for every part the table of what was tried."""
    manifest = bundle.manifest
    origin = f", {manifest.origin.name} at {manifest.origin.revision[:12]}" if manifest.origin else ""
    seeded = ", made-up weights: for measuring only" if manifest.seeded else ""
    console.print(f"[bold]{manifest.name}[/bold] for {', '.join(manifest.targets)}{origin}{seeded}")
    for name, part in manifest.parts.items():
        for target, engine in part.engines.items():
            _print_engine(console, "" if len(manifest.parts) == 1 else f"{name}, ", target, part, engine)
    licences = "; ".join(f"{one.component}: {one.licence}" for one in manifest.licences)
    if licences:
        console.print(f"Licences: {licences}", markup=False)


def _print_engine(console: Console, title: str, target: str, part: Part, engine: TargetEngine) -> None:
    console.print(
        f"{title}{target}: [bold]{engine.precision}[/bold] on {engine.backend} {engine.backend_version}, "
        f"{engine.threads} threads, {engine.machine}, {engine.files[0].digest[:12]}"
    )
    table = Table(box=None, header_style="bold")
    for column in ("precision", "backend", *part.profiles, "rel. error", "metric", "layers", ""):
        table.add_column(column)
    for candidate in engine.candidates:
        table.add_row(
            candidate.precision,
            candidate.backend,
            *(_milliseconds(candidate.milliseconds.get(name)) for name in part.profiles),
            "" if candidate.relative_error is None else f"{candidate.relative_error:.1e}",
            "" if candidate.metric is None else f"{candidate.metric:.4f}",
            ", ".join(f"{count} {precision}" for precision, count in candidate.layers.items()),
            candidate.rejected or ("← chosen" if candidate is engine.chosen else ""),
        )
    console.print(table)
    console.print(f"  graph: {_size(part.written)} → {_size(engine.graph)}", markup=False)
    if engine.gate is not None:
        gate = engine.gate
        console.print(
            f"  gate: {gate.metric} on {gate.examples} examples, reference {gate.reference:.4f}", markup=False
        )
    if engine.quantisation is not None:
        made = engine.quantisation
        back = f", {len(made.restored)} layers left in fp32" if made.restored else ""
        console.print(f"  int8: {made.method} on {made.examples} examples of {made.source}{back}", markup=False)


def _size(graph: GraphSize) -> str:
    return (
        f"{graph.operators} operators, {graph.parameters / 1e6:.1f} M weights in {graph.weight_bytes / 1e6:.1f} MB, "
        f"{graph.operations / 1e9:.2f} GFLOP"
    )


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"


def _print_verdict(console: Console, bundle: Bundle, verdict: Verdict) -> None:
    word = "[green]passed[/green]" if verdict.passed else f"[red]failed[/red]: {verdict.reason}"
    part = "" if len(bundle.manifest.parts) == 1 else f" {verdict.part}"
    console.print(f"{bundle.manifest.key}{part}: {word}")
    console.print(f"  relative error {verdict.relative_error:.1e}", markup=False)
    if verdict.metric is not None:
        drop = "" if verdict.drop is None else f", drop {100 * verdict.drop:.2f} points"
        console.print(f"  metric {verdict.metric:.4f}{drop}", markup=False)
    for name, milliseconds in verdict.milliseconds.items():
        console.print(f"  {name}: {milliseconds:.2f} ms", markup=False)


def _store(place: str | None, settings: Settings) -> Store:
    return open_store(place or settings.home / "engines", settings.home / "fetched")


def _as_json(bundle: Bundle) -> dict[str, Any]:
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    return {"files": str(bundle.files), **manifest}
