"""The recogniser as one ONNX graph (opset 20) that hears a chunk and remembers what the next needs.

The network is training/recogniser/model.py's: two strided convolutions, Conformer blocks (Gulati et al. 2020,
arXiv:2005.08100) with rotary positions (Su et al. 2021, arXiv:2104.09864), and inner outputs that are fed back (Nozaki
& Komatsu 2021, arXiv:2104.02724). Choices that are this graph's own:

- What a chunk needs of the past are five tensors that go in and come out: a mel frame, a row of the first convolution,
  keys and values of `left` frames, the convolutions' last frames, and how many frames there were. The caller has them,
  so that one engine serves any number of streams, several in one run; each is 1.2 MB at the sizes that ship.
- Keys are remembered as they are and turned to their positions in every chunk: only differences of positions matter, so
  that a stream may last for ever with the same small table.
- All blocks' keys and values are one tensor, and so are their convolutions' frames: a caller pays for every tensor.
"""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.models.ctc_config import BINS, SUBSAMPLING, CtcConfig
from aula.models.graph_writer import GraphWriter

if TYPE_CHECKING:
    import onnx

LONGEST_CHUNK = 64
"""Output frames of one run: 2.56 s."""
STATES = ("mel_before", "row_before", "kept", "near", "heard")
FAR = 1e9
"""What a frame that was never there loses of its score, for every place that it lies before the first."""


