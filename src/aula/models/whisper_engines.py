"""Whisper's engines: found in the store by the checkpoint that they were made from, or built, and opened."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

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


def find_bundle(checkpoint: Checkpoint, settings: Settings, progress: Progress | None = None) -> Bundle:
    """The fastest bundle that was made from this very checkpoint; one is built where there is none. It was opened
    once, so it is whole."""
    origin = hub.origin_of(checkpoint.folder)
    name = origin.name.rpartition("/")[2] if origin else checkpoint.folder.resolve().name
    model = replace(whisper_model(checkpoint, name), origin=origin)
    store = Store(settings.home / "engines")
    for bundle in _candidates(model, store):
        try:
            bundle.check()
            return bundle
        except (BundleError, VerificationError, BackendError):
            continue
    options = BuildOptions(threads=settings.whole("threads"))
    return build(model, store, options, progress=progress)


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


def _candidates(model: Model, store: Store) -> Iterator[Bundle]:
    """Bundles of the same files and the same graphs, those proven on this processor first, then the fastest."""
    sources = {name: digest_sources(recipe) for name, recipe in model.parts.items()}
    found = []
    for bundle in store.all():
        manifest = bundle.manifest
        same = {name: dict(part.sources) for name, part in manifest.parts.items()} == sources
        if same and not manifest.seeded and "cpu" in manifest.targets and _is_current(bundle):
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
