"""EfficientNet's layers, read from config.json as timm or Hugging Face transformers write it.

Architecture: Tan & Le 2019 (arXiv:1905.11946), table 1, scaled by a width and a depth coefficient. The two
libraries name the same tensors differently and disagree on padding and on the epsilon of batch normalisation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from aula.core.errors import CheckpointError
from aula.models.checkpoints import Checkpoint

# (kernel, stride, expansion, channels in, channels out, repeats) of each stage at width and depth 1
_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
_STAGE_FIELDS = ("kernel_sizes", "strides", "expand_ratios", "in_channels", "out_channels", "num_block_repeats")
_FIXED_FIELDS = {"depth_divisor": 8, "squeeze_expansion_ratio": 0.25, "pooling_type": "mean", "num_channels": 3}

_TIMM_SCALES = {
    f"efficientnet_b{index}": scale
    for index, scale in enumerate(
        ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
    )
}
_TIMM_HARMLESS = frozenset({"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"})
"""Arguments of timm's factory that leave the graph as it is, or that other fields say again."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution. `source` and `norm` are the checkpoint's names of it and of the batch normalisation that
    follows; without `norm` it has a bias. `pads` are top, left, bottom, right."""

    name: str
    source: str
    norm: str | None
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    depthwise: bool = False

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.outputs, 1 if self.depthwise else self.inputs, self.kernel, self.kernel)


@dataclass(frozen=True, slots=True)
class Block:
    """An inverted bottleneck with squeeze and excitation."""

    expand: Convolution | None
    depthwise: Convolution
    squeeze: Convolution
    excite: Convolution
    project: Convolution
    residual: bool

    def convolutions(self) -> list[Convolution]:
        first = [] if self.expand is None else [self.expand]
        return [*first, self.depthwise, self.squeeze, self.excite, self.project]


@dataclass(frozen=True, slots=True)
class Network:
    """Every layer, stem to classifier. `epsilon` is that of batch normalisation; sizes are in pixels."""

    stem: Convolution
    blocks: tuple[Block, ...]
    head: Convolution
    classes: int
    epsilon: float
    height: int
    width: int

    def convolutions(self) -> Iterator[Convolution]:
        yield self.stem
        for block in self.blocks:
            yield from block.convolutions()
        yield self.head

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the checkpoint's own names, batch normalisation still apart."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.convolutions():
            shapes[f"{layer.source}.weight"] = layer.weight_shape
            if layer.norm is None:
                shapes[f"{layer.source}.bias"] = (layer.outputs,)
            else:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{layer.norm}.{part}"] = (layer.outputs,)
        shapes["classifier.weight"] = (self.classes, self.head.outputs)
        shapes["classifier.bias"] = (self.classes,)
        return shapes


@dataclass(frozen=True, slots=True)
class EfficientNetConfig:
    """What config.json decides. `layout` is "timm" or "transformers".

    `padding` places the zeros of a convolution with stride 2: "symmetric" (timm's own weights), "same" (as
    TensorFlow computes it from the size: timm's tf_ weights) or "trailing" (as TensorFlow does at even sizes,
    whatever the size: transformers), the last but for the blocks in `square_blocks`, which are symmetric.
    """

    layout: str
    width_coefficient: float
    depth_coefficient: float
    height: int
    width: int
    classes: int
    epsilon: float
    padding: str
    square_blocks: frozenset[int] = frozenset()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "EfficientNetConfig":
        """Raises CheckpointError for another architecture, a field that is missing or one that is no number."""
        raw = checkpoint.read_json("config.json")
        try:
            if "model_type" in raw:
                return cls._from_transformers(raw)
            return cls._from_timm(raw)
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error}", next_step="copy config.json again") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"config.json has a field of the wrong kind ({error})", next_step="copy config.json again"
            ) from error

    @classmethod
    def _from_transformers(cls, raw: dict[str, Any]) -> "EfficientNetConfig":
        if raw["model_type"] != "efficientnet" or raw.get("hidden_act", "swish") not in ("swish", "silu"):
            raise _foreign(f"model_type {raw['model_type']!r} with activation {raw.get('hidden_act')!r}")
        for field, column in zip(_STAGE_FIELDS, zip(*_STAGES, strict=True), strict=True):
            if tuple(raw[field]) != column:
                raise _foreign(f"{field} {list(raw[field])} where the published network has {list(column)}")
        for field, published in _FIXED_FIELDS.items():
            if raw.get(field, published) != published:
                raise _foreign(f"{field} {raw[field]!r} where the published network has {published!r}")
        size = raw["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return cls(
            "transformers",
            float(raw["width_coefficient"]),
            float(raw["depth_coefficient"]),
            int(height),
            int(width),
            # transformers leaves both fields out where a model has its default of two classes
            len(raw["id2label"]) if raw.get("id2label") else int(raw.get("num_labels", 2)),
            float(raw["batch_norm_eps"]),
            "trailing",
            frozenset(int(block) for block in raw.get("depthwise_padding", ())),
        )._checked()

    @classmethod
    def _from_timm(cls, raw: dict[str, Any]) -> "EfficientNetConfig":
        architecture = str(raw.get("architecture"))
        ported = architecture.startswith("tf_")
        if (scale := _TIMM_SCALES.get(architecture.removeprefix("tf_"))) is None:
            raise _foreign(f"architecture {architecture!r}")
        changed = sorted(set(raw.get("model_args") or {}) - _TIMM_HARMLESS)
        if changed or raw.get("global_pool", "avg") != "avg":
            raise _foreign(f"{architecture} changed by {', '.join(changed) or 'global_pool'}")
        channels, height, width = raw["pretrained_cfg"]["input_size"]
        if channels != 3:
            raise _foreign(f"{architecture} for {channels} channels")
        return cls(
            "timm",
            *scale,
            int(height),
            int(width),
            int(raw["num_classes"]),
            1e-3 if ported else 1e-5,
            "same" if ported else "symmetric",
        )._checked()

    def _checked(self) -> "EfficientNetConfig":
        least = {"height": 32, "width": 32, "classes": 1, "width_coefficient": 0.01, "depth_coefficient": 0.01}
        for field, bound in least.items():
            if not getattr(self, field) >= bound:
                raise CheckpointError(
                    f"config.json implies {field} {getattr(self, field)}; the least is {bound}",
                    next_step="copy config.json again",
                )
        return self

    def network(self) -> Network:
        sources = _timm_sources if self.layout == "timm" else _transformers_sources
        size = (self.height, self.width)
        channels = self._channels(32)
        stem = self._padded(Convolution("stem", *sources()["stem"], 3, channels, 3, 2), size)
        size = _halved(size)
        blocks: list[Block] = []
        for stage, (kernel, stride, expansion, _, published, repeats) in enumerate(_STAGES):
            for repeat in range(ceil(self.depth_coefficient * repeats)):
                index = len(blocks)
                name, source = f"blocks.{index}", sources(stage, repeat, index)
                inner, narrow, produced = channels * expansion, max(1, channels // 4), self._channels(published)
                step = stride if repeat == 0 else 1
                depthwise = Convolution(
                    f"{name}.depthwise", *source["depthwise"], inner, inner, kernel, step, depthwise=True
                )
                # timm adds a block's input wherever shapes allow; transformers from a stage's second block on.
                same_shape = step == 1 and channels == produced
                blocks.append(
                    Block(
                        Convolution(f"{name}.expand", *source["expand"], channels, inner) if expansion > 1 else None,
                        self._padded(depthwise, size, index),
                        Convolution(f"{name}.squeeze", *source["squeeze"], inner, narrow),
                        Convolution(f"{name}.excite", *source["excite"], narrow, inner),
                        Convolution(f"{name}.project", *source["project"], inner, produced),
                        residual=same_shape if self.layout == "timm" else repeat > 0,
                    )
                )
                channels = produced
                size = _halved(size) if step == 2 else size
        head = Convolution("head", *sources()["head"], channels, self._channels(1280))
        return Network(stem, tuple(blocks), head, self.classes, self.epsilon, self.height, self.width)

    def _channels(self, published: int) -> int:
        """Scaled, then rounded to a multiple of 8 that is at most a tenth below."""
        scaled = published * self.width_coefficient
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    def _padded(self, layer: Convolution, size: tuple[int, int], block: int | None = None) -> Convolution:
        """`layer` with its padding for an input of `size`, which matters to the padding "same" only."""
        half = layer.kernel // 2
        rows = columns = (half, half)
        if layer.stride == 2 and self.padding == "same":
            totals = (max((ceil(side / 2) - 1) * 2 + layer.kernel - side, 0) for side in size)
            rows, columns = ((total // 2, total - total // 2) for total in totals)
        elif layer.stride == 2 and self.padding == "trailing" and block not in self.square_blocks:
            rows = columns = (half - 1, half)
        return replace(layer, pads=(rows[0], columns[0], rows[1], columns[1]))


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return (ceil(size[0] / 2), ceil(size[1] / 2))


Sources = dict[str, tuple[str, str | None]]
"""The checkpoint's names of a convolution and of its batch normalisation, by our name."""


