"""`aula build`, `aula inspect` and `aula verify`"""

import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import click
import msgspec

from aula.backends.gpus import list_gpus
from aula.cli.engine_tables import bundle_as_json, plain, print_bundle, print_contexts, print_verdict
from aula.cli.farm import Asked, build_everywhere, plan_pipeline, progress_lines
from aula.cli.output import print_json, progress_bar, results
from aula.core.errors import EngineError, ModelNotFoundError
from aula.core.settings import Settings, load_settings
from aula.deploy.pipelines import KINDS
from aula.engine.build import MOST_DROP, TARGETS, BuildOptions
from aula.engine.build import build as build_bundle
from aula.engine.bundle import Bundle
from aula.engine.farm import assign
from aula.engine.locks import device_held, is_held
from aula.engine.manifest import TargetEngine, sealed
from aula.engine.plans import COMPATIBILITIES, USUAL_LEVEL, Compatibility, PlanOptions
from aula.engine.precision import Progress
from aula.engine.recipe import WHOLE, Model, Profile, Size
from aula.engine.store import Store, open_store
from aula.engine.targets import MIXED, PRECISIONS, read_targets
from aula.engine.targets import TARGETS as TARGET_TABLE
from aula.engine.verdicts import verdict_written
from aula.engine.verify import verify
from aula.models.catalogue import NAMES, Evidence, find_model
from aula.models.own_onnx import own_onnx_recipe

