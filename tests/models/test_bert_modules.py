from pathlib import Path
from typing import Any

import pytest

from aula.core.errors import CheckpointError
from aula.models.bert_modules import Dense, Normalise, SentenceModules, is_sentence_encoder
from aula.models.checkpoints import Checkpoint
from tests.models.bert_small_model import SMALL, small, small_sentence_encoder, write

KIND = "sentence_transformers.models."


def _modules(folder: Path, *listed: tuple[str, str]) -> SentenceModules:
    write(folder / "modules.json", [{"type": KIND + kind, "path": path} for kind, path in listed])
    return SentenceModules.from_checkpoint(Checkpoint(folder))


def test_a_bare_encoder_takes_the_mean_and_makes_it_one_long(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    assert not is_sentence_encoder(checkpoint)
    assert SentenceModules.from_checkpoint(checkpoint) == SentenceModules(checkpoint, ("mean",), (Normalise(),))


def test_modules_are_read_in_their_order(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean_sqrt_len")
    assert is_sentence_encoder(checkpoint)
    modules = SentenceModules.from_checkpoint(checkpoint)
    assert modules.poolings == ("mean_sqrt_len_tokens",)
    dense, normalise = modules.steps
    assert isinstance(dense, Dense)
    assert (dense.inputs, dense.outputs, dense.activation) == (16, 6, "tanh")
    assert normalise == Normalise()
    assert modules.dimensions(16) == 6


def test_several_poolings_stand_side_by_side(tmp_path: Path) -> None:
    modules = SentenceModules.from_checkpoint(small_sentence_encoder(tmp_path, "together"))
    assert modules.poolings == ("cls", "max", "mean")
    assert modules.dimensions(16) == 48


def test_newer_configurations_name_the_pooling(tmp_path: Path) -> None:
    small_sentence_encoder(tmp_path, "mean")
    for given, read in (("cls", ("cls",)), (["max", "mean"], ("max", "mean"))):
        write(tmp_path / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": given})
        assert SentenceModules.from_checkpoint(Checkpoint(tmp_path)).poolings == read


def test_the_encoder_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    small_sentence_encoder(tmp_path, "mean")
    small(tmp_path / "0_Transformer")
    modules = _modules(tmp_path, ("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    assert modules.encoder.folder == tmp_path / "0_Transformer"


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": 3}, "3"),
        ({"word_embedding_dimension": 384}, "384"),
    ],
)
def test_poolings_that_are_not_written_are_named(tmp_path: Path, pooling: dict[str, Any], named: str) -> None:
    small_sentence_encoder(tmp_path, "mean")
    write(tmp_path / "1_Pooling" / "config.json", pooling)
    with pytest.raises(CheckpointError, match=named):
        SentenceModules.from_checkpoint(Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ([], "lists nothing"),
        ([("CLIPModel", ""), ("Pooling", "1_Pooling")], "CLIPModel"),
        ([("Transformer", ""), ("Pooling", "1_Pooling"), ("LayerNorm", "2")], "the module LayerNorm"),
        ([("Transformer", "../other"), ("Pooling", "1_Pooling")], "outside the checkpoint"),
        ([("Transformer", ""), ("Pooling", "/etc")], "outside the checkpoint"),
        ([("Transformer", ""), ("Pooling", "..\\other")], "outside the checkpoint"),
    ],
)
def test_modules_that_are_not_written_are_named(tmp_path: Path, listed: list[tuple[str, str]], named: str) -> None:
    small_sentence_encoder(tmp_path, "mean")
    with pytest.raises(CheckpointError, match=named):
        _modules(tmp_path, *listed)


@pytest.mark.parametrize("content", [{}, [1], [{"type": "x"}], "Transformer", None, 3])
def test_a_listing_that_is_none_is_told(tmp_path: Path, content: Any) -> None:
    small_sentence_encoder(tmp_path, "mean")
    write(tmp_path / "modules.json", content)
    with pytest.raises(CheckpointError):
        SentenceModules.from_checkpoint(Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_features": 17}, "is given 16"),
        ({"out_features": "six"}, "six"),
        ({"activation_function": "torch.nn.modules.activation.GELU"}, "GELU"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_a_dense_module_that_is_not_written_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    small_sentence_encoder(tmp_path, "mean_sqrt_len")
    raw = {"in_features": SMALL["hidden_size"], "out_features": 6, "bias": True, **changes}
    write(tmp_path / "2_Dense" / "config.json", raw)
    with pytest.raises(CheckpointError, match=named):
        SentenceModules.from_checkpoint(Checkpoint(tmp_path))


def test_a_dense_module_without_weights_is_told(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean_sqrt_len")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    dense = SentenceModules.from_checkpoint(checkpoint).steps[0]
    assert isinstance(dense, Dense)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        dense.weights()


def test_words_before_every_text_are_refused_rather_than_forgotten(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    settings = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    for chosen in (None, "none"):
        write(tmp_path / "config_sentence_transformers.json", {**settings, "default_prompt_name": chosen})
        assert SentenceModules.from_checkpoint(checkpoint).poolings == ("mean",)
    write(tmp_path / "config_sentence_transformers.json", settings)
    with pytest.raises(CheckpointError, match="'query: ' before every text"):
        SentenceModules.from_checkpoint(checkpoint)
