"""Whisper's engines: found in the store by the checkpoint that they were made from, or built, and opened."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session
from aula.core.errors import AulaError, BackendError, BundleError, VerificationError
from aula.core.settings import Settings
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.identity import digest_sources, processor
from aula.engine.precision import Progress
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models import hub
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import whisper_model
from aula.models.whisper_device import open_device
from aula.models.whisper_reader import READ_PROFILE, ROWS_PROFILE, STEP_PROFILE


def find_bundle(checkpoint: Checkpoint, settings: Settings, progress: Progress | None = None) -> Bundle:
    """The fastest bundle that was made from this very checkpoint; one is built where there is none. It was opened
    once, so it is whole."""
    model, store = _model_of(checkpoint), Store(settings.home / "engines")
    for bundle in _candidates(model, store):
        try:
            bundle.check("cpu")
            return bundle
        except (BundleError, VerificationError, BackendError):
            continue
    options = BuildOptions(threads=settings.whole("threads"))
    return build(model, store, options, progress=progress)


def find_device_bundle(checkpoint: Checkpoint, settings: Settings, target: str) -> Bundle:
    """The bundle with the fastest step on that kind of GPU that was made from this very checkpoint. Raises BundleError
    where there is none: nothing is built for a GPU while somebody waits."""
    model = _model_of(checkpoint)
    serving = [bundle for bundle in _made_from(model, Store(settings.home / "engines")) if serves_on(bundle, target)]
    if not serving:
        raise BundleError(
            f"there are no engines of {model.name} for {target} that were made from this checkpoint and serve",
            next_step=f"build them: aula build {checkpoint.folder} --targets {target},cpu",
        )
    return min(serving, key=lambda bundle: bundle.engine("decoder", target).chosen.milliseconds[STEP_PROFILE])


def serves_on(bundle: Bundle, target: str) -> bool:
    """Whether it has all that a GPU of that kind needs to hear: an encoder, and a decoder that is a reader of our own
    kernels. Where these failed their gate, TensorRT's fp32 is there, whose caches the encoder's fp16 does not fit."""
    parts = bundle.manifest.parts
    if bundle.manifest.seeded or not {"encoder", "decoder"} <= parts.keys():
        return False
    if not all(target in parts[part].engines for part in ("encoder", "decoder")):
        return False
    engine = bundle.engine("decoder", target)
    reads = engine.backend == "kernels" and {"text", "position", "rule", "heard"} <= set(engine.inputs)
    return reads and {STEP_PROFILE, ROWS_PROFILE, READ_PROFILE} <= set(engine.profiles)


def open_whole(bundle: Bundle, target: str, device: int, hosting: Hosting | None = None) -> Session:
    """A `WhisperDevice` on the GPU of that number; with `hosting` in a process of its own."""
    opener = partial(open_device, bundle, target, device)
    return opener() if hosting is None else HostedSession(opener, hosting)


def open_sessions(bundle: Bundle, hosting: Hosting | None = None) -> tuple[Session, Session]:
    """Encoder and decoder; with `hosting` each in a process of its own."""
    encoder = bundle.open("encoder", hosting=hosting)
    try:
        decoder = bundle.open("decoder", hosting=hosting)
    except AulaError:
        encoder.close()
        raise
    if isinstance(decoder, HostedSession):
        # A sound is not written again, nor are the sounds of several rows once they lie side by side.
        decoder.steady = frozenset(spec.name for spec in decoder.inputs if spec.name.startswith("cross_"))
    return encoder, decoder


def _model_of(checkpoint: Checkpoint) -> Model:
    origin = hub.origin_of(checkpoint.folder)
    name = origin.name.rpartition("/")[2] if origin else checkpoint.folder.resolve().name
    return replace(whisper_model(checkpoint, name), origin=origin)


def _made_from(model: Model, store: Store) -> Iterator[Bundle]:
    """Bundles of the same files."""
    sources = {name: digest_sources(recipe) for name, recipe in model.parts.items()}
    for bundle in store.all():
        if {name: dict(part.sources) for name, part in bundle.manifest.parts.items()} == sources:
            yield bundle


def _candidates(model: Model, store: Store) -> Iterator[Bundle]:
    """Bundles of the same files and the same graphs, those proven on this processor first, then the fastest."""
    found = []
    for bundle in _made_from(model, store):
        manifest = bundle.manifest
        if not manifest.seeded and "cpu" in manifest.targets and _is_current(bundle):
            engines = [bundle.engine(part) for part in ("encoder", "decoder")]
            foreign = any(engine.machine != processor() for engine in engines)
            listening, stepping = (engine.chosen.milliseconds for engine in engines)
            took = listening.get("question", 0) + 20 * stepping.get("step", 0)
            found.append((foreign, took, manifest.key, bundle))
    yield from (bundle for *_, bundle in sorted(found, key=lambda row: row[:3]))


def _is_current(bundle: Bundle) -> bool:
    """Whether the decoder takes what this version's loop gives it."""
    engine = bundle.engine("decoder")
    return {"tokens", "places", "position", "heard", "rule"} <= set(engine.inputs) and "step" in engine.profiles


def close_all(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.close()
