"""Which contexts shorter than the window lose nothing, measured on labelled clips with a bundle's own engines.

Clips are heard as they are served, loops and all: once in the whole window, and in the least context that has room for
them. Where that loses more than is allowed the next larger one is tried. A class of lengths with too few clips to judge
by proves nothing and keeps the whole window.
"""

from collections import defaultdict
from collections.abc import Sequence

from aula.core.types import Float32
from aula.engine.bundle import Bundle
from aula.engine.recipe import ContextProof
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_clips import Clip, digest
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import BUCKETS, Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_engines import close_all, open_sessions
from aula.models.whisper_hearing import WhisperHearing
from aula.models.whisper_task import FEWEST_CLIPS, FEWEST_WORDS, METRIC
from aula.models.whisper_tokenizer import WhisperTokenizer
from aula.models.word_errors import word_error_rate, words

WHOLE = "whole"
MOST_DROP = 0.01
"""One point of the metric, as for lower precisions."""


def prove(checkpoint: Checkpoint, bundle: Bundle, clips: Sequence[Clip], margin: float) -> ContextProof:
    """Raises what opening the bundle and reading a clip raise."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    tokenizer = WhisperTokenizer.open(checkpoint, config)
    sessions = open_sessions(bundle)
    try:
        decoding = WhisperDecoding(config, *sessions)
        return _Prover(config, decoding, tokenizer, margin).prove(clips)
    finally:
        close_all(sessions)


class _Prover:
    def __init__(
        self, config: WhisperConfig, decoding: WhisperDecoding, tokenizer: WhisperTokenizer, margin: float
    ) -> None:
        self._config, self._decoding, self._tokenizer, self._margin = config, decoding, tokenizer, margin

    def prove(self, clips: Sequence[Clip]) -> ContextProof:
        plain = Contexts.of(self._config, self._margin)
        classes: dict[float, list[tuple[str, Float32]]] = defaultdict(list)
        for clip in clips:
            samples = clip.samples()[: plain.samples]
            bucket = plain.bucket(len(samples))
            if bucket is not None:
                classes[bucket].append((clip.text or "", samples))
        measured: dict[str, dict[str, float]] = {}
        safe: dict[str, float] = {}
        for bucket, rows in sorted(classes.items()):
            said = sum(len(words(text)) for text, _ in rows)
            if len(rows) < FEWEST_CLIPS and said < FEWEST_WORDS:
                continue
            metrics = {WHOLE: self._metric(rows, plain)}
            for context in (one for one in BUCKETS if one >= bucket and plain.frames(one) < plain.window):
                metric = self._metric(rows, Contexts.of(self._config, self._margin, {bucket: context}))
                metrics[f"{context:g}"] = metric
                if metrics[WHOLE] - metric <= MOST_DROP:
                    safe[f"{bucket:g}"] = context
                    break
            measured[f"{bucket:g}"] = metrics
        return ContextProof(METRIC, len(clips), digest(clips), MOST_DROP, self._margin, measured, safe)

    def _metric(self, rows: Sequence[tuple[str, Float32]], contexts: Contexts) -> float:
        hearing = WhisperHearing(self._config, self._decoding, self._tokenizer, contexts)
        pairs = []
        for text, samples in rows:
            mel = hearing.mel_stream()
            mel.feed(samples)
            pairs.append((text, self._tokenizer.text(hearing.final(mel, None).tokens)))
        return 1 - word_error_rate(pairs)
