"""Hugging Face's ParakeetForCTC as a checkpoint: sizes, tensor names, weights and alphabet.

Architecture: FastConformer (Rekesh et al. 2023, arXiv:2305.05084). A folder holds config.json, model.safetensors,
tokenizer.json, and preprocessor_config.json or processor_config.json (see `parakeet_mel`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.errors import CheckpointError
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_beam import Alphabet

Shapes = dict[str, tuple[int, ...]]
KIND = "parakeet_ctc"
"""What config.json calls it under "model_type"."""
TOKENIZER = "tokenizer.json"
NORM_EPSILON = 1e-5
"""Of layer norms and batch norms: the architecture's own, no checkpoint says another."""

_SIZES = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096,
    "conv_kernel_size": 9, "subsampling_factor": 8, "subsampling_conv_channels": 256, "num_mel_bins": 80,
    "subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2,
}  # fmt: skip
"""Of "encoder_config", with what holds where it leaves one out: the sizes of parakeet-ctc-1.1b."""
_SWITCHES = {"attention_bias": True, "convolution_bias": True, "scale_input": True}
_LAWFUL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "conv_norm_type": ("batch_norm",), "causal_downsampling": (False,),
    "att_context_size": ([-1, -1],), "att_context_style": ("regular",), "conv_context_size": ([-1, -1],),
}  # fmt: skip
"""Of "encoder_config" too: what is written here. Others are FastConformers that stream, which look less far."""


@dataclass(frozen=True, slots=True)
class ParakeetConfig:
    """Sizes as config.json names them."""

    vocab_size: int
    blank: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_kernel_size: int
    subsampling_factor: int
    subsampling_conv_channels: int
    num_mel_bins: int
    subsampling_conv_kernel_size: int
    subsampling_conv_stride: int
    attention_bias: bool
    convolution_bias: bool
    scale_input: bool

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "ParakeetConfig":
        """Raises CheckpointError for another architecture, a variant unknown here, or a senseless size."""
        raw = checkpoint.read_json("config.json")
        encoder = raw.get("encoder_config")
        if raw.get("model_type") != KIND or not isinstance(encoder, dict):
            raise CheckpointError(
                f"{checkpoint.folder} has model_type {raw.get('model_type')!r} and "
                f"{'an' if encoder else 'no'} encoder_config; this recipe writes {KIND!r}",
                next_step="choose a checkpoint of ParakeetForCTC; transducers (TDT, RNNT) are not read",
            )
        heads = encoder.get("num_attention_heads", _SIZES["num_attention_heads"])
        for name, lawful in {**_LAWFUL, "num_key_value_heads": (heads,)}.items():
            if encoder.get(name) not in (None, *lawful):
                raise CheckpointError(
                    f"{checkpoint.folder} has {name} {encoder[name]!r}; this recipe writes Parakeet with {lawful[0]!r}",
                    next_step="choose a checkpoint of ParakeetForCTC that hears a sound as a whole",
                )
        sizes: dict[str, Any] = {name: _size(encoder, name, usual) for name, usual in _SIZES.items()}
        switches: dict[str, Any] = {name: _switch(encoder, name, usual) for name, usual in _SWITCHES.items()}
        config = cls(
            vocab_size=_size(raw, "vocab_size", 1025),
            blank=_size(raw, "pad_token_id", 1024, least=0),
            **sizes,
            **switches,
        )
        config._check()
        return config

    def _check(self) -> None:
        odd = self.conv_kernel_size % 2 and self.subsampling_conv_kernel_size % 2
        halved = self.subsampling_factor == self.subsampling_conv_stride**self.halvings
        if (
            self.hidden_size % (2 * self.num_attention_heads)
            or self.blank >= self.vocab_size
            or not (odd and halved and self.halvings)
            or self.subsampling_conv_stride != 2
            or self.num_mel_bins % self.subsampling_factor
        ):
            raise CheckpointError("the sizes in config.json do not go together", next_step="copy config.json again")

    @property
    def halvings(self) -> int:
        """Strided convolutions."""
        return self.subsampling_factor.bit_length() - 1

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def frames(self, mel_frames: int) -> int:
        """Of output."""
        for _ in range(self.halvings):
            mel_frames = (mel_frames - 1) // 2 + 1
        return mel_frames

    def convolutions(self) -> list[tuple[str, tuple[int, int, int, int], bool]]:
        """Of the subsampling: name, kernel, and whether it is strided. The first is of one channel, then each pair
        goes over every channel by itself and mixes them."""
        size, channels = self.subsampling_conv_kernel_size, self.subsampling_conv_channels
        layers = "encoder.subsampling.layers"
        made = [(f"{layers}.0", (channels, 1, size, size), True)]
        for pair in range(self.halvings - 1):
            made.append((f"{layers}.{3 * pair + 2}", (channels, 1, size, size), True))
            made.append((f"{layers}.{3 * pair + 3}", (channels, channels, 1, 1), False))
        return made

    def shapes(self) -> Shapes:
        """Every tensor, as Hugging Face names them."""
        wide = self.hidden_size
        shapes: Shapes = {}
        for name, kernel, _ in self.convolutions():
            shapes |= {f"{name}.weight": kernel, f"{name}.bias": kernel[:1]}
        flat = self.subsampling_conv_channels * self.num_mel_bins // self.subsampling_factor
        shapes |= _layer("encoder.subsampling.linear", (wide, flat))
        for block in range(self.num_hidden_layers):
            shapes |= self._block(f"encoder.layers.{block}")
        return shapes | _layer("ctc_head", (self.vocab_size, wide, 1))

    def _block(self, prefix: str) -> Shapes:
        wide, inner, biased = self.hidden_size, self.intermediate_size, self.attention_bias
        shapes: Shapes = {}
        for half in ("feed_forward1", "feed_forward2"):
            shapes |= _layer(f"{prefix}.{half}.linear1", (inner, wide), biased)
            shapes |= _layer(f"{prefix}.{half}.linear2", (wide, inner), biased)
        for part in ("q", "k", "v", "o"):
            shapes |= _layer(f"{prefix}.self_attn.{part}_proj", (wide, wide), biased)
        shapes |= _layer(f"{prefix}.self_attn.relative_k_proj", (wide, wide), False)
        for name in ("bias_u", "bias_v"):
            shapes[f"{prefix}.self_attn.{name}"] = (self.num_attention_heads, self.head_size)
        biased = self.convolution_bias
        shapes |= _layer(f"{prefix}.conv.pointwise_conv1", (2 * wide, wide, 1), biased)
        shapes |= _layer(f"{prefix}.conv.depthwise_conv", (wide, 1, self.conv_kernel_size), biased)
        shapes |= _layer(f"{prefix}.conv.pointwise_conv2", (wide, wide, 1), biased)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.conv.norm.{name}"] = (wide,)
        for name in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            shapes |= _layer(f"{prefix}.norm_{name}", (wide,))
        return shapes


