"""Whisper's sizes and tensor names, and its weights from a Hugging Face folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint

Shapes = dict[str, tuple[int, ...]]

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_SIZES = (
    "vocab_size",
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "max_source_positions",
    "max_target_positions",
)


@dataclass(frozen=True, slots=True)
class WhisperConfig:
    """Sizes as config.json names them, and the tokens that are never, or never first, written."""

    vocab_size: int
    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    max_source_positions: int
    max_target_positions: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "WhisperConfig":
        """Raises CheckpointError for another architecture, a variant unknown here, or a missing or senseless field."""
        raw = checkpoint.read_json("config.json")
        expected = {
            "model_type": "whisper",
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
        }
        for name, wanted in expected.items():
            default = None if name == "model_type" else wanted
            if raw.get(name, default) != wanted:
                raise CheckpointError(
                    f"{checkpoint.folder} has {name} {raw.get(name)!r}; this recipe writes Whisper with {wanted!r}",
                    next_step="choose a checkpoint of the Whisper family",
                )
        sizes = {name: _size(raw, name) for name in _SIZES}
        # Newer checkpoints keep what steers generation in a file of its own.
        path = checkpoint.folder / "generation_config.json"
        steering = {**raw, **(checkpoint.read_json(path.name) if path.exists() else {})}
        config = cls(
            **sizes,
            suppressed=_tokens(steering, "suppress_tokens", sizes["vocab_size"]),
            suppressed_first=_tokens(steering, "begin_suppress_tokens", sizes["vocab_size"]),
        )
        for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
            if config.d_model % heads:
                raise CheckpointError(
                    f"config.json gives {heads} attention heads, which do not divide d_model {config.d_model}",
                    next_step="copy config.json again",
                )
        return config

    @property
    def head_size(self) -> int:
        """Of the decoder, whose heads share keys and values with the encoder's cross outputs."""
        return self.d_model // self.decoder_attention_heads

    def encoder_shapes(self) -> Shapes:
        """What the encoder graph needs: the encoder, and the decoder's projections of its output."""
        hidden = self.d_model
        shapes: Shapes = {
            "encoder.conv1.weight": (hidden, self.num_mel_bins, 3),
            "encoder.conv1.bias": (hidden,),
            "encoder.conv2.weight": (hidden, hidden, 3),
            "encoder.conv2.bias": (hidden,),
            "encoder.embed_positions.weight": (self.max_source_positions, hidden),
            **_norm("encoder.layer_norm", hidden),
        }
        for layer in range(self.encoder_layers):
            prefix = f"encoder.layers.{layer}"
            shapes |= _attention(f"{prefix}.self_attn", hidden, _ATTENTION)
            shapes |= _feed_forward(prefix, hidden, self.encoder_ffn_dim)
        for layer in range(self.decoder_layers):
            shapes |= _attention(f"decoder.layers.{layer}.encoder_attn", hidden, ("k_proj", "v_proj"))
        return shapes

    def decoder_shapes(self) -> Shapes:
        """What the decoder graph needs; cross keys and values are made by the encoder graph."""
        hidden = self.d_model
        shapes: Shapes = {
            "decoder.embed_tokens.weight": (self.vocab_size, hidden),
            "decoder.embed_positions.weight": (self.max_target_positions, hidden),
            **_norm("decoder.layer_norm", hidden),
        }
        for layer in range(self.decoder_layers):
            prefix = f"decoder.layers.{layer}"
            shapes |= _attention(f"{prefix}.self_attn", hidden, _ATTENTION)
            shapes |= _attention(f"{prefix}.encoder_attn", hidden, ("q_proj", "out_proj"))
            shapes |= _norm(f"{prefix}.encoder_attn_layer_norm", hidden)
            shapes |= _feed_forward(prefix, hidden, self.decoder_ffn_dim)
        return shapes


def load_weights(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, Float32]:
    """Tensors by name, with or without "model." before the names. Raises what `Checkpoint.weights` raises."""
    return checkpoint.weights(shapes, ("model.", ""))


def _size(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json has {name} {value!r} where a whole number from 1 is needed",
            next_step="copy config.json again",
        )
    return value


def _tokens(raw: dict[str, Any], name: str, vocab_size: int) -> tuple[int, ...]:
    value = raw.get(name) or ()
    if not isinstance(value, list | tuple) or not all(type(token) is int and token < vocab_size for token in value):
        raise CheckpointError(
            f"{name} must list tokens below {vocab_size}", next_step="copy config.json and generation_config.json again"
        )
    # -1 stands for the tokeniser's own list in some early checkpoints.
    return tuple(token for token in value if token >= 0)


def _norm(name: str, hidden: int) -> Shapes:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


def _attention(name: str, hidden: int, parts: Sequence[str]) -> Shapes:
    shapes: Shapes = {}
    for part in parts:
        shapes[f"{name}.{part}.weight"] = (hidden, hidden)
        if part != "k_proj":  # a bias of the keys would cancel in the softmax
            shapes[f"{name}.{part}.bias"] = (hidden,)
    return shapes


def _feed_forward(prefix: str, hidden: int, inner: int) -> Shapes:
    return {
        **_norm(f"{prefix}.self_attn_layer_norm", hidden),
        **_norm(f"{prefix}.final_layer_norm", hidden),
        f"{prefix}.fc1.weight": (inner, hidden),
        f"{prefix}.fc1.bias": (inner,),
        f"{prefix}.fc2.weight": (hidden, inner),
        f"{prefix}.fc2.bias": (hidden,),
    }