calibrate_option = click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Real examples for int8: sentences, one a line; a folder of pictures or recordings; or an npz file.",
)
labelled_option = click.option(
    "--labelled",
    type=click.Path(path_type=Path),
    help="Labelled ones to be judged by: lines of label, tab, sentence, or of clip, tab, text (or a folder with such a "
    "transcripts.tsv); a folder with a folder of pictures for each class; or an npz file.",
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
@click.option("--target", type=click.Choice(TARGETS), show_default="cpu", help="What to build for.")
@click.option(
    "--targets",
    metavar="LIST",
    help="Build for all of these that this machine has, beside each other, into one bundle: sm75,sm89,cpu.",
)
@click.option(
    "--plan-ci",
    "plan",
    type=click.Choice(KINDS),
    help="Build nothing: print the pipeline file that builds --targets on a machine of each kind, and merges them.",
)
@click.option("--image", help="The container image that has aula, for --plan-ci gitlab and kubernetes.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Also try this precision; fp32 always runs. May be given several times. A CPU has no fp16, a T4 no bf16.",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice((MIXED,)),
    help="Try int8 without this beside it: BF16 for what is not int8, where the processor has it.",
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
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=USUAL_LEVEL,
    show_default=True,
    help="GPU targets: how long TensorRT searches for kernels, 0 to 5. More takes far longer, and may find nothing.",
)
@click.option(
    "--compatibility",
    type=click.Choice(COMPATIBILITIES),
    default="exact",
    show_default=True,
    help="GPU targets: plans for this card alone, for every GPU from Ampere on (slower), or for all cards of its kind.",
)
@click.option(
    "--version-compatible", is_flag=True, help="GPU targets: plans that later releases of TensorRT load too (8 to 10)."
)
@click.option(
    "--stripped",
    is_flag=True,
    help="GPU targets: plans without weights, which all architectures share (TensorRT 10 on).",
)
@click.option(
    "--verdict", metavar="FILE", help="Write here, or to this URL, as JSON: did the build pass, and if not, why."
)
@click.option("--rebuild", is_flag=True, help="Build again, even if the same inputs were built before.")
@click.option(
    "--progress-lines", "as_lines", is_flag=True, hidden=True, help="Progress as JSON lines on standard error."
)
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def build(
    model: str,
    target: str | None,
    targets: str | None,
    plan: str | None,
    image: str | None,
    precisions: tuple[str, ...],
    without: tuple[str, ...],
    profiles: tuple[str, ...],
    calibrate: Path | None,
    labelled: Path | None,
    store: str | None,
    most_drop: float,
    level: int,
    compatibility: Compatibility,
    version_compatible: bool,
    stripped: bool,
    verdict: str | None,
    rebuild: bool,
    as_lines: bool,
    as_json: bool,
) -> None:
    """Turn a trained model into the fastest engines that pass their gate.

    MODEL is "minilm" or "recogniser"; a folder (config.json, model.safetensors) of the BERT family, Whisper, Wav2Vec2,
    Parakeet (CTC) or EfficientNet; a file that ends in .onnx; or owner/name on the Hugging Face hub
    (owner/name@revision pins one).
    Every precision is proven on every backend, at every profile, against a plain reference; lower precisions are judged
    by the task's own metric on labelled examples, and kept only if they lose at most --most-drop points and are faster.

    With --targets each target is built by a process of its own; those that this machine has no GPU for are left out,
    and said. --plan-ci prints a pipeline that builds them where they are: a GitHub workflow, a GitLab pipeline, or
    Kubernetes jobs, which want a --store that they all reach: a URL, or pvc://CLAIM/FOLDER.

    \b
    Example:
      aula build minilm --precision int8
      aula build ./my-encoder --precision int8 --calibrate sentences.txt --labelled labelled.tsv
      aula build ./flowers --precision int8 --calibrate pictures/ --labelled labelled-pictures/
      aula build ./whisper-small --precision int8 --calibrate recordings/ --labelled transcripts.tsv
      aula build model.onnx --profile "usual:batch=1-1-8,sequence=3-16-64"
      aula build openai/whisper-small --store s3://school/engines
      aula build minilm --targets sm75,sm89,cpu
      aula build minilm --targets sm75,sm89,cpu --plan-ci github > .github/workflows/engines.yml
    """
    plans = PlanOptions(level, compatibility, version_compatible, stripped)
    if plan is not None and targets is None:
        raise click.UsageError("--plan-ci wants to know for which targets: --targets sm75,sm89,cpu")
    if targets is not None:
        if target or verdict:
            raise click.UsageError("--targets builds for several; --target and --verdict are for one.")
        for one in read_targets(targets):
            BuildOptions(
                precisions, target=one, without=without
            )  # what some target does not have is refused before any is built
        asked = Asked(model, precisions, profiles, calibrate, labelled, store, most_drop, rebuild, plans, without)
        if plan is not None:
            click.echo(plan_pipeline(asked, read_targets(targets), plan, image), nl=False)
            return
        build_everywhere(asked, read_targets(targets), as_json=as_json)
        return
    target = target or "cpu"
    shown = progress_lines() if as_lines else progress_bar(quiet=as_json)
    with verdict_written(verdict, model, target) as passed, shown as report:
        settings = load_settings()
        engines = _store(store, settings)
        options = BuildOptions(
            ("fp32", *precisions),
            settings.whole("threads"),
            most_drop / 100,
            target,
            rebuild=rebuild,
            plans=plans,
            without=without,
        )
        found = find_model(model, Evidence(calibrate, labelled), profiles=profiles, home=settings.home, progress=report)
        exclusive = _exclusive(target, settings.home / "locks", report)
        bundle = build_bundle(found, engines, options, progress=report, exclusive=exclusive)
        passed(bundle)
    if as_json:
        print_json(bundle_as_json(bundle))
    else:
        print_bundle(results(), bundle)
        command = f"aula inspect {shlex.quote(bundle.manifest.key)}{_again(store)}"
        results().print(f"Next: {command}", markup=False, soft_wrap=True)


@click.command(short_help="What a bundle holds, and what proves it.")
@click.argument("bundle", required=False)
@store_option
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object.")
def inspect(bundle: str | None, store: str | None, as_json: bool) -> None:
    """Show the manifest of BUNDLE: a key, or a model's name. Its files are compared
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
            for key in keys or [f"There is no bundle in {engines} yet. Next: aula build {NAMES[0]}{_again(store)}"]:
                results().print(plain(key), soft_wrap=True)
        return
    found = engines.open(bundle)
    found.check()
    if as_json:
        print_json(bundle_as_json(found))
    else:
        print_bundle(results(), found)


@click.command("verify", short_help="Prove a bundle again, here and now.")
@click.argument("bundle")
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="Whose engines to prove.")
@click.option("--model", default=None, help="The model it was made from, if it is not one of aula's names.")
@profile_option
@calibrate_option
@labelled_option
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_bundle(
    bundle: str,
    target: str,
    model: str | None,
    profiles: tuple[str, ...],
    calibrate: Path | None,
    labelled: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Check the files' digests and run the gate of every part and profile of BUNDLE again on this machine; exit
    code 5 if one fails. The evidence that the build was given (--calibrate, --labelled) is given again, and --model
    where it was a folder or file; profiles are the bundle's own unless --profile gives others.

    With labelled clips a Whisper that passed is also heard in contexts shorter than 30 s: those that lose at most one
    point are written into the manifest, and serve from then on.

    \b
    Example:
      aula verify minilm
      aula verify my-encoder --model ./my-encoder --labelled labelled.tsv
      aula verify detector --model detector.onnx
    """
    settings = load_settings()
    engines = _store(store, settings)
    found = engines.open(bundle)
    evidence = Evidence(calibrate, labelled)
    manifest = found.manifest
    with progress_bar(quiet=as_json) as report:
        try:
            again = _model_again(found, target, model, evidence, profiles, settings.home, report)
        except ModelNotFoundError as error:
            if model is not None or manifest.origin or manifest.name in NAMES:
                raise
            raise ModelNotFoundError(
                f"{manifest.key} was made from {manifest.name!r}, which is no name that aula knows",
                available=NAMES,
                next_step="give the model it was made from: "
                f"aula verify {shlex.quote(manifest.key)} --model FILE{_again(store)}",
            ) from error
        report("proving", 0.5)
        verdicts = verify(found, again, target=target)
        report("proving", 1.0)
        passed = all(verdict.passed for verdict in verdicts)
        contexts = None
        if passed and again.prove_contexts is not None and target == "cpu":
            report("proving shorter contexts", 0.5)
            contexts = again.prove_contexts(found, settings.number("whisper.margin"))
            engines.publish(sealed(replace(manifest, contexts=contexts)))
            report("proving shorter contexts", 1.0)
    if as_json:
        parts = [asdict(verdict) for verdict in verdicts]
        print_json(
            {"bundle": manifest.key, "passed": passed, "parts": parts, "contexts": msgspec.to_builtins(contexts)}
        )
    else:
        for verdict in verdicts:
            print_verdict(results(), found, verdict)
        print_contexts(results(), contexts)
    if not passed:
        raise SystemExit(EngineError.exit_code)


def _exclusive(target: str, locks: Path, report: Progress) -> Callable[[], AbstractContextManager[None]]:
    """Holds the device that is built on: the CPU, or the GPU that CUDA shall choose. Without such a GPU there is
    nothing to hold, and the builder says what is missing."""
    jobs, _ = assign([target], list_gpus(), lambda gpu: not is_held(locks, gpu.uuid))
    if not jobs:
        return nullcontext
    gpu = jobs[0].gpu
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    return lambda: device_held(locks, gpu.uuid if gpu else target, lambda what: report(what, 0.0))


def _model_again(
    bundle: Bundle,
    target: str,
    model: str | None,
    evidence: Evidence,
    profiles: tuple[str, ...],
    home: Path,
    report: Progress,
) -> Model:
    """The model that the bundle was made from, with the bundle's profiles unless others are given."""
    manifest = bundle.manifest
    origin = manifest.origin
    source = model or (f"{origin.name}@{origin.revision}" if origin else manifest.name)
    known = {name: _profiles(bundle.engine(name, target)) for name in manifest.parts}
    path = Path(source)
    if path.suffix == ".onnx" and not profiles and WHOLE in known:
        # Such a graph has no profiles of its own to begin with.
        free = tuple(profile for profile in known[WHOLE] if profile.sizes)
        return Model.of(
            own_onnx_recipe(path, path.stem, profiles=free, calibrate=evidence.calibrate, labelled=evidence.labelled)
        )
    found = find_model(source, evidence, profiles=profiles, home=home, progress=report)
    if profiles:
        return found
    gpu = TARGET_TABLE[target].is_gpu
    parts = {
        name: replace(recipe, profiles=known[name], gpu_profiles=()) if name in known else recipe
        for name, recipe in found.parts_for(gpu).items()
    }
    return replace(found, gpu_parts=parts) if gpu else replace(found, parts=parts)


def _profiles(engine: TargetEngine) -> tuple[Profile, ...]:
    return tuple(
        Profile(name, {dimension: Size(*extent) for dimension, extent in sizes.items()})
        for name, sizes in engine.profiles.items()
    )


def _again(store: str | None) -> str:
    """What a next command has to repeat of this one."""
    return f" --store {shlex.quote(store)}" if store else ""


def _store(place: str | None, settings: Settings) -> Store:
    return open_store(place or settings.home / "engines", settings.home / "fetched")
