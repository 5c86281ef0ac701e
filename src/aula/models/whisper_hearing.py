"""One window of sound to text: greedy first, again where the text is suspect, nothing where nobody speaks.

Thresholds and the order of attempts are those of openai-whisper's `transcribe` and of section 4.5 of its paper
(arXiv:2212.04356): a text that compresses too well repeats itself, one that is too unlikely was made up.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.types import SPEECH_RATE
from aula.models.whisper_choice import Choose, HostChoice
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding, Written
from aula.models.whisper_mel import MelStream
from aula.models.whisper_passes import FindLanguage, Listen, Value, WhisperPasses, Work, Write, alone
from aula.models.whisper_tokenizer import WhisperTokenizer

LOOP = 24
"""Tokens: as many at the end of a text, said in at least three equal pieces, are a loop. "No, no, no, no" is none."""


@dataclass(frozen=True, slots=True)
class HearingOptions:
    """A text has at most `most_tokens`; None for half of what the model has room for, as openai-whisper has it.
    `temperatures` in the order of attempts. Above `most_compression` (bytes of text over bytes of its zlib form) or
    below `least_logprob` (mean over the tokens) the next is tried. Where nobody speaks with at least `silence`, and the
    text is below `least_logprob`, there is no text."""

    most_tokens: int | None = None
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_logprob: float = -1.0
    silence: float = 0.6


@dataclass(frozen=True, slots=True)
class Heard:
    """What a window says. `tokens` are none where it is silent; `language` is a token, None for an English-only model;
    `frames` of context and `temperature` are those of the attempt that counted, `runs` are the decoder's of all;
    `accepted` of the draft's tokens stood."""

    tokens: tuple[int, ...]
    language: int | None
    mean_logprob: float
    no_speech: float
    frames: int
    temperature: float
    runs: int
    accepted: int


