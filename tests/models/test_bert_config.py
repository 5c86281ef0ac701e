import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aula.core.errors import CheckpointError
from aula.models.bert_config import BertConfig, load_weights, model_weights
from aula.models.checkpoints import Checkpoint
from tests.models.bert_small_model import LABELS, SMALL, relaid, small, write


def _config(folder: Path, **changes: Any) -> BertConfig:
    write(folder / "config.json", {**SMALL, **changes})
    return BertConfig.from_checkpoint(Checkpoint(folder))


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("BertModel", "hidden"),
        ("BertForPreTraining", "hidden"),
        ("BertForMaskedLM", "hidden"),
        ("BertForSequenceClassification", "sequence"),
        ("BertForTokenClassification", "tokens"),
        ("BertForQuestionAnswering", "span"),
    ],
)
def test_the_architecture_decides_the_head(tmp_path: Path, architecture: str, head: str) -> None:
    assert _config(tmp_path, architectures=[architecture]).head == head


def test_what_old_checkpoints_leave_out_is_what_they_mean(tmp_path: Path) -> None:
    old = {name: value for name, value in SMALL.items() if name not in ("architectures", "layer_norm_eps")}
    write(tmp_path / "config.json", old)
    config = BertConfig.from_checkpoint(Checkpoint(tmp_path))
    assert (config.head, config.layer_norm_eps) == ("hidden", 1e-12)


def test_labels_go_by_number(tmp_path: Path) -> None:
    classifier = {"architectures": ["BertForSequenceClassification"]}
    named = {"id2label": {"1": "no", "0": "yes"}}
    assert _config(tmp_path, **classifier, **named).labels == ("yes", "no")
    assert _config(tmp_path, **classifier, num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(_config(tmp_path, **classifier).labels) == 2
    assert _config(tmp_path, **LABELS).labels == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "roberta"}, "roberta"),
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice"),
        ({"architectures": [["BertModel"]]}, "architectures"),
        ({"hidden_size": 16.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 3}, "a divisor of hidden_size 16"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"1": "a"}}, "id2label"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {}}, "id2label"),
        ({"architectures": ["BertForTokenClassification"], "num_labels": "two"}, "num_labels"),
    ],
)
def test_what_is_not_written_or_makes_no_sense_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        _config(tmp_path, **changes)
    assert caught.value.next_step


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old_norms", [False, True])
def test_every_layout_gives_the_same_weights(tmp_path: Path, prefix: str, old_norms: bool) -> None:
    checkpoint = small(tmp_path, "BertForSequenceClassification")
    config = BertConfig.from_checkpoint(checkpoint)
    before = model_weights(checkpoint, config)
    relaid(checkpoint, prefix=prefix, old_norms=old_norms)
    after = model_weights(checkpoint, config)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_of_every_float_become_float32(tmp_path: Path, dtype: Any) -> None:
    checkpoint = small(tmp_path)
    config = BertConfig.from_checkpoint(checkpoint)
    before = model_weights(checkpoint, config)
    relaid(checkpoint, dtype=dtype)
    for name, array in model_weights(checkpoint, config).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, before[name].astype(dtype).astype(np.float32))


def test_absent_and_quantised_weights_are_named(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tensor classifier\.weight"):
        load_weights(checkpoint, {"classifier.weight": (3, 16)})
    there = {"pooler.dense.bias": (16,)}
    assert load_weights(checkpoint, there, {"classifier.weight": (3, 16)}).keys() == there.keys()
    relaid(checkpoint, dtype=np.int8)
    with pytest.raises(CheckpointError, match="stored as I8"):
        model_weights(checkpoint, BertConfig.from_checkpoint(checkpoint))
    checkpoint.weights_file.unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors") as caught:
        model_weights(checkpoint, BertConfig.from_checkpoint(checkpoint))
    assert "config.json" in caught.value.available


def test_weights_may_lie_in_several_files(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = small(tmp_path)
    config = BertConfig.from_checkpoint(checkpoint)
    before = model_weights(checkpoint, config)
    tensors = load_file(checkpoint.weights_file)
    checkpoint.weights_file.unlink()
    shards: dict[str, dict[str, Any]] = {"a.safetensors": {}, "b.safetensors": {}}
    for place, (name, tensor) in enumerate(tensors.items()):
        shards["ab"[place % 2] + ".safetensors"][name] = tensor
    for file, part in shards.items():
        save_file(part, tmp_path / file)
    listed = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    after = model_weights(checkpoint, config)
    assert all(np.array_equal(before[name], after[name]) for name in before)
