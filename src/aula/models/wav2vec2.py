"""Hugging Face's Wav2Vec2ForCTC as a recipe: sound in, logarithms of letters' probabilities out, a whole sound at once.

Architecture: Baevski et al. 2020 (arXiv:2006.11477). Both published layouts are read: "base" (one group norm, norms
behind) and "large" with stable layer norm (layer norms throughout, norms before). Positions come from a convolution
over seconds to both sides, so this one does not stream.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from aula.backends.session import Session
from aula.core.errors import CheckpointError
from aula.core.types import SPEECH_RATE, Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_beam import Alphabet
from aula.models.ctc_whole import LONGEST_SECONDS, USUAL_SECONDS, WholeHearing, WholeKind
from aula.models.wav2vec2_graph import write_wav2vec2
from aula.models.wav2vec2_reference import Wav2Vec2Reference

Shapes = dict[str, tuple[int, ...]]
KIND = "wav2vec2"
VOCABULARY = "vocab.json"


@dataclass(frozen=True, slots=True)
class Wav2Vec2Config:
    """Sizes as config.json names them; `stable`: norms stand before attention and feed-forward."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    norm_each: bool
    stable: bool
    epsilon: float
    blank: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "Wav2Vec2Config":
        """Raises CheckpointError for another architecture, a variant unknown here, or a missing field."""
        raw = checkpoint.read_json("config.json")
        wanted = {
            "model_type": KIND, "hidden_act": "gelu", "feat_extract_activation": "gelu", "add_adapter": False,
            "adapter_attn_dim": None, "position_embeddings_type": None,
        }  # fmt: skip
        defaults = {**wanted, "model_type": None}
        for name, value in wanted.items():
            if raw.get(name, defaults[name]) != value:
                raise CheckpointError(
                    f"{checkpoint.folder} has {name} {raw.get(name)!r}; this recipe writes Wav2Vec2 with {value!r}",
                    next_step="choose a checkpoint of Wav2Vec2ForCTC without adapters",
                )
        try:
            lists = {name: tuple(int(size) for size in raw[name]) for name in _LISTS}
            sizes: dict[str, Any] = {name: int(raw[name]) for name in _SIZES}
            config = cls(
                **sizes,
                **cast("dict[str, Any]", lists),
                conv_bias=bool(raw["conv_bias"]),
                norm_each=raw["feat_extract_norm"] == "layer",
                stable=bool(raw["do_stable_layer_norm"]),
                epsilon=float(raw["layer_norm_eps"]),
                blank=int(raw.get("pad_token_id") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json of {checkpoint.folder} lacks a size or gives a senseless one ({error})",
                next_step="copy config.json again",
            ) from error
        if config.hidden_size % config.num_attention_heads or len({len(row) for row in lists.values()}) != 1:
            raise CheckpointError("the sizes in config.json do not go together", next_step="copy config.json again")
        return config

    def frames(self, samples: int) -> int:
        """Of output, for so many samples."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(0, samples)

    def shapes(self) -> Shapes:
        """All but the positions' kernel, which is stored as a direction and a length."""
        wide = self.hidden_size
        shapes: Shapes = {}
        given = 1
        for layer, (made, kernel) in enumerate(zip(self.conv_dim, self.conv_kernel, strict=True)):
            prefix = f"wav2vec2.feature_extractor.conv_layers.{layer}"
            shapes[f"{prefix}.conv.weight"] = (made, given, kernel)
            if self.conv_bias:
                shapes[f"{prefix}.conv.bias"] = (made,)
            if self.norm_each or layer == 0:
                shapes |= _norm(f"{prefix}.layer_norm", made)
            given = made
        shapes |= _norm("wav2vec2.feature_projection.layer_norm", given)
        shapes |= _linear("wav2vec2.feature_projection.projection", given, wide)
        shapes["wav2vec2.encoder.pos_conv_embed.conv.bias"] = (wide,)
        shapes |= _norm("wav2vec2.encoder.layer_norm", wide)
        for layer in range(self.num_hidden_layers):
            prefix = f"wav2vec2.encoder.layers.{layer}"
            for part in ("q", "k", "v", "out"):
                shapes |= _linear(f"{prefix}.attention.{part}_proj", wide, wide)
            shapes |= _norm(f"{prefix}.layer_norm", wide)
            shapes |= _linear(f"{prefix}.feed_forward.intermediate_dense", wide, self.intermediate_size)
            shapes |= _linear(f"{prefix}.feed_forward.output_dense", self.intermediate_size, wide)
            shapes |= _norm(f"{prefix}.final_layer_norm", wide)
        return shapes | _linear("lm_head", wide, self.vocab_size)


_LISTS = ("conv_dim", "conv_kernel", "conv_stride")
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
)  # fmt: skip
POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"