def load_weights(checkpoint: Checkpoint, config: ParakeetConfig) -> dict[str, Float32]:
    """All tensors. Convolutions of one frame become matrices, and a layer without a bias gets one of zeros. Raises
    CheckpointError."""
    weights = checkpoint.weights(config.shapes())
    for name in [name for name in weights if name.endswith(".weight")]:
        if name.endswith(("pointwise_conv1.weight", "pointwise_conv2.weight", "ctc_head.weight")):
            weights[name] = weights[name][:, :, 0]
        weights.setdefault(name.removesuffix("weight") + "bias", np.zeros(len(weights[name]), np.float32))
    return weights


def read_alphabet(checkpoint: Checkpoint, config: ParakeetConfig) -> Alphabet:
    """tokenizer.json's pieces, in small letters as course words are; special tokens say nothing. Raises
    CheckpointError."""
    raw = checkpoint.read_json(TOKENIZER)
    try:
        listed = raw["model"]["vocab"]
        pieces = listed if isinstance(listed, dict) else {piece: place for place, (piece, _) in enumerate(listed)}
        tokens = {int(number): str(piece) for piece, number in pieces.items()}
        for added in raw.get("added_tokens") or ():
            tokens[int(added["id"])] = "" if added.get("special") else str(added["content"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / TOKENIZER} lists no pieces ({error!r})", next_step="copy the file again"
        ) from error
    tokens[config.blank] = ""
    if sorted(tokens) != list(range(config.vocab_size)):
        raise CheckpointError(
            f"{TOKENIZER} names {len(tokens)} tokens, the blank among them, and the model says {config.vocab_size}",
            next_step="copy the whole folder again: its files belong together",
        )
    return Alphabet(tuple(tokens[number].lower() for number in range(config.vocab_size)), config.blank)


def _layer(name: str, weight: tuple[int, ...], biased: bool = True) -> Shapes:
    bias = {f"{name}.bias": weight[:1]} if biased else {}
    return {f"{name}.weight": weight, **bias}


def _size(raw: Mapping[str, Any], name: str, usual: int, *, least: int = 1) -> int:
    value = raw.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CheckpointError(f"config.json gives {name} {value!r}, not a size", next_step="copy config.json again")
    return value


def _switch(raw: Mapping[str, Any], name: str, usual: bool) -> bool:
    value = raw.get(name, usual)
    if not isinstance(value, bool):
        raise CheckpointError(
            f"config.json gives {name} {value!r}, not true or false", next_step="copy config.json again"
        )
    return value
