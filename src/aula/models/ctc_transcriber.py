"""Speech to text by this project's own recogniser: text while somebody speaks, words of a course preferred."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from enum import Enum

import numpy as np

from aula.backends.pages import trim_heap
from aula.core.errors import NothingHeardError, UnsupportedLanguageError
from aula.core.types import (
    UNKNOWN_LANGUAGE,
    Context,
    Float32,
    HeardWord,
    Partial,
    Segment,
    TranscribeRequest,
    Transcript,
)
from aula.models.ctc_beam import Alphabet, Beam, BeamOptions, Word, WordScores
from aula.models.ctc_confidence import Calibration
from aula.models.ctc_hearing import CtcHearing, Hearing
from aula.models.ctc_language import Counted, Language, Mixture
from aula.models.ngrams import estimate
from aula.models.questions import question_sets

PAUSE_FRAMES = 20
"""Without a word, after which a segment ends."""
LONG_FRAMES = 750
"""After so many (30 s) the next pause ends a segment whether anybody asked for them or not: memory stays bounded."""
KEPT_COURSES = 8
_SILENT = 0.9
"""A frame whose blank is likelier holds no word."""
_TEXT_NEXT = 'type the question instead: aula ask --text "..."'


class CtcTranscriber:
    """Implements `Transcriber`. Streams may be open side by side on the one engine."""

    def __init__(
        self,
        hearing: Hearing,
        alphabet: Alphabet,
        calibration: Calibration | None = None,
        *,
        language: Language | None = None,
        options: BeamOptions | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.hearing, self.alphabet, self.calibration = hearing, alphabet, calibration
        self.options = options or BeamOptions()
        self._close = close
        self._language = language
        self._anyway = WordScores(language, self.options) if language is not None else None
        self._courses: OrderedDict[str, WordScores] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, request: TranscribeRequest, context: Context) -> "CtcStream":
        """The first stream of a course makes its language model: some tenths of a second for a book.

        Raises UnsupportedLanguageError for any language but English.
        """
        if context.language.lower().split("-")[0] not in ("en", UNKNOWN_LANGUAGE):
            raise UnsupportedLanguageError(
                f"the recogniser hears no {context.language!r}", available=["en"], next_step=_TEXT_NEXT
            )
        kind = SettlingStream if isinstance(self.hearing, CtcHearing) else CtcStream
        return kind(self, self._scores(request), request)

    def close(self) -> None:
        with self._lock:
            self._courses.clear()
        if self._close is not None:
            self._close()

    def _scores(self, request: TranscribeRequest) -> WordScores | None:
        if not request.vocabulary:
            return self._anyway
        key = request.vocabulary_key or str(hash(request.vocabulary))
        with self._lock:
            if key not in self._courses:
                course: Language = Counted(estimate(question_sets(request.vocabulary)))
                if self._language is not None:
                    course = Mixture(course, self._language)
                self._courses[key] = WordScores(course, self.options)
                # Counting takes several times what is kept.
                trim_heap()
            self._courses.move_to_end(key)
            while len(self._courses) > KEPT_COURSES:
                self._courses.popitem(last=False)
            return self._courses[key]


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    CLOSED = "closed"


class CtcStream:
    """Implements `TranscriptionStream`."""

    def __init__(self, transcriber: CtcTranscriber, scores: WordScores | None, request: TranscribeRequest) -> None:
        self._transcriber, self._scores, self._request = transcriber, scores, request
        self._state = _State.OPEN
        self._heard = transcriber.hearing.begin()
        self._words: list[Word] = []
        self._segments: list[Segment] = []
        self._partial = Partial("")
        self._pause = 0
        self._begin_segment(0)

    def feed(self, samples: Float32) -> Partial:
        """The hypothesis is made anew with every chunk, and stays the same between."""
        self._expect_open("feed")
        before = len(self._segments)
        if len(samples):
            finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
            self._take(self._heard.feed(np.clip(finite, -1.0, 1.0)))
        return replace(self._partial, finished=tuple(self._segments[before:]))

    def commit(self) -> Transcript:
        """What is left of the last chunk is heard with silence behind it: one or two runs of the engine."""
        self._expect_open("commit")
        self._state = _State.COMMITTED
        self._take(self._heard.end())
        self._end_segment()
        if not self._words:
            raise NothingHeardError(
                "no words could be made out", next_step=f"say it again, nearer to the microphone, or {_TEXT_NEXT}"
            )
        calibration = self._transcriber.calibration
        return Transcript(
            " ".join(word.text for word in self._words),
            "en",
            calibration.confidence(self._words) if calibration is not None else None,
            tuple(self._segments) if self._request.timestamps else (),
            tuple(_in_seconds(word, self._transcriber.hearing.frame_seconds) for word in self._words),
        )

    def close(self) -> None:
        self._state = _State.CLOSED

    def _take(self, logarithms: Float32) -> None:
        if not len(logarithms):
            return
        self._search(logarithms)
        if self._request.partials:
            spoken = [word.text for word in self._words]
            self._partial = Partial(
                " ".join([*spoken, *self._beam.text().split()]),
                stable=" ".join([*spoken, *self._beam.stable().split()]),
            )

    def _search(self, logarithms: Float32) -> None:
        """Frame by frame, so that where a segment ends does not depend on how the sound was cut."""
        silent = np.exp(logarithms[:, self._transcriber.alphabet.blank]) > _SILENT
        first = 0
        for place, is_silent in enumerate(silent):
            self._pause = self._pause + 1 if is_silent else 0
            long = self._request.timestamps or self._beam.frames + place - first >= LONG_FRAMES
            if self._pause >= PAUSE_FRAMES and long:
                self._beam.feed(logarithms[first : place + 1])
                first = place + 1
                self._end_segment()
        self._beam.feed(logarithms[first:])

    def _begin_segment(self, frame: int) -> None:
        self._beam = Beam(self._transcriber.alphabet, self._scores, self._transcriber.options)
        self._began = frame
        self._pause = 0

    def _end_segment(self) -> None:
        words = [
            Word(word.text, word.start + self._began, word.end + self._began, word.confidence)
            for word in self._beam.words()
        ]
        if words:
            self._words += words
            self._segments.append(_segment(words, self._transcriber.hearing.frame_seconds))
        self._begin_segment(self._began + self._beam.frames)

    def _expect_open(self, action: str) -> None:
        if self._state is not _State.OPEN:
            raise RuntimeError(f"cannot {action} a stream that is {self._state.value}; start a new one")


class SettlingStream(CtcStream):
    """Makes the final text while speech pauses, for some 15 ms; a commit in the pause then has it at once.

    Models that hear a sound as a whole do not: they would take as long as for all of it, and keep a commit waiting.
    """

    def __init__(self, transcriber: CtcTranscriber, scores: WordScores | None, request: TranscribeRequest) -> None:
        super().__init__(transcriber, scores, request)
        self._settled: tuple[int, Transcript | None] | None = None

    def pause(self, seconds: float) -> Partial:  # noqa: ARG002  it is quick enough for any pause
        """Speech has paused for so long. Nothing changes for what may be fed yet."""
        self._expect_open("pause")
        samples = self._heard.samples
        if self._settled is None or self._settled[0] != samples:
            self._settled = samples, self._ahead()
        transcript = self._settled[1]
        # Until the next chunk is whole nothing better is known, even if more sound comes.
        self._partial = replace(self._partial, text=transcript.text if transcript else "")
        return replace(self._partial, settled=True)

    def commit(self) -> Transcript:
        if self._settled is not None and self._settled[0] == self._heard.samples and self._settled[1] is not None:
            self._expect_open("commit")
            self._state = _State.COMMITTED
            return self._settled[1]
        return super().commit()

    def _ahead(self) -> Transcript | None:
        other = copy(self)
        other._settled = None
        other._heard, other._beam = self._heard.copy(), self._beam.copy()
        other._words, other._segments = list(self._words), list(self._segments)
        try:
            return other.commit()
        except NothingHeardError:
            return None


def _segment(words: Sequence[Word], frame: float) -> Segment:
    text = " ".join(word.text for word in words)
    return Segment(round(words[0].start * frame, 2), round(words[-1].end * frame, 2), text)


def _in_seconds(word: Word, frame: float) -> HeardWord:
    start, end = (round(place * frame, 2) for place in (word.start, word.end))
    return HeardWord(word.text, start, end, round(word.confidence, 4))