class WhisperHearing:
    """Not for two threads at once. Windows of several streams may take turns: nothing is kept between calls.

    `drafting` and `finalising` are works, for whoever shares passes with others; `alone` does one at once.
    """

    def __init__(
        self,
        config: WhisperConfig,
        decoding: WhisperDecoding | None,
        tokenizer: WhisperTokenizer,
        contexts: Contexts,
        options: HearingOptions | None = None,
    ) -> None:
        """Without a `decoding` there must be passes to `share` before anything is heard."""
        self.config, self.tokenizer, self.contexts = config, tokenizer, contexts
        self._decoding = decoding
        self._options = options or HearingOptions()
        self._passes: WhisperPasses | None = None

    def mel_stream(self) -> MelStream:
        return MelStream(self.config.num_mel_bins)

    def warm(self) -> None:
        """Run what a question runs, so that no student waits while weights are put in order."""
        mel = self.mel_stream()
        mel.feed(np.zeros(SPEECH_RATE, dtype=np.float32))
        self.alone(self._warming(mel))

    def _warming(self, mel: MelStream) -> Work[None]:
        attempt = yield from self._listen(mel, self.contexts.draft(mel.samples), None, False, False, ())
        yield Write(attempt.prompt, attempt.end, limit=3)

    def share(self, passes: WhisperPasses) -> None:
        """From now on others use the same engines: what is done alone is done beside them."""
        self._passes = passes

    def alone(self, work: Work[Value]) -> Value:
        if self._passes is not None:
            return self._passes.alone(work)
        assert self._decoding is not None, "share() comes first"
        return alone(work, self._decoding)

    def drafting(
        self,
        mel: MelStream,
        language: int | None,
        *,
        timestamps: bool = False,
        translate: bool = False,
        before: Sequence[int] = (),
        draft: Sequence[int] = (),
        sure: int = 0,
        is_late: Callable[[], bool] = lambda: False,
    ) -> "Work[Heard | None]":
        """A hypothesis: one greedy attempt in the smallest context. None where it was given up, after the pass in which
        it came to be too late."""
        attempt = yield from self._listen(
            mel, self.contexts.draft(mel.samples), language, timestamps, translate, before
        )
        if is_late():
            return None
        written = yield attempt.write(draft, sure, is_late=is_late)
        return None if is_late() else self._heard(attempt, written, 0.0, 0)

    def finalising(
        self,
        mel: MelStream,
        language: int | None,
        *,
        timestamps: bool = False,
        translate: bool = False,
        before: Sequence[int] = (),
        draft: Sequence[int] = (),
        sure: int = 0,
    ) -> Work[Heard]:
        """The text that counts; a draft does not change it (the first `sure` of its tokens are likely to stand).
        `language` None is found by a multilingual model."""
        attempt = yield from self._listen(
            mel, self.contexts.final(mel.samples), language, timestamps, translate, before
        )
        written: Written = yield attempt.write(draft, sure)
        runs = written.runs
        if attempt.frames < self.contexts.window and self._suspect(written):
            # A short context may be what is wrong.
            attempt = yield from self._listen(mel, self.contexts.window, language, timestamps, translate, before)
            written = yield attempt.write(written.tokens)
            runs += written.runs
        heated = self._options.temperatures[0]
        for place, temperature in enumerate(self._options.temperatures[1:], 1):
            if not self._suspect(written):
                break
            heated = temperature
            written = yield attempt.write(temperature=temperature, seed=place)
            runs += written.runs
        return self._heard(attempt, written, heated, runs - written.runs)

    def draft(self, mel: MelStream, language: int | None, **options: Any) -> Heard:
        heard = self.alone(self.drafting(mel, language, **options))
        assert heard is not None, "alone it is never late"
        return heard

    def final(self, mel: MelStream, language: int | None, **options: Any) -> Heard:
        return self.alone(self.finalising(mel, language, **options))

    def _listen(
        self,
        mel: MelStream,
        frames: int,
        language: int | None,
        timestamps: bool,
        translate: bool,
        before: Sequence[int],
    ) -> "Work[_Attempt]":
        yield Listen(mel.features(frames))
        special = self.tokenizer.special
        if language is None and special.multilingual:
            language, _ = yield FindLanguage(special.start)
        room = self.config.max_target_positions // 2 - 1
        prompt = special.prompt(language, translate=translate, timestamps=timestamps, before=list(before)[-room:])
        limit = self._options.most_tokens or self.config.max_target_positions // 2
        return _Attempt(self.config, frames, language, prompt, special.end, limit, timestamps)

    def _suspect(self, written: Written) -> bool:
        if self._silent(written):
            return False
        options = self._options
        return (
            is_loop(written.tokens)
            or compression(self.tokenizer.text(written.tokens)) > options.most_compression
            or written.mean_logprob < options.least_logprob
        )

    def _silent(self, written: Written) -> bool:
        options = self._options
        return written.no_speech > options.silence and written.mean_logprob < options.least_logprob

    def _heard(self, attempt: "_Attempt", written: Written, temperature: float, earlier: int) -> Heard:
        return Heard(
            tokens=() if self._silent(written) else written.tokens,
            language=attempt.language,
            mean_logprob=written.mean_logprob,
            no_speech=written.no_speech,
            frames=attempt.frames,
            temperature=temperature,
            runs=earlier + written.runs,
            accepted=written.accepted,
        )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A sound that was listened to, and a prompt."""

    config: WhisperConfig
    frames: int
    language: int | None
    prompt: list[int]
    end: int
    limit: int
    timestamps: bool

    def write(
        self,
        draft: Sequence[int] = (),
        sure: int = 0,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Write:
        def give_up(tokens: Sequence[int]) -> bool:
            return is_loop(tokens) or is_late()

        choose: Choose | None = None
        if self.timestamps or temperature:
            choose = HostChoice(self.config, timestamps=self.timestamps, temperature=temperature, seed=seed)
        return Write(self.prompt, self.end, self.limit, draft, sure, choose, give_up)


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the last LOOP tokens or more are one piece, said at least three times."""
    for length in range(1, len(tokens) // 3 + 1):
        times = max(3, -(-LOOP // length))
        if len(tokens) >= times * length:
            tail = tokens[-times * length :]
            if tail[length:] == tail[:-length]:
                return True
    return False


def compression(text: str) -> float:
    """How often the text's bytes are its zlib form's."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