def load_weights(checkpoint: Checkpoint, config: Wav2Vec2Config) -> dict[str, Float32]:
    """All tensors, the positions' kernel put together (Salimans & Kingma 2016, arXiv:1602.07868). Raises
    CheckpointError."""
    groups = config.num_conv_pos_embedding_groups
    kernel = (config.hidden_size, config.hidden_size // groups, config.num_conv_pos_embeddings)
    length = (1, 1, config.num_conv_pos_embeddings)
    failure: CheckpointError | None = None
    # torch called the two parts otherwise before 2.0.
    for names in (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")):
        lengths, directions = (f"{POSITIONS}.{name}" for name in names)
        try:
            weights = checkpoint.weights({**config.shapes(), lengths: length, directions: kernel})
        except CheckpointError as error:
            failure = failure or error
            continue
        direction = weights.pop(directions)
        norm = np.sqrt((direction.astype(np.float64) ** 2).sum(axis=(0, 1), keepdims=True))
        weights[f"{POSITIONS}.weight"] = (direction / norm * weights.pop(lengths)).astype(np.float32)
        return weights
    assert failure is not None
    raise failure


def read_alphabet(checkpoint: Checkpoint, config: Wav2Vec2Config) -> Alphabet:
    """vocab.json's letters; "|" parts words. Raises CheckpointError."""
    raw = checkpoint.read_json(VOCABULARY)
    tokens = sorted(raw, key=lambda token: int(raw[token]))
    if len(tokens) != config.vocab_size:
        raise CheckpointError(
            f"{VOCABULARY} names {len(tokens)} tokens, and the model says {config.vocab_size}",
            next_step="copy the whole folder again: its files belong together",
        )
    return Alphabet(
        tuple("" if len(token) > 1 and token[0] in "<[" else token.lower() for token in tokens), config.blank, "|"
    )


def normalises(checkpoint: Checkpoint) -> bool:
    """Whether a sound is brought to mean 0 and spread 1 first, which preprocessor_config.json says."""
    path = checkpoint.folder / "preprocessor_config.json"
    return bool(json.loads(path.read_text("utf-8")).get("do_normalize", True)) if path.is_file() else True


def normalised(samples: Float32) -> Float32:
    result: Float32 = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(1e-7))
    return result


def wav2vec2_recipe(
    checkpoint: Checkpoint, name: str, *, licences: tuple[Licence, ...] = (), seeded: bool = False
) -> Recipe:
    """sound, float32 [rows, samples] (see `normalised`), to logarithms, float32 [rows, frames, tokens]."""
    config = Wav2Vec2Config.from_checkpoint(checkpoint)

    def weights() -> dict[str, Float32]:
        return load_weights(checkpoint, config)

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        return {"sound": generator.standard_normal((sizes["rows"], sizes["samples"]), dtype=np.float32)}

    one = Size(1, 1, 1)
    least, usual, most = SPEECH_RATE // 4, USUAL_SECONDS * SPEECH_RATE, LONGEST_SECONDS * SPEECH_RATE
    return Recipe(
        name=name,
        revision=1,
        sources=(*checkpoint.weights_files, checkpoint.folder / "config.json", *_vocabulary(checkpoint.folder)),
        write_graph=lambda: write_wav2vec2(config, weights()),
        example=example,
        reference=Wav2Vec2Reference(config, weights),
        profiles=(
            Profile("question", {"rows": one, "samples": Size(least, usual, usual)}),
            Profile("long", {"rows": one, "samples": Size(usual, usual, most)}),
        ),
        rows="rows",
        written={"int8": lambda: write_wav2vec2(config, weights(), int8_weights=True)},
        dynamic_quantisation=config.hidden_size,
        seeded=seeded,
        licences=licences,
    )


def hearing(session: Session, checkpoint: Checkpoint) -> WholeHearing:
    config, as_given = Wav2Vec2Config.from_checkpoint(checkpoint), not normalises(checkpoint)
    return WholeHearing(
        session,
        lambda samples: {"sound": (samples if as_given else normalised(samples))[None]},
        units=config.vocab_size,
        frame_seconds=float(np.prod(config.conv_stride)) / SPEECH_RATE,
    )


WAV2VEC2 = WholeKind(
    wav2vec2_recipe,
    lambda checkpoint: read_alphabet(checkpoint, Wav2Vec2Config.from_checkpoint(checkpoint)),
    hearing,
)


def _vocabulary(folder: Path) -> tuple[Path, ...]:
    return (folder / VOCABULARY,) if (folder / VOCABULARY).is_file() else ()


def _norm(name: str, wide: int) -> Shapes:
    return {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}


def _linear(name: str, given: int, made: int) -> Shapes:
    return {f"{name}.weight": (made, given), f"{name}.bias": (made,)}
