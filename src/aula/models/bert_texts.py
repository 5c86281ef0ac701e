"""Texts to BERT's inputs: the checkpoint's own tokeniser, and batches in which no row disturbs another."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.session import Session
from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.engine.recipe import Arrays
from aula.models.bert_config import BertConfig
from aula.models.bert_modules import SentenceModules
from aula.models.checkpoints import Checkpoint

BATCH = 8


def open_tokenizer(checkpoint: Checkpoint) -> Any:
    """A `tokenizers.Tokenizer` that cuts texts at `longest_sequence` tokens, from tokenizer.json or a vocab.txt.

    Raises CheckpointError.
    """
    from tokenizers import Tokenizer, normalizers

    folder = SentenceModules.from_checkpoint(checkpoint).encoder
    path: Path = folder.folder / "tokenizer.json"
    if not path.is_file() and (folder.folder / "vocab.txt").is_file():
        tokenizer = _word_pieces(folder)
    else:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} cannot be read ({error})", next_step="copy the tokenizer again") from error
    if _read_if_there(folder, "sentence_bert_config.json").get("do_lower_case"):
        steps = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=longest_sequence(checkpoint))
    return tokenizer


def longest_sequence(checkpoint: Checkpoint) -> int:
    """Tokens that a text may have: what the sentence encoder was trained on, else what its tokeniser says, and never
    more than there are positions. Raises CheckpointError."""
    folder = SentenceModules.from_checkpoint(checkpoint).encoder
    most = BertConfig.from_checkpoint(folder).max_position_embeddings
    told = _read_if_there(folder, "sentence_bert_config.json").get("max_seq_length")
    if told is None:
        # A tokeniser without a limit says 1e30.
        told = _read_if_there(folder, "tokenizer_config.json").get("model_max_length", most)
    if not isinstance(told, int | float) or told < 3:
        raise CheckpointError(
            f"{folder.folder} says that a text may have {told!r} tokens", next_step="copy the checkpoint again"
        )
    return int(min(told, most))


def run_texts(
    session: Session, tokenizer: Any, texts: Sequence[str], batch: int = BATCH
) -> Iterator[tuple[list[int], Arrays, Arrays]]:
    """For a few texts at a time: their places in `texts`, and inputs and outputs with a row for each."""
    encodings = tokenizer.encode_batch(list(texts))
    typed = any(spec.name == "token_type_ids" for spec in session.inputs)
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = len(encodings[rows[-1]].ids)
        tokens = np.zeros((len(rows), longest), dtype=np.int64)
        mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, index in enumerate(rows):
            ids = encodings[index].ids
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
            types[row, : len(ids)] = encodings[index].type_ids
        inputs = {"input_ids": tokens, "attention_mask": mask} | ({"token_type_ids": types} if typed else {})
        yield rows, inputs, session.run(inputs)


def embed_texts(session: Session, tokenizer: Any, texts: Sequence[str], dimensions: int, batch: int = BATCH) -> Float32:
    """float32 [len(texts), dimensions]: each row as if its text had been alone."""
    vectors = np.empty((len(texts), dimensions), dtype=np.float32)
    for rows, _, outputs in run_texts(session, tokenizer, texts, batch):
        vectors[rows] = outputs["embedding"]
    return vectors


def _word_pieces(checkpoint: Checkpoint) -> Any:
    """Older checkpoints bring a list of pieces alone."""
    from tokenizers import BertWordPieceTokenizer

    settings = _read_if_there(checkpoint, "tokenizer_config.json")
    path = checkpoint.folder / "vocab.txt"
    try:
        wrapped = BertWordPieceTokenizer(
            str(path),
            lowercase=settings.get("do_lower_case", True),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
        )
    except Exception as error:  # the library raises bare Exception, and TypeError where [CLS] or [SEP] is absent
        raise CheckpointError(f"{path} cannot be read ({error})", next_step="copy the vocabulary again") from error
    return wrapped._tokenizer


def _read_if_there(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    return checkpoint.read_json(name) if (checkpoint.folder / name).is_file() else {}
