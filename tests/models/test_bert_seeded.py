from pathlib import Path

import pytest

from aula.core.errors import ModelNotFoundError
from aula.models.bert import ARCHITECTURES, bert_recipe, random_checkpoint
from aula.models.bert_config import BertConfig
from aula.models.bert_modules import SentenceModules, is_sentence_encoder
from aula.models.bert_seeded import write_modules
from aula.models.bert_texts import longest_sequence
from aula.models.checkpoints import Checkpoint
from tests.models.bert_small_model import SMALL, write


def test_the_sizes_are_those_that_were_published(tmp_path: Path) -> None:
    """Millions of parameters, as the model cards and papers count them."""
    published = {
        "bert-base": 109.5,
        "bert-base-chinese": 102.3,
        "minilm": 22.7,
        "minilm-multilingual": 117.7,
        "bge-small-zh": 24.0,
    }
    assert published.keys() == ARCHITECTURES.keys()
    for name, raw in ARCHITECTURES.items():
        write(tmp_path / "config.json", raw)
        config = BertConfig.from_checkpoint(Checkpoint(tmp_path))
        count = 0
        for shape in (config.weight_shapes() | config.pooler_shapes()).values():
            count += shape[0] * (shape[1] if len(shape) == 2 else 1)
        assert count / 1e6 == pytest.approx(published[name], abs=0.1), name


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [random_checkpoint(SMALL, tmp_path / str(place), seed).weights_file for place, seed in enumerate([1, 1, 2])]
    first, second, third = (file.read_bytes() for file in files)
    assert first == second != third


def test_a_sentence_encoder_comes_with_its_modules(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(SMALL, tmp_path, 1)
    write_modules(tmp_path, 16, "cls", normalise=True, longest=24)
    assert is_sentence_encoder(checkpoint)
    assert SentenceModules.from_checkpoint(checkpoint).poolings == ("cls",)
    assert longest_sequence(checkpoint) == 24
    assert bert_recipe(checkpoint, "small", seeded=True).profiles[1].sizes["sequence"].greatest == 24


def test_an_unknown_architecture_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="bert-huge") as caught:
        random_checkpoint("bert-huge", tmp_path, 1)
    assert "bert-base" in caught.value.available
