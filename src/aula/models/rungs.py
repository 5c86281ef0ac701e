"""Every rung this package knows, in the order in which they are tried. Nothing is loaded before it is asked for."""

from functools import partial

from aula.core.clock import Clock
from aula.core.settings import Settings
from aula.engine.precision import Progress
from aula.serving.places import Rung


def classroom_rungs(settings: Settings, clock: Clock | None, report: Progress) -> list[Rung]:
    """What a lesson needs, the embedder's own engine, and the engines that the settings name."""
    from aula.models import encoder_rungs, espeak, raw_bundles, silero

    return [
        Rung(silero.INFO, "detect", silero.SileroDetector),
        *hearing_rungs(settings, clock, report),
        *encoder_rungs.encoder_rungs(settings, report),
        *raw_bundles.bundle_rungs(settings),
        Rung(espeak.INFO, "speak", lambda: espeak.EspeakSpeaker(settings)),
    ]


def hearing_rungs(settings: Settings, clock: Clock | None, report: Progress, last_resort: bool = True) -> list[Rung]:
    """Every Whisper at hand, the best first, GPUs before the processor; our recogniser, where it is; PocketSphinx.

    Without `last_resort` Whisper alone: somebody asked for it by name, or needs its times.
    """
    from aula.models import ctc_rung, sphinx, whisper_rungs

    whispers = list(whisper_rungs.whisper_rungs(settings, clock, report))
    if not last_resort:
        return whispers
    folder = ctc_rung.find_folder(settings)
    own = [
        Rung(ctc_rung.info(place), "transcribe", partial(ctc_rung.open_transcriber, place, settings, report))
        for place in ([folder] if folder else [])
    ]
    return [
        *whispers,
        *own,
        Rung(sphinx.INFO, "transcribe", lambda: sphinx.SphinxTranscriber(settings)),
    ]
