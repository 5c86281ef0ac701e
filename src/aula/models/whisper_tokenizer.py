"""Texts to Whisper's tokens and back, by the tokenizer.json that lies beside the weights."""

from collections.abc import Sequence
from typing import Any

from aula.core.errors import CheckpointError, UnsupportedLanguageError
from aula.core.types import UNKNOWN_LANGUAGE
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_task import TOKENIZER, open_tokenizer
from aula.models.whisper_tokens import LANGUAGES, SpecialTokens


class WhisperTokenizer:
    def __init__(self, tokenizer: Any, special: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self.special = special

    @classmethod
    def open(cls, checkpoint: Checkpoint, config: WhisperConfig) -> "WhisperTokenizer":
        """Raises CheckpointError for a vocabulary that is not Whisper's, and a tokenizer.json that is absent, damaged,
        or of another vocabulary than the weights."""
        special = SpecialTokens.of(config.vocab_size)
        if special is None:
            raise CheckpointError(
                f"{checkpoint.folder} has a vocabulary of {config.vocab_size}, which is none of Whisper's",
                next_step="choose a checkpoint of the Whisper family",
            )
        tokenizer = open_tokenizer(checkpoint)
        names = {
            "<|endoftext|>": special.end,
            "<|startoftranscript|>": special.start,
            "<|transcribe|>": special.transcribe,
            "<|notimestamps|>": special.no_timestamps,
        }
        for name, wanted in names.items():
            found = tokenizer.token_to_id(name)
            if found != wanted:
                raise CheckpointError(
                    f"{TOKENIZER} in {checkpoint.folder} gives {name} the number {found}, and weights of "
                    f"{config.vocab_size} entries want {wanted}",
                    next_step="copy tokenizer.json from where the weights came from",
                )
        return cls(tokenizer, special)

    def text(self, tokens: Sequence[int]) -> str:
        """Without special tokens, times among them, and without spaces at the ends."""
        words = [token for token in tokens if token < self.special.end]
        return str(self._tokenizer.decode(words, skip_special_tokens=False)).strip()

    def encode(self, text: str) -> list[int]:
        """Without special tokens; what looks like one in the text is none."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [token for token in encoding.ids if token < self.special.end]

    def language_token(self, language: str) -> int | None:
        """None where the model is not told a language, or shall find it. Raises UnsupportedLanguageError for a tag
        that it does not hear."""
        code = language.lower().split("-")[0]
        if code != UNKNOWN_LANGUAGE and code not in self.special.codes:
            known = "English alone" if not self.special.multilingual else f"{len(self.special.codes)} languages"
            raise UnsupportedLanguageError(
                f"this Whisper hears {known}, and {language!r} is not among them",
                available=self.special.codes,
                next_step="name one of these, or choose a multilingual checkpoint",
            )
        if code == UNKNOWN_LANGUAGE or not self.special.multilingual:
            return None
        return self.special.languages[LANGUAGES.index(code)]

    def language_of(self, token: int | None) -> str:
        """The tag of a language token; that of an English-only model is "en"."""
        return "en" if token is None else LANGUAGES[token - self.special.languages[0]]
