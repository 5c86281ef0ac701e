from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions
from aula.core.errors import CheckpointError
from aula.core.types import TensorSpec
from aula.models.bert_texts import embed_texts, longest_sequence, open_tokenizer, run_texts
from tests.models.bert_small_model import PIECES, small, small_sentence_encoder, write, write_vocabulary


class Counting(Session):
    """Gives each row's number of tokens and the sum of them, and remembers the shapes it was given."""

    def __init__(self, *, typed: bool) -> None:
        names = ["input_ids", "attention_mask"] + (["token_type_ids"] if typed else [])
        inputs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in names]
        self.shapes: list[tuple[int, ...]] = []
        super().__init__(inputs, [TensorSpec("embedding", "float32", ("batch", 2))], SessionOptions())

    def _run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        tokens, mask = tensors["input_ids"], tensors["attention_mask"]
        self.shapes.append(tokens.shape)
        assert (tokens[mask == 0] == 0).all()
        return {"embedding": np.stack([mask.sum(axis=1), tokens.sum(axis=1)], axis=1).astype(np.float32)}


def test_a_list_of_pieces_is_tokeniser_enough(tmp_path: Path) -> None:
    small(tmp_path)
    write_vocabulary(tmp_path)
    tokenizer = open_tokenizer(small(tmp_path))
    assert tokenizer.encode("Abc 学生").tokens == ["[CLS]", "a", "##b", "##c", "学", "生", "[SEP]"]
    assert len(tokenizer.encode("a " * 100).ids) == 30, "what tokenizer_config.json says"


def test_a_file_of_the_tokeniser_comes_first(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    open_tokenizer(checkpoint).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").unlink()
    assert open_tokenizer(checkpoint).encode("b").ids == [2, PIECES.index("b"), 3]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        open_tokenizer(checkpoint)


def test_no_tokeniser_and_half_a_vocabulary_are_told(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        open_tokenizer(checkpoint)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt cannot be read"):
        open_tokenizer(checkpoint)


def test_a_sentence_encoder_may_want_small_letters(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    write(tmp_path / "tokenizer_config.json", {"do_lower_case": False})
    assert open_tokenizer(checkpoint).encode("A").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    assert open_tokenizer(checkpoint).encode("A").tokens == ["[CLS]", "a", "[SEP]"]


def test_the_longest_text_is_what_the_most_telling_file_says(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    assert longest_sequence(checkpoint) == 20
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": None})
    assert longest_sequence(checkpoint) == 30
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 1e30})
    assert longest_sequence(checkpoint) == 40
    (tmp_path / "tokenizer_config.json").unlink()
    assert longest_sequence(checkpoint) == 40
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": "long"})
    with pytest.raises(CheckpointError, match="'long'"):
        longest_sequence(checkpoint)


def test_texts_of_like_length_go_together_and_come_back_in_place(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(small_sentence_encoder(tmp_path, "mean"))
    texts = ["a b c d e", "a", "a b c d", "a b"]
    with Counting(typed=False) as session:
        vectors = embed_texts(session, tokenizer, texts, 2, batch=2)
    assert vectors[:, 0].tolist() == [7, 3, 6, 4]
    assert session.shapes == [(2, 4), (2, 7)]


def test_token_types_go_to_a_session_that_takes_them(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(small_sentence_encoder(tmp_path, "mean"))
    with Counting(typed=True) as session:
        places, inputs, outputs = next(run_texts(session, tokenizer, ["a b", "c"]))
    assert places == [1, 0]
    assert not inputs["token_type_ids"].any()
    assert outputs["embedding"].shape == (2, 2)
    with Counting(typed=True) as session:
        assert not list(run_texts(session, tokenizer, []))
