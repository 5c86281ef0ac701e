"""Against transformers: stored outputs always, and the libraries themselves where they are installed.

To run the second kind: PYTHONPATH=src:. python -m pytest tests/models/test_bert_parity.py, in an environment with
PyTorch, transformers and sentence-transformers.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.models.bert import ARCHITECTURES, bert_recipe
from aula.models.bert_modules import SentenceModules
from aula.models.bert_seeded import random_checkpoint
from aula.models.bert_texts import embed_texts, open_tokenizer
from aula.models.checkpoints import Checkpoint
from tests.models.bert_small_model import CHANGES, MODULES, SENTENCES, SMALL, inputs, relaid, small
from tests.models.bert_small_model import small_sentence_encoder as encoder

TOLERANCE = 1e-4
BACKENDS = ["openvino", "onnxruntime"]

needs_transformers = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("transformers") is None,
    reason="needs PyTorch and transformers, which are not installed",
)


@pytest.fixture(scope="module")
def reference() -> Any:
    return np.load(Path(__file__).with_name("bert_reference.npz"), allow_pickle=False)


def _open(checkpoint: Checkpoint, backend: str) -> Session:
    import onnx

    path = checkpoint.folder / "graph.onnx"
    onnx.save(bert_recipe(checkpoint, "small").write_graph(), path)
    return open_session(backend, path, SessionOptions(threads=2))


def _error(got: Any, wanted: Any) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_the_seeded_weights_are_those_the_outputs_were_made_with(reference: Any, tmp_path: Path) -> None:
    digest = hashlib.sha256(small(tmp_path).weights_file.read_bytes()).hexdigest()
    assert digest == str(reference["digest"]), "run tests/models/make_bert_reference.py again"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", CHANGES)
def test_outputs_equal_those_of_transformers(reference: Any, tmp_path: Path, backend: str, variant: str) -> None:
    wanted = {name.partition("/")[2]: reference[name] for name in reference if name.startswith(f"{variant}/")}
    with _open(small(tmp_path, variant), backend) as session:
        got = session.run(inputs())
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        assert _error(got[name], array) <= TOLERANCE, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODULES)
def test_vectors_equal_those_of_sentence_transformers(reference: Any, tmp_path: Path, backend: str, name: str) -> None:
    checkpoint = encoder(tmp_path, name)
    wanted = reference[f"sentences/{name}"]
    dimensions = SentenceModules.from_checkpoint(checkpoint).dimensions(SMALL["hidden_size"])
    with _open(checkpoint, backend) as session:
        assert _error(embed_texts(session, open_tokenizer(checkpoint), SENTENCES, dimensions), wanted) <= TOLERANCE


@needs_transformers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("old_norms", [False, True])
@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.filterwarnings("ignore")
def test_folders_mean_what_transformers_reads_in_them(
    tmp_path: Path, backend: str, prefix: str, old_norms: bool
) -> None:
    from tests.models.make_bert_reference import transformers_outputs

    checkpoint = small(tmp_path, "BertForMaskedLM")
    relaid(checkpoint, prefix=prefix, old_norms=old_norms)
    wanted = transformers_outputs(checkpoint, "BertForMaskedLM", inputs())
    with _open(checkpoint, backend) as session:
        for name, array in session.run(inputs()).items():
            assert _error(array, wanted[name]) <= TOLERANCE


@needs_transformers
@pytest.mark.parametrize("architecture", ["bert-base", "bert-base-chinese"])
@pytest.mark.filterwarnings("ignore")
def test_the_published_sizes_equal_transformers(tmp_path: Path, architecture: str) -> None:
    """In their own layout: names with "bert." before them, norms with gamma and beta."""
    from tests.models.make_bert_reference import transformers_outputs

    checkpoint = random_checkpoint(architecture, tmp_path, 1)
    relaid(checkpoint, prefix="bert.", old_norms=True)
    recipe = bert_recipe(checkpoint, architecture)
    tensors = recipe.example({"batch": 3, "sequence": 37}, np.random.default_rng(2))
    wanted = transformers_outputs(checkpoint, ARCHITECTURES[architecture]["architectures"][0], tensors)
    for backend in BACKENDS:
        with _open(checkpoint, backend) as session:
            errors = {name: _error(array, wanted[name]) for name, array in session.run(tensors).items()}
            print(architecture, backend, errors)
            assert max(errors.values()) <= TOLERANCE
