"""The way in for models without a recipe. The true export needs the extra `export` and skips aloud without it."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.core.errors import BackendError, CheckpointError, ModelNotFoundError
from aula.engine.recipe import Profile, Size
from aula.models import exported
from aula.models.exported import export_to_onnx
from aula.models.own_onnx import own_onnx_recipe


@pytest.fixture
def with_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "NEEDED", ())


def _folder(path: Path, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "distilbert", **config}))
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "NEEDED", ("numpy", "no_such_torch"))
    with pytest.raises(BackendError, match="needs no_such_torch, which is not installed") as caught:
        export_to_onnx(tmp_path, tmp_path / "m.onnx")
    assert caught.value.next_step == 'pip install "aula[export]"'


@pytest.mark.usefixtures("with_extra")
def test_folders_that_cannot_be_exported_are_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(ModelNotFoundError, match=r"no .*config\.json"):
        export_to_onnx(tmp_path / "none", out)
    with pytest.raises(CheckpointError, match="token by token"):
        export_to_onnx(_folder(tmp_path / "t5", is_encoder_decoder=True, architectures=["T5Model"]), out)
    with pytest.raises(CheckpointError, match="names no model_type"):
        export_to_onnx(_folder(tmp_path / "odd", model_type=None), out)
    pickled = _folder(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        export_to_onnx(pickled, out)
    (pickled / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        export_to_onnx(pickled, out)


@pytest.mark.usefixtures("with_extra")
def test_what_the_child_says_last_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: it takes audio\nUse tlparse\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(BackendError, match=r"PyTorch cannot export m \(A\): ValueError: it takes audio"):
        export_to_onnx(_folder(tmp_path / "m", architectures=["A"]), tmp_path / "m.onnx")


@pytest.mark.usefixtures("with_extra")
def test_an_export_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(BackendError, match="took more than 5 seconds"):
        export_to_onnx(_folder(tmp_path / "m"), tmp_path / "m.onnx", seconds=5)


def test_a_seeded_distilbert_is_exported_and_computes_the_same(tmp_path: Path) -> None:
    missing = [name for name in exported.NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'the extra `export` is not installed ({", ".join(missing)}): pip install "aula[export]"')
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=60, dim=16, hidden_dim=32, n_layers=2, n_heads=4, max_position_embeddings=40, num_labels=3
    )
    model = transformers.DistilBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "distilbert")
    path = export_to_onnx(tmp_path / "distilbert", tmp_path / "distilbert.onnx")
    profile = Profile("usual", {"batch": Size(1, 2, 4), "sequence": Size(2, 7, 20)})
    recipe = own_onnx_recipe(path, "distilbert", profiles=(profile,))
    for sizes in profile.corners:
        inputs = recipe.example(sizes, np.random.default_rng(0))
        inputs["attention_mask"][-1, 2:] = 0
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
        np.testing.assert_allclose(recipe.reference(inputs)["logits"], wanted, atol=1e-5)