def rotations(config: CtcConfig, places: int) -> tuple[Float32, Float32]:
    """Cosines and sines [places, head_size] of the angles by which the two halves of a key are turned."""
    speeds = 10000.0 ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.arange(places)[:, None] * speeds
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def state_shapes(config: CtcConfig, rows: int | str) -> dict[str, tuple[int | str, ...]]:
    """What goes in as `NAME` and comes out as `NAME_next`; all are zeros before the first chunk."""
    return {
        "mel_before": (rows, 1, BINS),
        "row_before": (rows, config.channels, 1, BINS // 2),
        "kept": (rows, 2 * config.blocks, config.heads, config.left, config.head_size),
        "near": (rows, config.blocks, config.width, config.kernel - 1),
        "heard": (rows,),
    }


def write_recogniser(
    config: CtcConfig, weights: Mapping[str, Float32], *, int8_weights: bool = False
) -> "onnx.ModelProto":
    """mel, float32 [rows, frames, 80] (frames a multiple of 4), and the states (see `state_shapes`), to logarithms,
    float32 [rows, chunk, units]: natural logarithms of the units' probabilities; and the next chunk's states."""
    return _Recogniser(config, weights, int8_weights).written()


class _Recogniser(GraphWriter):
    def __init__(self, config: CtcConfig, weights: Mapping[str, Float32], int8_weights: bool) -> None:
        super().__init__(weights, int8_weights)
        self.config = config
        self.kept: list[Any] = []
        self.near: list[Any] = []

    def written(self) -> "onnx.ModelProto":
        op, config = self.op, self.config
        mel = self.input(np.float32, "rows", "frames", BINS)
        states = {name: self.input(np.float32, *shape) for name, shape in state_shapes(config, "rows").items()}
        # 1. Four mel frames to one.
        x, mel_next, row_next = self._subsampled(mel, states["mel_before"], states["row_before"])
        count = self.length(x, 1)

        # 2. Where the chunk stands behind what is kept, and how much of that was ever heard.
        total = op.add(count, self.shape(config.left))
        tables = [self.bind(name, table) for name, table in zip(
            ("turns.cosine", "turns.sine"), rotations(config, config.left + LONGEST_CHUNK), strict=True)]  # fmt: skip
        self._all_turns = [op.slice(table, self.shape(0), total, self.shape(0)) for table in tables]
        self._own_turns = [op.slice(table, self.shape(config.left), total, self.shape(0)) for table in tables]
        place = self.bind("places", np.arange(config.left + LONGEST_CHUNK, dtype=np.float32))
        place = op.slice(place, self.shape(0), total, self.shape(0))
        first = op.sub(self.constant(np.float32(config.left)), op.unsqueeze(states["heard"], self.shape(1)))
        nothing = self.constant(np.float32(0))
        missing = op.mul(op.min([op.sub(place, first), nothing]), self.constant(np.float32(FAR)))
        self._missing = op.unsqueeze(missing, self.shape(1, 2))

        # 3. The blocks; after some of them what was understood so far is fed back.
        before = self._parts(states["kept"], 2 * config.blocks)
        near = self._parts(states["near"], config.blocks)
        said = 0
        for block in range(config.blocks):
            x = self._block(x, f"blocks.{block}", before[2 * block], before[2 * block + 1], near[block])
            if block + 1 in config.said_after:
                # Not Softmax: between two products OpenVINO 2026.4 takes it for attention, and dies of it.
                shares = op.exp(op.log_softmax(self._says(x, said), axis=-1))
                x = op.add(x, self.linear(shares, "feedback"))
                said += 1
        logarithms = op.log_softmax(self._says(x, said), axis=-1)
        more = op.add(states["heard"], op.cast(count, to=np.float32))
        heard = op.min([more, self.constant(np.float32(config.left))])
        return self.model(
            {"mel": mel, **states},
            {
                "logarithms": logarithms,
                "mel_before_next": mel_next,
                "row_before_next": row_next,
                "kept_next": op.concat(self.kept, axis=1),
                "near_next": op.concat(self.near, axis=1),
                "heard_next": heard,
            },
        )

    def _subsampled(self, mel: Any, mel_before: Any, row_before: Any) -> tuple[Any, Any, Any]:
        op, channels = self.op, self.config.channels
        mel = op.mul(op.sub(mel, self.weight("mean")), self.weight("scale"))
        joined = op.concat([mel_before, mel], axis=1)
        image = op.unsqueeze(joined, self.shape(1))
        x = self._convolution(image, "subsample.first", 3, 2, 1)
        rows = op.concat([row_before, self.silu(x)], axis=2)
        x = self._convolution(rows, "subsample.depth", 3, 2, channels)
        x = self.silu(self._convolution(x, "subsample.point", 1, 1, 1))
        x = op.reshape(op.transpose(x, perm=[0, 2, 1, 3]), self.shape(0, 0, channels * BINS // SUBSAMPLING))
        return self.linear(x, "subsample.out"), self.last(joined, 1, 1), self.last(rows, 1, 2)

    def _convolution(self, x: Any, name: str, size: int, stride: int, groups: int) -> Any:
        # Of frequencies the row below the lowest is silent; of time the frame before is a state.
        return self.op.conv(
            x,
            self.weight(f"{name}.weight"),
            self.weight(f"{name}.bias"),
            kernel_shape=[size, size],
            pads=[0, size // 2, 0, 0],
            strides=[stride, stride],
            group=groups,
        )

    def _parts(self, x: Any, count: int) -> list[Any]:
        """[rows, count, ...] to `count` times [rows, ...]."""
        parts = self.op.split(x, num_outputs=count, axis=1) if count > 1 else [x]
        return [self.op.squeeze(part, self.shape(1)) for part in parts]

    def _block(self, x: Any, prefix: str, keys: Any, values: Any, near: Any) -> Any:
        op = self.op
        x = op.add(x, self._feed_forward(x, f"{prefix}.feed_in"))
        x = op.add(x, self._attention(x, f"{prefix}.attend", keys, values))
        x = op.add(x, self._convolved(x, f"{prefix}.convolve", near))
        x = op.add(x, self._feed_forward(x, f"{prefix}.feed_out"))
        return self.norm(x, f"{prefix}.norm")

    def _feed_forward(self, x: Any, prefix: str) -> Any:
        """Half of it is added, which the weights say."""
        inner = self.silu(self.linear(self.norm(x, f"{prefix}.norm"), f"{prefix}.widen"))
        return self.linear(inner, f"{prefix}.narrow", scale=0.5)

    def _attention(self, x: Any, prefix: str, keys: Any, values: Any) -> Any:
        op, heads, size = self.op, self.config.heads, self.config.head_size
        fused = self.linear(self.norm(x, f"{prefix}.norm"), f"{prefix}.qkv")
        parts = op.split(op.reshape(fused, self.shape(0, 0, 3 * heads, size)), num_outputs=3, axis=2)
        query, key, value = (op.transpose(part, perm=[0, 2, 1, 3]) for part in parts)
        key, value = op.concat([keys, key], axis=2), op.concat([values, value], axis=2)
        self.kept += [op.unsqueeze(self.last(one, self.config.left, 2), self.shape(1)) for one in (key, value)]
        query = op.mul(self._turned(query, self._own_turns), self.constant(np.float32(1 / sqrt(size))))
        scores = op.matmul(query, op.transpose(self._turned(key, self._all_turns), perm=[0, 1, 3, 2]))
        mixed = op.matmul(op.softmax(op.add(scores, self._missing), axis=-1), value)
        mixed = op.reshape(op.transpose(mixed, perm=[0, 2, 1, 3]), self.shape(0, 0, self.config.width))
        return self.linear(mixed, f"{prefix}.out")

    def _turned(self, x: Any, turns: list[Any]) -> Any:
        op = self.op
        first, second = op.split(x, num_outputs=2, axis=3)
        cosine, sine = turns
        return op.concat(
            [op.sub(op.mul(first, cosine), op.mul(second, sine)), op.add(op.mul(first, sine), op.mul(second, cosine))],
            axis=3,
        )

    def _convolved(self, x: Any, prefix: str, near: Any) -> Any:
        op, wide, kernel = self.op, self.config.width, self.config.kernel
        gated = self.linear(self.norm(x, f"{prefix}.norm"), f"{prefix}.gate")
        value, gate = op.split(gated, num_outputs=2, axis=2)
        x = op.transpose(op.mul(value, op.sigmoid(gate)), perm=[0, 2, 1])
        x = op.concat([near, x], axis=2)
        self.near.append(op.unsqueeze(self.last(x, kernel - 1, 2), self.shape(1)))
        weight, bias = self.weight(f"{prefix}.depth.weight"), self.weight(f"{prefix}.depth.bias")
        x = op.transpose(op.conv(x, weight, bias, kernel_shape=[kernel], group=wide), perm=[0, 2, 1])
        return self.linear(self.silu(self.norm(x, f"{prefix}.middle")), f"{prefix}.out")

    def _says(self, x: Any, which: int) -> Any:
        return self.linear(self.norm(x, f"says.{which}"), "output")


def first_states(config: CtcConfig, rows: int = 1) -> dict[str, NDArray[Any]]:
    """Before anything was heard."""
    return {
        name: np.zeros(shape, np.float32)  # type: ignore[arg-type]
        for name, shape in state_shapes(config, rows).items()
    }
