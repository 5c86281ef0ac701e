"""What int8 of Whisper is calibrated on and judged by: real clips.

The metric is one minus the word error rate; it is negative where more is written wrongly than was said, so that worse
is always less. A session is one part of two, so the judged part works together with the
fp32 graph of the other, on the same backend.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CalibrationError, CheckpointError
from aula.core.types import Float32
from aula.engine.onnx_files import save_model
from aula.engine.recipe import Calibration, Task
from aula.models.checkpoints import Checkpoint
from aula.models.labels import task_digest
from aula.models.whisper_clips import Clip, digest
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_mel import FRAMES_A_POSITION, HOP, log_mel
from aula.models.whisper_tokens import ENGLISH_VOCABULARY, SpecialTokens
from aula.models.word_errors import word_error_rate, words

if TYPE_CHECKING:
    import onnx

METRIC = "1 - word error rate"
TOKENIZER = "tokenizer.json"
FEWEST_CLIPS, FEWEST_WORDS = 20, 100
"""Either of these is enough to judge by."""

MOST_EXAMPLES = 64
"""Clips that ranges are found on; each gives hundreds of positions."""

NOISES = 16
STRETCH = 500
"""Frames: the sound is padded to a multiple of five seconds, as it is when it is served."""

MARGIN = 100
"""Frames of silence at the least after the last word, without which short contexts lose or repeat it."""


def frames_for(samples: int, config: WhisperConfig) -> int:
    """Frames in which a sound of so many samples is encoded."""
    most = config.max_source_positions * FRAMES_A_POSITION
    return min(-(-(samples // HOP + 1 + MARGIN) // STRETCH) * STRETCH, most)


def enough(clips: list[Clip], source: Path) -> list[Clip]:
    """The clips themselves. Raises CalibrationError where they are too few and say too little to judge by."""
    said = sum(len(words(clip.text or "")) for clip in clips)
    if len(clips) < FEWEST_CLIPS and said < FEWEST_WORDS:
        raise CalibrationError(
            f"{source.name} has {len(clips)} clips with {said} words in all, which are too few to judge by",
            next_step=f"give at least {FEWEST_CLIPS} clips or {FEWEST_WORDS} words, with their texts",
        )
    return clips


def calibration(config: WhisperConfig, clips: Sequence[Clip], source: str) -> Calibration:
    """The sound of at most MOST_EXAMPLES clips, spread over all, as the encoder takes it. Raises what reading a clip
    raises."""
    chosen = list(clips)[:: max(1, len(clips) // MOST_EXAMPLES)][:MOST_EXAMPLES]
    return Calibration([{"mel": _mel(config, clip)[None]} for clip in chosen], source, digest(chosen))


def noise(config: WhisperConfig) -> Calibration:
    """For made-up weights only: there a real sound means as little."""
    generator = np.random.default_rng(0)
    shape = (1, config.num_mel_bins, frames_for(0, config))
    inputs = [{"mel": generator.uniform(-1, 1, shape).astype(np.float32)} for _ in range(NOISES)]
    return Calibration(inputs, "noise", "0" * 64, random=True)


@dataclass(frozen=True, slots=True)
class Judge:
    """Labelled clips for one checkpoint."""

    checkpoint: Checkpoint
    config: WhisperConfig
    clips: Sequence[Clip]

    def task(self, part: str, write_other: Callable[[], "onnx.ModelProto"]) -> Task:
        """`part` is "encoder" or "decoder"; `write_other` writes the fp32 graph of the other one.

        Raises CheckpointError for a checkpoint without Whisper's vocabulary or a tokenizer.json.
        """
        special, tokenizer = self._special(), open_tokenizer(self.checkpoint)

        def evaluate(session: Session) -> float:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "other.onnx"
                save_model(write_other(), path)
                with open_session(session.backend, path, SessionOptions(threads=session.options.threads)) as other:
                    sessions = (session, other) if part == "encoder" else (other, session)
                    decoding = WhisperDecoding(self.config, *sessions)
                    pairs = [(clip.text or "", transcribe(decoding, clip, special, tokenizer)) for clip in self.clips]
            return 1 - word_error_rate(pairs)

        def transcribe(decoding: WhisperDecoding, clip: Clip, special: SpecialTokens, tokenizer: Any) -> str:
            decoding.listen(_mel(self.config, clip))
            limit = self.config.max_target_positions // 2
            written = decoding.write(self._prompt(decoding, special), special.end, limit=limit)
            # What is above the end is special too: timestamps, say.
            return str(tokenizer.decode([token for token in written.tokens if token < special.end]))

        # The tokeniser writes what is compared.
        written = hashlib.sha256((self.checkpoint.folder / TOKENIZER).read_bytes()).hexdigest()
        return Task(METRIC, len(self.clips), task_digest(METRIC, digest(self.clips), written), evaluate)

    def _special(self) -> SpecialTokens:
        special = SpecialTokens.of(self.config.vocab_size)
        if special is None:
            raise CheckpointError(
                f"a vocabulary of {self.config.vocab_size} is none of Whisper's; its texts cannot be judged",
                next_step="build this one without labelled clips",
            )
        return special

    def _prompt(self, decoding: WhisperDecoding, special: SpecialTokens) -> list[int]:
        """As for a question: no timestamps, the language that the model finds."""
        if self.config.vocab_size == ENGLISH_VOCABULARY:
            return [special.start, special.no_timestamps]
        language, _ = decoding.language(special.start)
        return [special.start, language, special.transcribe, special.no_timestamps]


def open_tokenizer(checkpoint: Checkpoint) -> Any:
    """Raises CheckpointError for an absent or damaged tokenizer.json."""
    from tokenizers import Tokenizer

    path = checkpoint.folder / TOKENIZER
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} cannot be read ({error})", next_step="copy tokenizer.json from where the checkpoint came from"
        ) from error


def _mel(config: WhisperConfig, clip: Clip) -> Float32:
    """float32 [bins, frames]; the samples are padded, not the mel."""
    samples = clip.samples()
    frames = frames_for(len(samples), config)
    # Models with a short context of their own exist in tests only.
    return log_mel(samples[: frames * HOP], config.num_mel_bins, frames)
