"""Wav2Vec2's ONNX graph (opset 20), written from its weights."""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.core.types import Float32
from aula.models.graph_writer import GraphWriter

if TYPE_CHECKING:
    import onnx

    from aula.models.wav2vec2 import Wav2Vec2Config

_PREFIX = "wav2vec2.encoder"
_PROJECTION = "wav2vec2.feature_projection"


def write_wav2vec2(
    config: "Wav2Vec2Config", weights: Mapping[str, Float32], *, int8_weights: bool = False
) -> "onnx.ModelProto":
    """sound, float32 [rows, samples], to logarithms, float32 [rows, frames, tokens], natural."""
    writer = _Wav2Vec2(weights, int8_weights, config.epsilon)
    op = writer.op
    sound = writer.input(np.float32, "rows", "samples")
    x = writer.listened(op.unsqueeze(sound, writer.shape(1)), config)
    x = writer.linear(writer.norm(x, f"{_PROJECTION}.layer_norm"), f"{_PROJECTION}.projection")
    x = op.add(x, writer.placed(x, config))
    if not config.stable:
        x = writer.norm(x, f"{_PREFIX}.layer_norm")
    for layer in range(config.num_hidden_layers):
        x = writer.layer(x, f"{_PREFIX}.layers.{layer}", config)
    if config.stable:
        x = writer.norm(x, f"{_PREFIX}.layer_norm")
    return writer.model({"sound": sound}, {"logarithms": op.log_softmax(writer.linear(x, "lm_head"), axis=-1)})


class _Wav2Vec2(GraphWriter):
    def listened(self, x: Any, config: "Wav2Vec2Config") -> Any:
        """[rows, 1, samples] to [rows, frames, width of the last convolution]."""
        op = self.op
        for layer, (kernel, stride) in enumerate(zip(config.conv_kernel, config.conv_stride, strict=True)):
            prefix = f"wav2vec2.feature_extractor.conv_layers.{layer}"
            bias = self.weight(f"{prefix}.conv.bias") if config.conv_bias else None
            x = op.conv(x, self.weight(f"{prefix}.conv.weight"), bias, kernel_shape=[kernel], strides=[stride])
            if config.norm_each:
                turned = self.norm(op.transpose(x, perm=[0, 2, 1]), f"{prefix}.layer_norm", epsilon=1e-5)
                x = op.transpose(turned, perm=[0, 2, 1])
            elif layer == 0:
                # As many groups as channels: each is normalised over time by itself.
                scale, shift = self.weight(f"{prefix}.layer_norm.weight"), self.weight(f"{prefix}.layer_norm.bias")
                x = op.instance_normalization(x, scale, shift, epsilon=1e-5)
            x = op.gelu(x)
        return op.transpose(x, perm=[0, 2, 1])

    def placed(self, x: Any, config: "Wav2Vec2Config") -> Any:
        op, size = self.op, config.num_conv_pos_embeddings
        name = f"{_PREFIX}.pos_conv_embed.conv"
        # An even kernel gives a frame too many, of which the last is dropped.
        y = op.conv(
            op.transpose(x, perm=[0, 2, 1]),
            self.weight(f"{name}.weight"),
            self.weight(f"{name}.bias"),
            kernel_shape=[size],
            pads=[size // 2, size // 2 - (1 - size % 2)],
            group=config.num_conv_pos_embedding_groups,
        )
        return op.transpose(op.gelu(y), perm=[0, 2, 1])

    def layer(self, x: Any, prefix: str, config: "Wav2Vec2Config") -> Any:
        op = self.op
        if config.stable:
            x = op.add(x, self.attention(self.norm(x, f"{prefix}.layer_norm"), f"{prefix}.attention", config))
            return op.add(x, self.feed_forward(self.norm(x, f"{prefix}.final_layer_norm"), f"{prefix}.feed_forward"))
        x = self.norm(op.add(x, self.attention(x, f"{prefix}.attention", config)), f"{prefix}.layer_norm")
        return self.norm(op.add(x, self.feed_forward(x, f"{prefix}.feed_forward")), f"{prefix}.final_layer_norm")

    def feed_forward(self, x: Any, prefix: str) -> Any:
        return self.linear(self.op.gelu(self.linear(x, f"{prefix}.intermediate_dense")), f"{prefix}.output_dense")

    def attention(self, x: Any, prefix: str, config: "Wav2Vec2Config") -> Any:
        op, heads = self.op, config.num_attention_heads
        size = config.hidden_size // heads

        def split(name: str, scale: float = 1.0) -> Any:
            made = self.linear(x, f"{prefix}.{name}_proj", scale=scale)
            return op.transpose(op.reshape(made, self.shape(0, 0, heads, size)), perm=[0, 2, 1, 3])

        scores = op.matmul(split("q", 1 / sqrt(size)), op.transpose(split("k"), perm=[0, 1, 3, 2]))
        mixed = op.transpose(op.matmul(op.softmax(scores, axis=-1), split("v")), perm=[0, 2, 1, 3])
        return self.linear(op.reshape(mixed, self.shape(0, 0, config.hidden_size)), f"{prefix}.out_proj")
