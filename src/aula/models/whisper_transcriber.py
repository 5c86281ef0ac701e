"""The rungs of `transcribe` that Whisper serves: checkpoints at hand, their engines, and streams on them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from aula.backends.hosting.records import hosting_for
from aula.backends.session import Session
from aula.core.clock import Clock, SystemClock
from aula.core.errors import BackendError, CheckpointError, SettingsError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, RungInfo, TranscribeRequest
from aula.engine.precision import Progress
from aula.models import hub
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import LICENCES, MOST_ROWS
from aula.models.whisper_bias import bias_tokens
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_device import encoder_frames
from aula.models.whisper_device_rows import DeviceEngine
from aula.models.whisper_engines import find_bundle, find_device_bundle, open_sessions, open_whole
from aula.models.whisper_hearing import HearingOptions, WhisperHearing
from aula.models.whisper_passes import WhisperPasses
from aula.models.whisper_rows import HostEngine
from aula.models.whisper_stream import StreamOptions, WhisperStream
from aula.models.whisper_tokenizer import WhisperTokenizer
from aula.models.whisper_tokens import LANGUAGES, SpecialTokens

NONE = "none"
"""The setting `whisper` of those who want none."""

KEPT_COURSES = 16
"""Courses whose terms stay in memory: some tens of numbers each."""


@dataclass(frozen=True, slots=True)
class Place:
    """A Whisper that may serve: a folder, or a name on the hub that is fetched when it is first needed."""

    name: str
    folder: Path | None
    languages: tuple[str, ...]

    @property
    def info(self) -> RungInfo:
        return RungInfo(
            self.name,
            Capability.TRANSCRIBE,
            frozenset(self.languages),
            f"Whisper, {'English only' if self.languages == ('en',) else f'{len(self.languages)} languages'}",
            LICENCES,
        )


def find_places(settings: Settings) -> list[Place]:
    """The Whisper that the settings name; or those in the home's checkpoints, the largest first. Nothing is loaded.

    Raises SettingsError for a setting that names neither a folder nor what may be on a hub.
    """
    named = settings.text("whisper")
    if named == NONE:
        return []
    if not named:
        found = [folder for folder in (settings.home / "checkpoints").glob("[!.]*") if _is_whisper(folder)]
        return [_in_folder(folder) for folder in sorted(found, key=_size, reverse=True)]
    folder = Path(named).expanduser()
    if (folder / "config.json").is_file():
        return [_in_folder(folder)]
    repository, _, revision = named.partition("@")
    pulled = hub.find(repository, settings.home / "checkpoints", revision or None)
    if pulled is not None:
        return [_in_folder(pulled.folder)]
    if folder.exists() or named.count("/") != 1:
        raise SettingsError(
            f"whisper is {named!r}, which is neither a checkpoint folder nor a name on the hub",
            next_step="give a folder with config.json and model.safetensors, or owner/name: openai/whisper-small",
        )
    return [Place(named, None, ("en",) if repository.endswith(".en") else LANGUAGES)]


class WhisperTranscriber:
    """Implements `Transcriber` and `Sharing`: streams that are open side by side share passes."""

    def __init__(
        self,
        hearing: WhisperHearing,
        passes: WhisperPasses,
        *,
        clock: Clock | None = None,
        bias: int = 0,
        sessions: tuple[Session, ...] = (),
    ) -> None:
        """`sessions` are closed with it."""
        self.hearing, self.passes, self.sessions = hearing, passes, sessions
        hearing.share(passes)
        self._clock, self._bias = clock or SystemClock(), bias
        self._terms: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, place: Place, settings: Settings, progress: Progress | None = None, clock: Clock | None = None
    ) -> "WhisperTranscriber":
        """Engines come from the store and are built on first use: in fp32, unless others of the same checkpoint are
        there (`aula build FOLDER --precision int8 --labelled FILE` makes faster ones).

        With `isolate = always` encoder and decoder each have a process of their own. Raises CheckpointError for what is
        no whole Whisper, and what fetching and building raise.
        """
        checkpoint = Checkpoint(place.folder or _pulled(place.name, settings, progress))
        config = WhisperConfig.from_checkpoint(checkpoint)
        tokenizer = WhisperTokenizer.open(checkpoint, config)
        bundle = find_bundle(checkpoint, settings, progress)
        sessions = open_sessions(bundle, hosting_for(settings, "cpu"))
        decoding = WhisperDecoding(config, *sessions)
        contexts = Contexts.proven_by(bundle.manifest.contexts, config, settings.number("whisper.margin"))
        hearing = WhisperHearing(config, decoding, tokenizer, contexts, HearingOptions())
        hearing.warm()
        for session in sessions:
            session.settle()
        clock = clock or SystemClock()
        return cls(
            hearing,
            WhisperPasses(config, HostEngine(config, *sessions, most=MOST_ROWS), clock),
            clock=clock,
            bias=settings.whole("whisper.bias_tokens"),
            sessions=sessions,
        )

    @classmethod
    def open_on_gpu(
        cls,
        place: Place,
        settings: Settings,
        target: str,
        device: int,
        progress: Progress | None = None,
        clock: Clock | None = None,
    ) -> "WhisperTranscriber":
        """On the GPU of that number, with engines that were built for its kind (`aula build FOLDER --targets
        sm90,cpu`). With `isolate = gpu`, which is the default, in a process of its own.

        Raises CheckpointError for what is no whole Whisper, BundleError where there is no engine, BackendError.
        """
        checkpoint = Checkpoint(place.folder or _pulled(place.name, settings, progress))
        config = WhisperConfig.from_checkpoint(checkpoint)
        tokenizer = WhisperTokenizer.open(checkpoint, config)
        bundle = find_device_bundle(checkpoint, settings, target)
        session = open_whole(bundle, target, device, hosting_for(settings, "gpu"))
        try:
            contexts = Contexts.proven_by(bundle.manifest.contexts, config, settings.number("whisper.margin"))
            contexts = replace(contexts, offered=tuple(encoder_frames(bundle, target)))
            hearing = WhisperHearing(config, None, tokenizer, contexts, HearingOptions())
            clock = clock or SystemClock()
            passes = WhisperPasses(config, DeviceEngine(config, session), clock)
            opened = cls(hearing, passes, clock=clock, bias=settings.whole("whisper.bias_tokens"), sessions=(session,))
            hearing.warm()
        except BaseException:
            session.close()
            raise
        return opened

    def start(self, request: TranscribeRequest, context: Context) -> WhisperStream:
        """Raises UnsupportedLanguageError for a language that the model does not hear."""
        options = StreamOptions(
            language=self.hearing.tokenizer.language_token(context.language),
            before=self._before(request),
            timestamps=request.timestamps,
            translate=request.translate,
            partials=request.partials,
            early=request.early,
        )
        return WhisperStream(self.hearing, self._clock, options, self.passes.drop)

    def close(self) -> None:
        self.passes.close(BackendError("the model was closed", next_step="open another stream"))
        for session in self.sessions:
            session.close()

    def _before(self, request: TranscribeRequest) -> tuple[int, ...]:
        if not request.vocabulary or not self._bias:
            return ()
        key = request.vocabulary_key or str(hash(request.vocabulary))
        with self._lock:
            if key not in self._terms:
                self._terms[key] = bias_tokens(request.vocabulary, self.hearing.tokenizer, self._bias)
            self._terms.move_to_end(key)
            while len(self._terms) > KEPT_COURSES:
                self._terms.popitem(last=False)
            return self._terms[key]


def _pulled(name: str, settings: Settings, progress: Progress | None) -> Path:
    repository, _, revision = name.partition("@")
    return hub.obtain(repository, settings.home / "checkpoints", revision or None, progress).folder


def _is_whisper(folder: Path) -> bool:
    try:
        return folder.is_dir() and Checkpoint(folder).read_json("config.json").get("model_type") == "whisper"
    except CheckpointError:
        return False


def _in_folder(folder: Path) -> Place:
    origin = hub.origin_of(folder)
    name = origin.name.rpartition("/")[2] if origin else folder.resolve().name
    try:
        size = Checkpoint(folder).read_json("config.json").get("vocab_size")
    except CheckpointError:
        size = None
    special = SpecialTokens.of(size) if isinstance(size, int) else None
    # A folder that holds something else says so when it is loaded.
    return Place(name, folder, special.codes if special is not None else LANGUAGES)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
