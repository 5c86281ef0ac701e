"""Rungs of the sentence encoder: GPUs for which the home's store has its engine, then this machine's processor."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

from aula.backends.gpus import list_gpus
from aula.backends.hosting.records import hosting_for
from aula.core.errors import AulaError, BundleError
from aula.core.settings import Settings
from aula.engine.bundle import Bundle
from aula.engine.identity import digest_sources
from aula.engine.precision import Progress
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.models import bert, intents
from aula.models.raw_bundles import engine_bytes
from aula.serving.places import Rung


def encoder_rungs(settings: Settings, report: Progress) -> list[Rung]:
    """Of `understand` and `embed`, and the processor's engine as it is. Each place's rungs share one encoder."""

    @cache
    def here() -> bert.SentenceEncoder:
        return bert.SentenceEncoder.minilm(settings, report)

    def understander() -> intents.IntentUnderstander:
        return intents.IntentUnderstander(here(), settings.home / "engines")

    return [
        *_gpu_rungs(settings),
        Rung(bert.UNDERSTAND_INFO, "encode", understander, forget=here.cache_clear),
        Rung(bert.EMBED_INFO, "encode", here, forget=here.cache_clear),
        Rung(bert.ENGINE_INFO, "encode", lambda: here().engine, forget=here.cache_clear, engine=bert.ENGINE),
    ]


def _gpu_rungs(settings: Settings) -> Iterator[Rung]:
    """Nothing is built for a GPU here: `aula build minilm --target …` does."""
    for gpu in list_gpus():
        target = next((one.name for one in TARGETS.values() if one.capability == gpu.capability), "")
        bundle = _bundle_for(target, Store(settings.home / "engines")) if target else None
        if bundle is None:
            continue
        encoder = cache(partial(_open, bundle, target, gpu.index, settings))
        place = f"gpu{gpu.index}"

        def understander(encoder: Callable[[], bert.SentenceEncoder] = encoder) -> intents.IntentUnderstander:
            return intents.IntentUnderstander(encoder(), settings.home / "engines")

        needs = partial(engine_bytes, bundle.engine(target=target))
        for info, load in ((bert.UNDERSTAND_INFO, understander), (bert.EMBED_INFO, encoder)):
            yield Rung(
                replace(info, name=f"{info.name}@{place}"),
                f"encode@{place}",
                load,
                device=place,
                # They are one engine. Either may be loaded alone: rather counted twice than never.
                needs=needs,
                forget=encoder.cache_clear,
            )


def _bundle_for(target: str, store: Store) -> Bundle | None:
    """The newest that has an engine for that target and can be trusted."""
    try:
        keys = store.keys_of(bert.ENGINE.name)
    except AulaError:
        return None
    for key in keys:
        try:
            bundle = store.open(key)
            bundle.engine(target=target)
            return bundle
        except AulaError:
            continue
    return None


def _open(bundle: Bundle, target: str, device: int, settings: Settings) -> bert.SentenceEncoder:
    """Raises BundleError where it was made from other weights than those of the package."""
    if dict(bundle.part().sources) != digest_sources(bert.minilm_recipe()):
        raise BundleError(
            f"the bundle {bundle.manifest.key} was made from another checkpoint than this machine's",
            next_step=f"build it anew: aula build minilm --target {target}",
        )
    session = bundle.open(target=target, device=device, hosting=hosting_for(settings, "gpu"))
    return bert.SentenceEncoder(session, bert.minilm_checkpoint(), bert.DIMENSIONS)
