"""A transcription stream on Whisper: hypotheses while sound comes in, the text at the commit, long sounds by windows.

A sound that fits one window is one text without times, unless times are asked for. A longer one is cut where Whisper's
own timestamps say; what is done with is dropped, so that hours take the memory of one window.

Hypotheses are made as often as the engine allows, and never so often that sound has to wait: the next one comes when
twice as much sound has arrived as the last one took. The last of them is the draft of the final text, which is checked
in one run of the decoder as far as the one before it agrees, and in another where that stood; it saves time where it is
right, and never changes the text.

When speech pauses the final text itself is made, as if the commit had come: if it comes before any other sound, the
text is there. A pause is worth that once it has lasted as long as the text is expected to take: so waiting too long
never costs more than the text, and neither does a text that is not needed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np

from aula.core.clock import Clock
from aula.core.errors import NothingHeardError
from aula.core.types import SPEECH_RATE, Float32, Partial, Segment, Transcript
from aula.models.whisper_hearing import Heard, WhisperHearing
from aula.models.whisper_passes import Work
from aula.models.whisper_segments import window_segments

FIRST_DRAFT = SPEECH_RATE // 2
"""Samples before which no hypothesis is worth making."""

LEAST_STEP = SPEECH_RATE * 3 // 10
"""Samples between two hypotheses at the least: a short word."""

LEAST_REST = SPEECH_RATE // 10
"""Samples: what is shorter than this after the last segment of a sound is its end, not another text."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """`language` is a token, None to find it; `translate`: the text is English, whatever is spoken; `before` are tokens
    that are likely (see `whisper_bias`). `early`: segments are final as soon as two hypotheses, each made as a final
    text is, agree on them."""

    language: int | None = None
    before: tuple[int, ...] = ()
    timestamps: bool = False
    translate: bool = False
    partials: bool = True
    early: bool = False


class _State(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    CLOSED = "closed"


class WhisperStream:
    """Implements `TranscriptionStream` and `PausingStream`. `feeding`, `pausing` and `committing` are the same as
    works, for whoever shares passes with others."""

    def __init__(
        self,
        hearing: WhisperHearing,
        clock: Clock,
        options: StreamOptions,
        on_close: "Callable[[WhisperStream], None] | None" = None,
    ) -> None:
        self._hearing, self._clock, self._options, self._on_close = hearing, clock, options, on_close
        self._state = _State.OPEN
        self._hurries = False
        self._mel = hearing.mel_stream()
        self._offset = 0
        """Samples of the sound before the window."""
        self._segments: list[Segment] = []
        self._logprobs: list[tuple[float, int]] = []
        self._languages: Counter[str] = Counter()
        # Of the window: the last hypothesis, on what of it the one before agrees, and when the next is due.
        self._hypothesis: tuple[int, ...] = ()
        self._agreed: tuple[int, ...] = ()
        self._due = FIRST_DRAFT
        self._seconds_a_frame = 0.0
        """Of context, in the last hypothesis."""
        self._settled: tuple[int, bool, Heard] | None = None
        """The final text of so many samples of the window, with times or without, made in a pause."""

    @property
    def seconds(self) -> float:
        """Of sound that came so far."""
        return (self._offset + self._mel.samples) / SPEECH_RATE

    def hurry(self) -> None:
        """The commit comes next: no hypothesis is begun any more, and one under way ends with the pass that runs. From
        any thread, at any time."""
        self._hurries = True

    def feed(self, samples: Float32) -> Partial:
        return self._hearing.alone(self.feeding(samples))

    def pause(self, seconds: float) -> Partial:
        return self._hearing.alone(self.pausing(seconds))

    def commit(self) -> Transcript:
        return self._hearing.alone(self.committing())

    def feeding(self, samples: Float32) -> Work[Partial]:
        self._expect_open("feed")
        sound = _usable(samples)
        finished: list[Segment] = []
        while len(sound):
            room = self._hearing.contexts.samples - self._mel.samples
            if not room:
                finished += yield from self._advance(last=False)
                continue
            self._mel.feed(sound[:room])
            sound = sound[room:]
        if self._options.partials and not self._hurries and self._mel.samples >= self._due:
            finished += yield from self._refresh()
        return self._partial(finished)

    def pausing(self, seconds: float) -> Work[Partial]:
        self._expect_open("pause")
        samples = self._mel.samples
        expected = self._seconds_a_frame * self._hearing.contexts.final(samples)
        if samples and not self._is_settled and seconds >= expected:
            timed = self._timed
            heard = yield from self._finalised(timestamps=timed)
            self._settled = samples, timed, heard
            self._agreed = common_start(self._hypothesis, heard.tokens)
            self._hypothesis = heard.tokens
        return self._partial()

    def committing(self) -> Work[Transcript]:
        self._expect_open("commit")
        self._state = _State.COMMITTED
        if self._timed:
            yield from self._advance(last=True)
            while self._mel.samples > LEAST_REST:
                yield from self._advance(last=True)
            text = self._text(())
        else:
            heard = yield from self._final(timestamps=False)
            text = self._hearing.tokenizer.text(heard.tokens)
        if not text:
            raise NothingHeardError(
                "no words could be made out", next_step="say it again, nearer to the microphone, or type it"
            )
        language = "en" if self._options.translate else self._languages.most_common(1)[0][0]
        return Transcript(text, language, self._sure(), tuple(self._segments))

    def close(self) -> None:
        self._state = _State.CLOSED
        if self._on_close is not None:
            self._on_close(self)
        self._mel = self._hearing.mel_stream()

    def _partial(self, finished: Sequence[Segment] = ()) -> Partial:
        return Partial(self._text(self._hypothesis), self._text(self._agreed), tuple(finished), self._is_settled)

    @property
    def _is_settled(self) -> bool:
        return self._settled is not None and self._settled[:2] == (self._mel.samples, self._timed)

    @property
    def _timed(self) -> bool:
        return self._options.timestamps or self._offset > 0

    def _refresh(self) -> Work[tuple[Segment, ...]]:
        """A new hypothesis; the segments that it makes final."""
        started = self._clock.now()
        early = self._options.early and self._timed
        if early:
            heard = yield from self._finalised(timestamps=True)
        else:
            drafted = yield from self._hearing.drafting(
                self._mel, self._options.language, timestamps=self._timed, is_late=lambda: self._hurries, **self._told
            )
            if drafted is None:
                return ()
            heard = drafted
        self._agreed = common_start(self._hypothesis, heard.tokens)
        self._hypothesis = heard.tokens
        took = self._clock.now() - started
        self._seconds_a_frame = took / heard.frames
        self._due = self._mel.samples + max(LEAST_STEP, round(2 * took * SPEECH_RATE))
        pairs = [place for place, two in enumerate(pairwise(self._agreed), 1) if min(two) >= self._first_time]
        if not early or not pairs:
            return ()
        # Both hypotheses end a segment here and begin another: what lies before is said and done.
        return self._keep(heard, self._agreed[: pairs[-1] + 1])

    @property
    def _first_time(self) -> int:
        return self._hearing.tokenizer.special.timestamps

    def _final(self, *, timestamps: bool) -> Work[Heard]:
        if self._settled is not None and self._settled[:2] == (self._mel.samples, timestamps):
            heard = self._settled[2]
        else:
            heard = yield from self._finalised(timestamps=timestamps)
        if not timestamps:
            self._count(heard, len(heard.tokens))
        return heard

    def _finalised(self, *, timestamps: bool) -> Work[Heard]:
        """In a language that is found anew for each window, where none was asked for: two may be spoken."""
        return self._hearing.finalising(
            self._mel,
            self._options.language,
            timestamps=timestamps,
            **self._told,
        )

    @property
    def _told(self) -> dict[str, Any]:
        options = self._options
        about = {"translate": options.translate, "before": options.before}
        return {**about, "draft": self._hypothesis, "sure": len(self._agreed)}

    def _count(self, heard: Heard, tokens: int) -> None:
        self._languages[self._hearing.tokenizer.language_of(heard.language)] += tokens
        self._logprobs.append((heard.mean_logprob, tokens))

    def _advance(self, *, last: bool) -> Work[tuple[Segment, ...]]:
        """The window's text; its finished segments are kept, and what follows them begins the next window."""
        if not self._mel.samples:
            return ()
        heard = yield from self._final(timestamps=True)
        return self._keep(heard, heard.tokens, last=last)

    def _keep(self, heard: Heard, tokens: Sequence[int], *, last: bool = False) -> tuple[Segment, ...]:
        """Segments of these of its tokens; the next window begins after them."""
        self._count(heard, len(tokens))
        windowed = window_segments(
            tokens,
            self._hearing.tokenizer,
            offset=self._offset / SPEECH_RATE,
            samples=self._mel.samples,
            last=last,
        )
        self._segments += windowed.segments
        rest = self._mel.tail(windowed.samples)
        self._offset += windowed.samples
        self._mel = self._hearing.mel_stream()
        self._mel.feed(rest)
        self._hypothesis = self._agreed = ()
        self._settled = None
        self._due = len(rest) + LEAST_STEP
        return windowed.segments

    def _text(self, tokens: Sequence[int]) -> str:
        """Of all finished segments and of `tokens` after them."""
        pieces = [*(segment.text for segment in self._segments), self._hearing.tokenizer.text(tokens)]
        return " ".join(piece for piece in pieces if piece)

    def _sure(self) -> float:
        """Half where the mean log probability is -1, below which openai-whisper takes a text for made up."""
        count = sum(tokens for _, tokens in self._logprobs)
        mean = sum(mean * tokens for mean, tokens in self._logprobs) / max(1, count)
        return 2.0 ** min(0.0, mean) if count else 0.0

    def _expect_open(self, action: str) -> None:
        if self._state is not _State.OPEN:
            raise RuntimeError(f"cannot {action} a stream that is {self._state.value}; start a new one")


def common_start(one: Sequence[int], two: Sequence[int]) -> tuple[int, ...]:
    """The tokens with which both begin (local agreement, Macháček et al. 2023, arXiv:2307.14743)."""
    count = next((place for place, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
    return tuple(one[: min(len(one), len(two)) if count is None else count])


def _usable(sound: Float32) -> Float32:
    finite = np.nan_to_num(sound.astype(np.float32, copy=False), nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(finite, -1.0, 1.0)
