"""A tokenizer for made-up Whispers, of benches and tests: token 5 is the word "w5", and special ones are called as
Whisper's are."""

from pathlib import Path

from aula.models.whisper_task import TOKENIZER
from aula.models.whisper_tokens import LANGUAGES, TIMESTAMP_STEP, TIMESTAMPS, SpecialTokens


def made_up_tokenizer(folder: Path, vocab_size: int) -> None:
    """Written into `folder`, for one of Whisper's vocabularies."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    special = SpecialTokens.of(vocab_size)
    assert special is not None
    names = {f"w{place}": place for place in range(special.end)}
    names |= {"<|endoftext|>": special.end, "<|startoftranscript|>": special.start}
    names |= {f"<|{LANGUAGES[place]}|>": token for place, token in enumerate(special.languages)}
    names |= {"<|translate|>": special.translate, "<|transcribe|>": special.transcribe}
    names |= {"<|startoflm|>": special.transcribe + 1, "<|startofprev|>": special.previous}
    names |= {"<|nospeech|>": special.no_speech, "<|notimestamps|>": special.no_timestamps}
    names |= {f"<|{TIMESTAMP_STEP * place:.2f}|>": special.timestamps + place for place in range(TIMESTAMPS)}
    tokenizer = Tokenizer(WordLevel(names, unk_token="w0"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
