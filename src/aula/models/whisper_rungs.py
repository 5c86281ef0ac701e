"""Rungs of `transcribe` that are Whispers: of each one the GPUs for which the store has engines, then the processor."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from aula.backends.gpus import list_gpus
from aula.core.clock import Clock
from aula.core.errors import AulaError
from aula.core.settings import Settings
from aula.engine.precision import Progress
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.models.raw_bundles import engine_bytes
from aula.models.whisper import MOST_ROWS
from aula.models.whisper_engines import serves_on
from aula.models.whisper_transcriber import Place, WhisperTranscriber, find_places
from aula.serving.places import Rung

GPU_STREAMS = 16
"""Streams that one GPU serves pass by pass; as many as it has rows are written at once."""


def whisper_rungs(settings: Settings, clock: Clock | None, report: Progress) -> Iterator[Rung]:
    """The largest Whisper first. Nothing is loaded, and nothing built for a GPU."""
    for place in find_places(settings):
        yield from _on_gpus(place, settings, clock, report)
        load = partial(WhisperTranscriber.open, place, settings, report, clock)
        yield Rung(place.info, "transcribe", load, at_once=MOST_ROWS)


def _on_gpus(place: Place, settings: Settings, clock: Clock | None, report: Progress) -> Iterator[Rung]:
    for gpu in list_gpus():
        target = next((one.name for one in TARGETS.values() if one.capability == gpu.capability), "")
        needs = _bytes_on(place, settings, target)
        if needs is None:
            continue
        name = f"gpu{gpu.index}"
        info = replace(place.info, name=f"{place.name}@{name}", note=f"{place.info.note}, on a GPU")
        load = partial(WhisperTranscriber.open_on_gpu, place, settings, target, gpu.index, report, clock)
        yield Rung(info, f"transcribe@{name}", load, name, needs=partial(int, needs), at_once=GPU_STREAMS)


def _bytes_on(place: Place, settings: Settings, target: str) -> int | None:
    """What its engines take on such a GPU at least; None where the store has none. Whether they were made from this
    very checkpoint is asked when they are loaded: that takes reading it."""
    store = Store(settings.home / "engines")
    try:
        keys = store.keys_of(place.name.partition("@")[0].rpartition("/")[2])
    except AulaError:
        return None
    for key in keys:
        try:
            bundle = store.open(key)
        except AulaError:
            continue
        if serves_on(bundle, target):
            return sum(engine_bytes(bundle.engine(part, target)) for part in ("encoder", "decoder"))
    return None
