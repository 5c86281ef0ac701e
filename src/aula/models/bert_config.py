"""BERT's sizes, heads and tensor names, and its weights from a Hugging Face folder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

HIDDEN, SEQUENCE, TOKENS, SPAN = "hidden", "sequence", "tokens", "span"
HEADS = {
    "BertModel": HIDDEN,
    "BertForMaskedLM": HIDDEN,
    "BertForPreTraining": HIDDEN,
    "BertForSequenceClassification": SEQUENCE,
    "BertForTokenClassification": TOKENS,
    "BertForQuestionAnswering": SPAN,
}
"""What is written for each architecture that config.json may name. A head that guesses masked words is left out:
such checkpoints serve as encoders."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Names in config.json, and the function each means: exact GELU, GELU by tanh (three spellings of it), ReLU."""

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_OLD_NAMES = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
"""As TensorFlow called them: `bert-base-uncased` and `bert-base-chinese` still do."""


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes as config.json names them, the activation and the head as this module names them, and its labels."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    head: str = HIDDEN
    labels: tuple[str, ...] = ()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "BertConfig":
        """Raises CheckpointError for another family, a variant that is not written here, or a senseless field."""
        raw = checkpoint.read_json("config.json")
        _expect(raw, "model_type", raw.get("model_type"), ["bert"])
        _expect(raw, "hidden_act", raw.get("hidden_act", "gelu"), ACTIVATIONS)
        _expect(raw, "position_embedding_type", raw.get("position_embedding_type", "absolute"), ["absolute"])
        _expect(raw, "is_decoder", raw.get("is_decoder", False), [False])
        named = raw.get("architectures") or ["BertModel"]
        architecture = named[0] if isinstance(named, list) else named
        _expect(raw, "architectures", architecture, HEADS)
        epsilon = raw.get("layer_norm_eps", 1e-12)
        if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise _senseless("layer_norm_eps", epsilon, "a number between 0 and 1")
        head = HEADS[architecture]
        config = cls(
            **{name: _size(raw, name) for name in _SIZES},
            layer_norm_eps=float(epsilon),
            activation=ACTIVATIONS[raw.get("hidden_act", "gelu")],
            head=head,
            labels=_labels(raw) if head in (SEQUENCE, TOKENS) else (),
        )
        if config.hidden_size % config.num_attention_heads:
            raise _senseless(
                "num_attention_heads", config.num_attention_heads, f"a divisor of hidden_size {config.hidden_size}"
            )
        return config

    def weight_shapes(self) -> Shapes:
        """Of the encoder, without pooler and head."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: Shapes = {
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
                shapes |= _linear(f"{prefix}{name}", *shape)
            norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        for name in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)
        return shapes

    def pooler_shapes(self) -> Shapes:
        return _linear("pooler.dense", self.hidden_size, self.hidden_size)

    def head_shapes(self) -> Shapes:
        """Of the pooler and the classifier, where the head cannot do without them."""
        if self.head == SPAN:
            return _linear("qa_outputs", 2, self.hidden_size)
        if self.head == TOKENS:
            return _linear("classifier", len(self.labels), self.hidden_size)
        if self.head == SEQUENCE:
            return self.pooler_shapes() | _linear("classifier", len(self.labels), self.hidden_size)
        return {}


def encoder_weights(checkpoint: Checkpoint, config: BertConfig) -> dict[str, Float32]:
    """The encoder's alone. Raises CheckpointError."""
    return load_weights(checkpoint, config.weight_shapes())


def model_weights(checkpoint: Checkpoint, config: BertConfig) -> dict[str, Float32]:
    """The encoder's, its head's, and for hidden states also the pooler's if there is one. Raises CheckpointError."""
    optional = config.pooler_shapes() if config.head == HIDDEN else {}
    return load_weights(checkpoint, config.weight_shapes() | config.head_shapes(), optional)


def load_weights(
    checkpoint: Checkpoint, shapes: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None
) -> dict[str, Float32]:
    """Tensors by name, as float32 whatever they are stored as, with or without "bert." before the names and with old
    or new names of the norms; of `optional` those that are there.

    Raises CheckpointError for a file that is absent or damaged, and for an absent or mis-shaped tensor.
    """
    stored = _stored_names(checkpoint)
    wanted = dict(shapes)
    wanted |= {name: shape for name, shape in (optional or {}).items() if _spelling(name, stored) is not None}
    spellings = {name: _spelling(name, stored) or name for name in wanted}
    absent = next((name for name in wanted if spellings[name] not in stored), None)
    if absent is not None:
        raise CheckpointError(
            f"{checkpoint.weights_file} has no tensor {absent}",
            available=sorted(stored)[:8],
            next_step="the file is incomplete, or of another architecture than config.json says: download both again",
        )
    tensors = checkpoint.weights({spellings[name]: shape for name, shape in wanted.items()})
    return {name: tensors[spellings[name]] for name in wanted}


def _spelling(name: str, stored: Collection[str]) -> str | None:
    """What the file calls the tensor `name`."""
    names = [name] + [name.replace(new, old) for new, old in _OLD_NAMES.items() if name.endswith(new)]
    return next((prefix + name for prefix in ("bert.", "") for name in names if prefix + name in stored), None)


def _stored_names(checkpoint: Checkpoint) -> set[str]:
    from safetensors import SafetensorError, safe_open

    path = checkpoint.weights_file
    if path.suffix == ".json":
        listed = checkpoint.read_json(path.name).get("weight_map")
        return set(listed) if isinstance(listed, dict) else set()
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the checkpoint {checkpoint.folder} has no {path.name}",
            available=sorted(entry.name for entry in checkpoint.folder.glob("*")),
            next_step="copy the whole model folder; weights in another form must be saved as safetensors first",
        ) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights {path} cannot be read ({error})", next_step="copy or download the file again"
        ) from error


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _size(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 1:
        raise _senseless(name, value, "a whole number from 1")
    return value


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """By number, from id2label; made-up ones where only their count is told (transformers assumes two)."""
    named = raw.get("id2label")
    if named is None:
        count = _size({"num_labels": 2, **raw}, "num_labels")
        return tuple(f"LABEL_{number}" for number in range(count))
    if not isinstance(named, dict) or not named or {str(key) for key in named} != {str(n) for n in range(len(named))}:
        raise _senseless("id2label", named, "a name for every number from 0")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _expect(raw: Mapping[str, Any], name: str, value: Any, known: Collection[Any]) -> None:
    if not isinstance(value, str | bool) or value not in known:
        raise CheckpointError(
            f"config.json has {name} {raw.get(name)!r}, which the BERT recipe does not write",
            available=[str(choice) for choice in known],
            next_step="choose a checkpoint of the BERT family with one of these",
        )


def _senseless(name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"config.json has {name} {value!r} where {wanted} is needed", next_step="copy config.json again"
    )
