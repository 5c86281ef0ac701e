"""Bundles and verdicts for people, within 80 columns. What a manifest says is data from elsewhere: it is printed as it
is, never read as markup."""

from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aula.engine.bundle import Bundle
from aula.engine.manifest import Candidate, Device, GraphSize, Inspection, Quantisation, TargetEngine
from aula.engine.recipe import ContextProof
from aula.engine.verify import Verdict

MOST_PROFILES = 3
"""Columns of times that 80 columns have room for."""
MOST_LAYERS = 4
"""Names of layers on one line."""


def plain(text: str, style: str = "") -> Text:
    """The text, with a mark for each character that would not print but act on the terminal."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), style)


def bundle_as_json(bundle: Bundle) -> dict[str, Any]:
    """The manifest, and the folder in which its files lie."""
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    return {"files": str(bundle.files), **manifest}


def print_bundle(console: Console, bundle: Bundle) -> None:
    """The bundle for people: what it is, and for every part the table of what was tried."""
    manifest = bundle.manifest
    origin = f", {manifest.origin.name} at {manifest.origin.revision[:12]}" if manifest.origin else ""
    seeded = ", made-up weights: for measuring only" if manifest.seeded else ""
    title = plain(manifest.name, "bold")
    _line(console, title, plain(f" for {', '.join(manifest.targets)}{origin}{seeded}"))
    for name, part in manifest.parts.items():
        for target, engine in part.engines.items():
            _print_engine(console, "" if len(manifest.parts) == 1 else f"{name}, ", target, engine)
    print_contexts(console, manifest.contexts)
    licences = "; ".join(f"{one.component}: {one.licence}" for one in manifest.licences)
    if licences:
        _line(console, plain(f"Licences: {licences}"))


def print_contexts(console: Console, proof: ContextProof | None) -> None:
    """In which contexts sounds of each length are heard, and what proves it."""
    if proof is None:
        return
    _line(console, plain(f"Contexts, {proof.metric} on {proof.examples} clips, margin {proof.margin:g} s:"))
    for bucket, metrics in proof.measured.items():
        tried = ", ".join(f"{name if name == 'whole' else f'{name} s'} {value:.4f}" for name, value in metrics.items())
        heard = f"{proof.safe[bucket]:g} s" if bucket in proof.safe else "the whole window"
        _line(console, plain(f"  up to {bucket} s: {heard} ({tried})"))
    if not proof.measured:
        _line(console, plain("  too few clips of any length to prove one: the whole window"))


def print_verdict(console: Console, bundle: Bundle, verdict: Verdict) -> None:
    """What one part of the bundle did here."""
    part = "" if len(bundle.manifest.parts) == 1 else f" {verdict.part}"
    word = Text("passed", "green") if verdict.passed else Text("failed", "red")
    reason = "" if verdict.passed else f": {verdict.reason}"
    _line(console, plain(f"{bundle.manifest.key}{part}, {verdict.precision}: "), word, plain(reason))
    if verdict.relative_error is not None:
        _line(console, plain(f"  relative error {verdict.relative_error:.1e}"))
    if verdict.metric is not None:
        drop = "" if verdict.drop is None else f", drop {100 * verdict.drop:.2f} points"
        _line(console, plain(f"  metric {verdict.metric:.4f}{drop}"))
    for name, milliseconds in verdict.milliseconds.items():
        _line(console, plain(f"  {name}: {milliseconds:.2f} ms"))


def _print_engine(console: Console, title: str, target: str, engine: TargetEngine) -> None:
    _line(
        console,
        plain(f"{title}{target}: "),
        plain(engine.precision, "bold"),
        plain(
            f" on {engine.backend} {engine.backend_version}, {engine.threads} threads, {engine.machine}, "
            f"{engine.files[0].digest[:12]}"
        ),
    )
    profiles = list(engine.profiles)
    console.print(_table(engine, profiles[:MOST_PROFILES]))
    more = f"; {len(profiles) - MOST_PROFILES} more profiles: see --json" if len(profiles) > MOST_PROFILES else ""
    _line(console, plain(f"  ms of one run by profile; layers that truly run in the precision, of all{more}", "dim"))
    for candidate in engine.candidates:
        if candidate.rejected:
            _line(console, plain(f"  left out: {candidate.precision} on {candidate.backend}: {candidate.rejected}"))
    _line(console, plain(f"  graph: {_size(engine.written)} → {_size(engine.graph)}"))
    if engine.device is not None:
        _print_device(console, engine.device)
    for profile, told in engine.inspection.items():
        _line(console, plain(f"  {profile}: {_inspection(told)}"))
    if engine.gate is not None:
        gate = engine.gate
        _line(console, plain(f"  gate: {gate.metric} on {gate.examples} examples, reference {gate.reference:.4f}"))
    if engine.quantisation is not None:
        _print_quantisation(console, engine.quantisation)


def _print_device(console: Console, device: Device) -> None:
    served = {
        "exact": "this kind of card alone",
        "ampere-plus": "every card from Ampere on",
        "same-capability": f"every card of compute capability {device.capability}",
    }[device.compatibility]
    later = ", later TensorRT too" if device.version_compatible else ""
    _line(
        console,
        plain(
            f"  device: {device.name}, compute capability {device.capability}, driver {device.driver}; for "
            f"{served}{later}"
        ),
    )


def _table(engine: TargetEngine, profiles: list[str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("precision", "backend"):
        table.add_column(column, no_wrap=True)
    for profile in profiles:
        table.add_column(plain(profile), justify="right", overflow="fold", min_width=7)
    for column in ("error", "metric", "layers"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for candidate in engine.candidates:
        table.add_row(
            plain(candidate.precision),
            plain(candidate.backend),
            *(_milliseconds(candidate.milliseconds, name) for name in profiles),
            "" if candidate.relative_error is None else f"{candidate.relative_error:.1e}",
            "" if candidate.metric is None else f"{candidate.metric:.4f}",
            _layers(candidate),
            "left out" if candidate.rejected else "← chosen" if candidate is engine.chosen else "",
        )
    return table


def _print_quantisation(console: Console, made: Quantisation) -> None:
    _line(console, plain(f"  int8: {made.method} on {made.examples} examples of {made.source}"))
    if made.tried:
        tried = ", ".join(f"{method} {metric:.4f}" for method, metric in made.tried.items())
        _line(console, plain(f"  methods tried, by metric: {tried}"))
    if made.restored:
        more = ", …" if len(made.restored) > MOST_LAYERS else ""
        names = ", ".join(made.restored[:MOST_LAYERS])
        _line(console, plain(f"  {len(made.restored)} layers put back into fp32: {names}{more}"))


def _line(console: Console, *pieces: Text) -> None:
    console.print(Text.assemble(*pieces), soft_wrap=True)


def _layers(candidate: Candidate) -> str:
    every = sum(candidate.layers.values())
    told = "+".join(str(candidate.layers.get(one, 0)) for one in candidate.precision.split("+"))
    return f"{told}/{every}" if every else ""


def _size(graph: GraphSize) -> str:
    return (
        f"{graph.operators} operators, {graph.parameters / 1e6:.1f} M weights in {graph.weight_bytes / 1e6:.1f} MB, "
        f"{graph.operations / 1e9:.2f} GFLOP"
    )


def _inspection(told: Inspection) -> str:
    shares = ", ".join(f"{count} in {precision}" for precision, count in told.precisions.items())
    return f"{told.operators} operators → {told.layers} layers, {told.fused} of them fused; {shares}"


def _milliseconds(times: Mapping[str, float], profile: str) -> str:
    return f"{times[profile]:.2f}" if profile in times else ""
