"""The recogniser that ships with this package, or another one that the settings name, as a rung of `transcribe`."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aula.backends.session import Session
from aula.core.errors import (
    AulaError,
    BackendError,
    CheckpointError,
    ModelNotFoundError,
    SettingsError,
    VerificationError,
)
from aula.core.settings import Settings
from aula.core.types import Capability, Licence, RungInfo
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.precision import Progress
from aula.engine.recipe import Model, Recipe
from aula.engine.store import Store
from aula.models import parakeet_config, wav2vec2
from aula.models.checkpoints import WEIGHTS, Checkpoint
from aula.models.ctc import ctc_recipe
from aula.models.ctc_confidence import Calibration
from aula.models.ctc_config import KIND, CtcConfig, read_alphabet
from aula.models.ctc_hearing import CtcHearing
from aula.models.ctc_language import read_language
from aula.models.ctc_task import Labelled
from aula.models.ctc_transcriber import CtcTranscriber
from aula.models.ctc_whole import WholeHearing
from aula.models.parakeet import PARAKEET

NAME = "recogniser"
PACKAGED = Path(__file__).parent / NAME
"""Where the weights lie that ship: see CARD.md there."""
LICENCES = (Licence("the recogniser", "Apache-2.0", "trained here from free voices and speechocean762: see its card"),)
WHOLE = {wav2vec2.KIND: wav2vec2.WAV2VEC2, parakeet_config.KIND: PARAKEET}
"""Architectures of others, which hear a sound as a whole."""
KINDS = (KIND, *WHOLE)
"""What config.json may call a recogniser's architecture."""
NONE = "none"
"""The setting `recogniser` of those who want none."""


def info(folder: Path) -> RungInfo:
    name = NAME if folder == PACKAGED else folder.resolve().name
    licences = LICENCES if folder == PACKAGED else ()
    whole = False
    with suppress(CheckpointError):  # said when it is opened
        whole = folder != PACKAGED and Checkpoint(folder).read_json("config.json").get("model_type") in WHOLE
    how = "hears English, each sound as a whole" if whole else "streams English in chunks of 320 ms"
    return RungInfo(name, Capability.TRANSCRIBE, frozenset({"en"}), how, licences)


def find_folder(settings: Settings) -> Path | None:
    """The folder that the settings name, or the one that ships; None where there is none. Nothing is loaded.

    Raises SettingsError for a folder that holds no recogniser.
    """
    named = settings.text(NAME)
    if named == NONE:
        return None
    if not named:
        return PACKAGED if (PACKAGED / WEIGHTS).is_file() else None
    folder = Path(named).expanduser()
    if not (folder / "config.json").is_file():
        raise SettingsError(
            f"recogniser is {named!r}, where there is no config.json",
            next_step="give a folder with config.json, model.safetensors and tokens.json, or none",
        )
    return folder


def packaged_checkpoint() -> Checkpoint:
    """Raises ModelNotFoundError where this copy of the package has no weights."""
    if not (PACKAGED / WEIGHTS).is_file():
        raise ModelNotFoundError(
            "this copy of aula carries no recogniser", next_step="train one: see training/recogniser/README.md"
        )
    return Checkpoint(PACKAGED)


def open_transcriber(folder: Path, settings: Settings, progress: Progress | None = None) -> CtcTranscriber:
    """The engine comes from the store and is built on first use, int8 beside fp32: what is faster and loses no words
    stays. Raises CheckpointError for what is no whole recogniser, and what building raises."""
    checkpoint = Checkpoint(folder)
    raw = checkpoint.read_json("config.json")
    calibration = Calibration.read(raw)
    recipe = recipe_of(checkpoint, NAME if folder == PACKAGED else folder.resolve().name)
    hearing: CtcHearing | WholeHearing
    if kind := WHOLE.get(str(raw.get("model_type"))):
        alphabet = kind.alphabet(checkpoint)
        session = open_engine(recipe, settings, progress, None)
        hearing = kind.hearing(session, checkpoint)
    else:
        config = CtcConfig.from_checkpoint(checkpoint)
        alphabet = read_alphabet(checkpoint, config.units)
        session = open_engine(recipe, settings, progress, "chunk")
        hearing = CtcHearing(session, config)
    hearing.warm()
    session.settle()
    language = read_language(checkpoint)
    return CtcTranscriber(hearing, alphabet, calibration, language=language, close=session.close)


def recipe_of(checkpoint: Checkpoint, name: str, labelled: Labelled | None = None) -> Recipe:
    """By what config.json says. Raises CheckpointError for another architecture."""
    kind = checkpoint.read_json("config.json").get("model_type")
    if kind == KIND:
        licences = LICENCES if checkpoint.folder == PACKAGED else ()
        return ctc_recipe(checkpoint, name, labelled=labelled, licences=licences)
    if kind in WHOLE:
        return WHOLE[kind].judged(checkpoint, name, labelled)
    raise CheckpointError(
        f"{checkpoint.folder} holds the architecture {kind!r}, which is no CTC recogniser that is read here",
        available=KINDS,
        next_step="choose a checkpoint of one of these; of others the ONNX export can be served as it is",
    )


def open_engine(recipe: Recipe, settings: Settings, progress: Progress | None, profile: str | None) -> Session:
    """Compiled for a profile, or for all sizes."""
    store = Store(settings.home / "engines")
    options = BuildOptions(("fp32", "int8"), threads=settings.whole("threads"))
    model = Model.of(recipe)

    def made(options: BuildOptions) -> Bundle:
        return build(model, store, options, progress=progress)

    bundle = _first_of(lambda: made(options), lambda: made(replace(options, precisions=("fp32",))))
    with suppress(VerificationError, BackendError):
        return bundle.open(profile=profile)
    # Damaged on disk since it was proven: build it anew, once.
    return made(replace(options, rebuild=True)).open(profile=profile)


def _first_of(wanted: Callable[[], Bundle], plain: Callable[[], Bundle]) -> Bundle:
    """Without a voice here nothing can judge int8; fp32 stands on its numbers."""
    try:
        return wanted()
    except AulaError:
        return plain()