def _timm_sources(stage: int = 0, repeat: int = 0, index: int = 0) -> Sources:  # noqa: ARG001 - one signature for both
    prefix = f"blocks.{stage}.{repeat}"
    around: Sources = {
        "stem": ("conv_stem", "bn1"),
        "head": ("conv_head", "bn2"),
        "squeeze": (f"{prefix}.se.conv_reduce", None),
        "excite": (f"{prefix}.se.conv_expand", None),
    }
    if stage == 0:
        # The only stage without expansion is of another class in timm, with other names.
        return around | {
            "depthwise": (f"{prefix}.conv_dw", f"{prefix}.bn1"),
            "project": (f"{prefix}.conv_pw", f"{prefix}.bn2"),
        }
    return around | {
        "expand": (f"{prefix}.conv_pw", f"{prefix}.bn1"),
        "depthwise": (f"{prefix}.conv_dw", f"{prefix}.bn2"),
        "project": (f"{prefix}.conv_pwl", f"{prefix}.bn3"),
    }


def _transformers_sources(stage: int = 0, repeat: int = 0, index: int = 0) -> Sources:  # noqa: ARG001 - as above
    prefix = f"efficientnet.encoder.blocks.{index}"
    return {
        "stem": ("efficientnet.embeddings.convolution", "efficientnet.embeddings.batchnorm"),
        "head": ("efficientnet.encoder.top_conv", "efficientnet.encoder.top_bn"),
        "expand": (f"{prefix}.expansion.expand_conv", f"{prefix}.expansion.expand_bn"),
        "depthwise": (f"{prefix}.depthwise_conv.depthwise_conv", f"{prefix}.depthwise_conv.depthwise_norm"),
        "squeeze": (f"{prefix}.squeeze_excite.reduce", None),
        "excite": (f"{prefix}.squeeze_excite.expand", None),
        "project": (f"{prefix}.projection.project_conv", f"{prefix}.projection.project_bn"),
    }


def _foreign(what: str) -> CheckpointError:
    return CheckpointError(
        f"config.json describes {what}; this recipe writes EfficientNet-B0 to B7 for RGB images as published",
        available=["timm: efficientnet_b0, tf_efficientnet_b0, …", "transformers: google/efficientnet-b0, …"],
        next_step="choose a checkpoint of this family, or export the model to ONNX",
    )
