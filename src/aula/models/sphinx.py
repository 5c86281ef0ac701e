"""Speech to text by PocketSphinx, adapted to a course: the last rung, for machines where nothing better runs."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from aula.core.errors import BackendError, NothingHeardError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import (
    SPEECH_RATE,
    UNKNOWN_LANGUAGE,
    Capability,
    Context,
    Float32,
    Licence,
    Partial,
    RungInfo,
    TranscribeRequest,
    Transcript,
)
from aula.models.adaptation import AdaptedModel, Adapter
from aula.models.confidence import confidence, read_evidence

INFO = RungInfo(
    name="pocketsphinx",
    capability=Capability.TRANSCRIBE,
    languages=frozenset({"en"}),
    note=(
        "a last rung: about three words of four are wrong on open classroom speech; questions in a course's own "
        "words fare better, and what it is unsure of is asked again"
    ),
    licences=(Licence("PocketSphinx and its en-us models", "BSD-2-Clause", "the models come inside the wheel"),),
)

KEPT_COURSES = 4
"""Courses whose decoders stay in memory: about 15 MB a decoder."""

# Chosen on the development questions of benchmarks/recognition.py. A higher language weight than the default (6.5),
# wider beams (1e-48, 7e-29) and the best path through the lattice took the word error rate from 73 % to 44 % while the
# real-time factor stayed under 0.1. The flat second pass (fwdflat) won 3 points more but took 0.2 s after the commit;
# the best path takes about 10 ms and gives the posteriors that the confidence stands on.
DECODER_OPTIONS: dict[str, Any] = {
    "lw": 12.0,
    "beam": 1e-60,
    "pbeam": 1e-60,
    "wbeam": 1e-40,
    "fwdflat": False,
    "bestpath": True,
    "bestpathlw": 15.0,
}
CEPSTRAL_MEAN = "55,-5,0,0,-6,-3,-7,-7,-5,-2,-1,-1,-1"
"""Where each utterance's running mean begins: near what clips of several sources had in the end. From the model's
own start (40, 3, -1) about nine words more of a hundred go wrong, most of them at the beginning."""

# Without a course, the general model: its best path would take 70 ms after the commit, hence no posteriors either.
_OPEN_OPTIONS: dict[str, Any] = {"fwdflat": False, "bestpath": False}
_TEXT_NEXT = 'type the question instead: aula ask --text "..."'


_AT_ONCE = 2 * SPEECH_RATE // 50
"""Bytes of 20 ms. PocketSphinx keeps Python's lock while it works: a second of sound at once would stop every other
thread, the server's among them, for a tenth of a second."""


class SphinxTranscriber:
    """Implements `Transcriber`. Streams may be open side by side; each has a decoder of its own."""

    def __init__(self, settings: Settings, options: dict[str, Any] | None = None) -> None:
        """Adapted models are kept in the settings' home. Raises ModelNotFoundError without the pocketsphinx package.

        `options` are PocketSphinx's own and go over DECODER_OPTIONS; they are for measuring.
        """
        self._adapter = Adapter(settings.home / "cache" / "sphinx")
        self._options = options or {}
        self._idle: OrderedDict[str, list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, request: TranscribeRequest, context: Context) -> "SphinxStream":
        """Open a stream. The first of a course builds its language model, which takes seconds; later ones take
        about 0.2 s in a new process and nothing in the same.

        Raises UnsupportedLanguageError for any language but English, BackendError where PocketSphinx fails.
        """
        if context.language.lower().split("-")[0] not in ("en", UNKNOWN_LANGUAGE):
            raise UnsupportedLanguageError(
                f"PocketSphinx has no model here for the language {context.language!r}",
                available=sorted(INFO.languages),
                next_step=_TEXT_NEXT,
            )
        key = self._adapter.key(request)
        decoder = self._borrow(key) or self._open(key, request)
        return SphinxStream(decoder, lambda: self._give_back(key, decoder), judged=bool(request.vocabulary))

    def close(self) -> None:
        with self._lock:
            self._idle.clear()

    def _borrow(self, key: str) -> Any:
        with self._lock:
            waiting = self._idle.get(key)
            return waiting.pop() if waiting else None

    def _give_back(self, key: str, decoder: Any) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(decoder)
            self._idle.move_to_end(key)
            while len(self._idle) > KEPT_COURSES:
                self._idle.popitem(last=False)

    def _open(self, key: str, request: TranscribeRequest) -> Any:
        usual = DECODER_OPTIONS if request.vocabulary else _OPEN_OPTIONS
        options = {**usual, **self._options}
        model = self._adapter.model(key, request)
        try:
            return _new_decoder(model, options)
        except BackendError:
            # What is kept on disk may be damaged; the model is made again once before giving up.
            return _new_decoder(self._adapter.rebuilt(key, request), options)


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    CLOSED = "closed"


class SphinxStream:
    """Implements `TranscriptionStream`. `judged`: the decoder knows posteriors, which the confidence stands on."""

    def __init__(self, decoder: Any, give_back: Callable[[], None], *, judged: bool) -> None:
        self._decoder = decoder
        self._judged = judged
        self._give_back = give_back
        self._state = _State.OPEN
        self._heard = ""
        _call(lambda: decoder.set_cmn(CEPSTRAL_MEAN))
        _call(decoder.start_utt)

    def feed(self, samples: Float32) -> Partial:
        self._expect_open("feed")
        if len(samples):
            finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
            block = (np.clip(finite, -1.0, 1.0) * 32767).astype("<i2").tobytes()
            for start in range(0, len(block), _AT_ONCE):
                _call(partial(self._decoder.process_raw, block[start : start + _AT_ONCE]))
            best = self._decoder.hyp()
            self._heard = best.hypstr if best is not None else ""
        return Partial(self._heard)

    def commit(self) -> Transcript:
        self._expect_open("commit")
        self._state = _State.COMMITTED
        try:
            _call(self._decoder.end_utt)
            best = self._decoder.hyp()
            text = best.hypstr if best is not None else ""
            sure = confidence(read_evidence(self._decoder)) if text and self._judged else None
        finally:
            self._release()
        if not text:
            raise NothingHeardError(
                "no words could be made out", next_step=f"say it again, nearer to the microphone, or {_TEXT_NEXT}"
            )
        return Transcript(text, "en", sure)

    def close(self) -> None:
        was, self._state = self._state, _State.CLOSED
        if was is _State.OPEN:
            try:
                _call(self._decoder.end_utt)
            finally:
                self._release()

    def _release(self) -> None:
        self._give_back()
        self._decoder = None

    def _expect_open(self, action: str) -> None:
        if self._state is not _State.OPEN:
            raise RuntimeError(f"cannot {action} a stream that is {self._state.value}; start a new one")


def _new_decoder(model: AdaptedModel, options: dict[str, Any]) -> Any:
    import pocketsphinx

    return _call(
        lambda: pocketsphinx.Decoder(lm=str(model.language), dict=str(model.dictionary), loglevel="FATAL", **options)
    )


def _call(function: Callable[[], Any]) -> Any:
    """PocketSphinx reports every failure as a RuntimeError or ValueError of its own."""
    try:
        return function()
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"PocketSphinx failed: {error}", next_step="run: aula doctor") from error
