"""Whisper's step as a program of our own kernels (`backends/kernels/decoder.cu`), in place of a TensorRT plan.

It computes what `write_stepper` writes with `stacked` and `low_caches`, on the same tensors. TensorRT 8.6 makes about
180 kernels of a step of whisper-small and starts each when the one before has ended; here there are 8 a layer for one
row, 11 for many, each of which reads its weights while the one before it still runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.kernel_program import Argument, At, Launch, Program
from aula.backends.kernels import DECODER, source
from aula.core.errors import EngineError
from aula.core.types import Float32, TensorSpec
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_stepper import NEXT
from aula.models.whisper_tokens import suppression

FEW_LINES = 4
"""So many lines are read by walking through the matrices; more are worth tensor cores."""
WARP = 32
SIZE = 64
FIRST, TEXT = 2, 1
"""Rows of `suppression`: the start of a text, and within one."""


@dataclass(frozen=True, slots=True)
class Step:
    """Sizes of a program; `count` tokens of each row are read at once. `apart`: each row's caches lie in one piece,
    all layers behind one another; else each layer's do, all rows."""

    rows: int
    count: int
    slots: int
    positions: int
    apart: bool = False

    @property
    def lines(self) -> int:
        return self.rows * self.count


def kernels_serve(config: WhisperConfig) -> bool:
    hidden, heads = config.d_model, config.decoder_attention_heads
    return hidden == heads * SIZE and hidden % 128 == 0 and config.decoder_ffn_dim == 4 * hidden


def write_program(
    config: WhisperConfig, weights: Mapping[str, Float32], step: Step, capability: str = "9.0"
) -> Program:
    """Raises EngineError for an architecture that the kernels are not made for."""
    writer = Few if step.lines <= FEW_LINES else _Many
    return writer(config, weights, step, gpu_of(config, capability)).write()


def gpu_of(config: WhisperConfig, capability: str) -> "_Gpu":
    """Raises EngineError for an architecture or a GPU that the kernels are not made for."""
    hidden, heads = config.d_model, config.decoder_attention_heads
    if not kernels_serve(config):
        raise EngineError(
            f"the kernels serve heads of {SIZE}, a width that 128 divides and a feed-forward of four times that, not "
            f"{heads} heads in {hidden} and {config.decoder_ffn_dim}",
            next_step="build this one with TensorRT alone",
        )
    if capability not in GPUS:
        raise EngineError(
            f"the kernels are made for compute capabilities {', '.join(GPUS)}, not {capability}",
            next_step="build with TensorRT alone",
        )
    return GPUS[capability]


class _Writer:
    early = True

    def __init__(self, config: WhisperConfig, weights: Mapping[str, Float32], step: Step, gpu: "_Gpu") -> None:
        self.config, self.raw, self.step, self.gpu = config, weights, step, gpu
        self.hidden, self.heads = config.d_model, config.decoder_attention_heads
        self.kernels: dict[str, str] = {}
        self.launches: list[Launch] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.scratch: dict[str, int] = {}
        self.products = 0
        lines = step.lines
        self.scratch_of("x", 4 * lines * self.hidden)
        for name, wide in (("query", self.hidden), ("mixed", self.hidden), ("inner", 4 * self.hidden)):
            self.scratch_of(name, 2 * lines * wide)

    def scratch_of(self, name: str, count: int) -> At:
        self.scratch[name] = max(count, self.scratch.get(name, 0))
        return At(name)

    def launch(
        self, kernel: str, instance: str, grid: tuple[int, ...], warps: int, *taken: Argument, shared: int = 0
    ) -> None:
        """`instance` is the macro that makes the kernel; the same one may be launched many times."""
        if self.kernels.setdefault(kernel, instance) != instance:
            raise AssertionError(f"{kernel} stands for two kernels")
        x, y, z = (*grid, 1, 1)[:3]
        self.launches.append(Launch(kernel, (x, y, z), WARP * warps, taken, shared))

    # Weights.

    def matrix(self, name: str, parts: list[str], norm: str = "", scale: float = 1.0) -> tuple[At, At]:
        """Matrices, one below the other, fp16 [out, in], and their shifts, float [out]; the first is scaled. The norm
        before them is multiplied in."""
        blocks, shifts = [], []
        for place, part in enumerate(parts):
            factor = np.float32(scale if place == 0 else 1.0)
            block = self.raw[f"{part}.weight"] * factor
            shift = (
                self.raw[f"{part}.bias"] * factor if f"{part}.bias" in self.raw else np.zeros(len(block), np.float32)
            )
            if norm:
                shift = shift + block @ self.raw[f"{norm}.bias"]
                block = block * self.raw[f"{norm}.weight"]
            blocks.append(block)
            shifts.append(shift)
        self.weights[name] = np.concatenate(blocks).astype(np.float16)
        self.weights[f"{name}.shift"] = np.concatenate(shifts).astype(np.float32)
        return At(name), At(f"{name}.shift")

    rules: tuple[int, ...] = (FIRST, TEXT)
    """Rows of `suppression` that the program knows."""

    def vocabulary(self) -> tuple[At, At]:
        """The last norm multiplied into the vocabulary, and what is added to logits: float [rules, tokens]."""
        table = self.raw["decoder.embed_tokens.weight"]
        self.weights["vocabulary"] = (table * self.raw["decoder.layer_norm.weight"]).astype(np.float16)
        shift = table @ self.raw["decoder.layer_norm.bias"]
        self.weights["rules"] = (suppression(self.config)[list(self.rules)] + shift).astype(np.float32)
        return At("vocabulary"), At("rules")

    # Parts that few and many share.

    def embed(self) -> None:
        self.weights["tokens"] = self.raw["decoder.embed_tokens.weight"].astype(np.float16)
        self.weights["places"] = self.raw["decoder.embed_positions.weight"].astype(np.float16)
        step = self.step
        instance = f"EMBED(embed, {step.count}, {step.slots}, {self.hidden})"
        taken = (At("text"), At("position"), At("tokens"), At("places"), At("x"))
        self.launch("embed", instance, (step.lines,), 4, *taken)

    @property
    def between(self) -> int:
        """Caches of a layer from one row to the next."""
        return self.config.decoder_layers if self.step.apart else 1

    @property
    def within(self) -> int:
        """Caches of a row from one layer to the next."""
        return 1 if self.step.apart else self.step.rows

    def cache(self, layer: int) -> At:
        return At("self_kv", 2 * layer * self.within * 2 * self.hidden * self.step.slots)

    def attend_self(self, layer: int) -> None:
        slots, base = self.step.slots, self.cache(layer).offset
        values = At("self_kv", base + 2 * self.hidden * slots)
        self._attend("attend_self", slots, 4 if slots <= 64 else 8, "true", At("self_kv", base), values, "position", 2)

    def attend_cross(self, layer: int) -> None:
        positions = self.step.positions
        base = 2 * layer * self.within * self.hidden * positions
        warps = 4 if positions <= 128 else 8 if positions <= 512 else 16
        self._attend("attend_cross", positions, warps, "false", At("cross_k", base), At("cross_v", base), "heard", 1)

    def _attend(
        self, kernel: str, keys: int, warps: int, causal: str, key: At, value: At, lengths: str, pieces: int
    ) -> None:
        step = self.step
        instance = f"ATTEND({kernel}, {step.count}, {self.heads}, {SIZE}, {keys}, {warps}, {causal})"
        stride = self.between * pieces * self.hidden * keys
        taken = (At("query"), key, value, At(lengths), stride, At("mixed"))
        self.launch(kernel, instance, (self.heads, step.rows), warps, *taken)

    def choose(self, parts: int) -> None:
        step = self.step
        warps = 32 if parts > 512 else 8
        instance = f"CHOICE(choose, {step.count}, {step.slots}, {parts}, {warps})"
        taken = (At("best"), At("prompt"), At("text"), At("position"), At("likely"))
        self.launch("choose", instance, (step.rows,), warps, *taken)

    def tail(self) -> str:
        """What every product's macro ends in."""
        return f"{self.heads}, {SIZE}, {self.step.slots}, {self.step.count}, {self.between}"

    def names(self, layer: int) -> tuple[str, str, str]:
        prefix = f"decoder.layers.{layer}"
        return prefix, f"{prefix}.self_attn", f"{prefix}.encoder_attn"

    def write(self) -> Program:
        self.embed()
        self.body()
        text = source(DECODER) + "\n".join(self.kernels.values()) + "\n"
        inputs, outputs = self.tensors()
        return Program(
            source=text,
            inputs=inputs,
            outputs=outputs,
            scratch=self.scratch,
            launches=tuple(self.launches),
            products={"fp16": self.products},
            early=self.early,
            weights=self.weights,
        )

    def body(self) -> None:
        raise NotImplementedError

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What the program takes, states first, and what it gives."""
        return _tensors(self.config, self.step)


class Few(_Writer):
    """A warp walks through some rows of a matrix, for all lines."""

    def body(self) -> None:
        hidden = self.hidden
        for layer in range(self.config.decoder_layers):
            prefix, own, cross = self.names(layer)
            scale = 1 / sqrt(SIZE)
            self.walk(
                "qkv",
                self.matrix(
                    f"{layer}.qkv", [f"{own}.{part}_proj" for part in "qkv"], f"{prefix}.self_attn_layer_norm", scale
                ),
                (3 * hidden, hidden, 4),
                "TO_CACHE",
                "x",
                "query",
                self.cache(layer),
            )
            self.attend_self(layer)
            self.walk("add", self.matrix(f"{layer}.own", [f"{own}.out_proj"]), (hidden, hidden, 1), "ADD", "mixed", "x")
            asked = self.matrix(f"{layer}.asked", [f"{cross}.q_proj"], f"{prefix}.encoder_attn_layer_norm", scale)
            self.walk("ask", asked, (hidden, hidden, 2), "KEEP", "x", "query")
            self.attend_cross(layer)
            self.walk(
                "add", self.matrix(f"{layer}.heard", [f"{cross}.out_proj"]), (hidden, hidden, 1), "ADD", "mixed", "x"
            )
            inner = self.matrix(f"{layer}.inner", [f"{prefix}.fc1"], f"{prefix}.final_layer_norm")
            self.walk("widen", inner, (4 * hidden, hidden, 4), "GELU", "x", "inner")
            outer = self.matrix(f"{layer}.outer", [f"{prefix}.fc2"])
            self.walk("narrow", outer, (hidden, 4 * hidden, 4), "ADD", "inner", "x", split=4)
        self.head()

    def walk(
        self,
        kernel: str,
        matrix: tuple[At, At],
        sizes: tuple[int, int, int],
        then: str,
        given: str,
        made: str,
        cache: Argument = None,
        *,
        split: int = 1,
    ) -> None:
        out, taken, columns = sizes
        norm = "true" if given == "x" else "false"
        numbers = f"{self.step.lines}, {out}, {taken}, {columns}, {split}, 4, {norm}, {then}"
        blocks = -(-out // (4 // split * columns))
        places: tuple[Argument, ...] = (cache, At("position") if cache else None, *[None] * 5)
        self.launch(
            kernel, f"WALK({kernel}, {numbers}, {self.tail()})", (blocks,), 4, *matrix, At(given), At(made), *places
        )
        self.products += 1

    @property
    def head_columns(self) -> int:
        return 8 if self.hidden <= 768 else 4

    def head(self) -> None:
        columns = self.head_columns
        tokens, step = self.config.vocab_size, self.step
        parts = -(-tokens // (4 * columns))
        matrix, rules = self.vocabulary()
        best = self.scratch_of("best", 12 * step.rows * parts)
        numbers = f"{step.rows}, {tokens}, {self.hidden}, {columns}, 1, 4, true, CHOOSE"
        instance = f"WALK(head, {numbers}, {self.tail()})"
        taken = (matrix, None, At("x"), None, None, At("position"), At("prompt"), rules, best, None, None)
        self.launch("head", instance, (parts,), 4, *taken)
        self.products += 1
        self.choose(parts)


class _Many(_Writer):
    """Products on tensor cores; what is added to the residual comes in pieces that the next norm sums.

    No kernel begins early: blocks that wait would hold the processors that the kernel before them still needs (measured
    on an H100: 320 rows took 2.97 ms a step with it, 2.59 ms without).
    """

    early = False

    def body(self) -> None:
        hidden = self.hidden
        self.scratch_of("normal", 2 * self.step.lines * hidden)
        self.scratch_of("pieces", 0)
        left: tuple[int, At | None] = (0, None)
        for layer in range(self.config.decoder_layers):
            prefix, own, cross = self.names(layer)
            scale = 1 / sqrt(SIZE)
            self.norm(left)
            self.tile(
                "qkv",
                self.matrix(
                    f"{layer}.qkv", [f"{own}.{part}_proj" for part in "qkv"], f"{prefix}.self_attn_layer_norm", scale
                ),
                (3 * hidden, hidden),
                "TO_CACHE",
                "normal",
                "query",
                self.cache(layer),
            )
            self.attend_self(layer)
            self.norm(self.tile_pieces("add", self.matrix(f"{layer}.own", [f"{own}.out_proj"]), hidden, "mixed"))
            asked = self.matrix(f"{layer}.asked", [f"{cross}.q_proj"], f"{prefix}.encoder_attn_layer_norm", scale)
            self.tile("ask", asked, (hidden, hidden), "KEEP", "normal", "query")
            self.attend_cross(layer)
            self.norm(self.tile_pieces("add", self.matrix(f"{layer}.heard", [f"{cross}.out_proj"]), hidden, "mixed"))
            inner = self.matrix(f"{layer}.inner", [f"{prefix}.fc1"], f"{prefix}.final_layer_norm")
            self.tile("widen", inner, (4 * hidden, hidden), "GELU", "normal", "inner")
            outer = self.matrix(f"{layer}.outer", [f"{prefix}.fc2"])
            left = self.tile_pieces("narrow", outer, 4 * hidden, "inner")
        self.norm(left)
        self.head()

    def norm(self, left: tuple[int, At | None]) -> None:
        pieces, shift = left
        lines = self.step.lines
        kernel = f"norm_{pieces}"
        instance = f"NORM({kernel}, {lines}, {self.hidden}, {pieces}, 4)"
        self.launch(kernel, instance, (-(-lines // 4),), 4, At("pieces"), shift, At("x"), At("normal"))

    def tile_pieces(self, kernel: str, matrix: tuple[At, At], taken: int, given: str) -> tuple[int, At]:
        pieces = self.tile(kernel, matrix, (self.hidden, taken), "ADD", given, "pieces")
        self.scratch_of("pieces", 4 * pieces * self.step.lines * self.hidden)
        return pieces, matrix[1]

    def tile(
        self,
        kernel: str,
        matrix: tuple[At, At],
        sizes: tuple[int, int],
        then: str,
        given: str,
        made: str,
        cache: Argument = None,
    ) -> int:
        """How many pieces the sums come in."""
        out, taken = sizes
        shape = _Shape.of(self.gpu, self.step.lines, out, taken, splits=then == "ADD")
        instance = f"TILE({kernel}, {self.step.lines}, {out}, {taken}, {shape.text}, {then}, {self.tail()})"
        places: tuple[Argument, ...] = (cache, At("position") if cache else None, None, None, None)
        shift = None if then == "ADD" else matrix[1]
        self.launch(
            kernel,
            instance,
            shape.grid,
            shape.warps,
            matrix[0],
            shift,
            At(given),
            At(made),
            *places,
            shared=shape.shared,
        )
        self.products += 1
        return shape.pieces

    def head(self) -> None:
        tokens, step = self.config.vocab_size, self.step
        shape = _Shape.of(self.gpu, step.rows, tokens, self.hidden, splits=False, whole=True)
        matrix, rules = self.vocabulary()
        best = self.scratch_of("best", 12 * step.rows * shape.grid[1])
        instance = f"TILE(head, {step.rows}, {tokens}, {self.hidden}, {shape.text}, CHOOSE, {self.tail()})"
        taken = (matrix, None, At("normal"), None, None, At("position"), At("prompt"), rules, best)
        self.launch("head", instance, shape.grid, shape.warps, *taken, shared=shape.shared)
        self.products += 1
        self.choose(shape.grid[1])


@dataclass(frozen=True, slots=True)
class _Shape:
    """A block's tile, `tall` lines by `wide` outputs in `down` by `across` warps, `stages` steps in flight, and the
    blocks that there are; the sums come in `pieces`.

    Chosen among what was measured on an H100 for the matrices of whisper-small at 64, 256 and 320 lines.
    """

    tall: int
    wide: int
    down: int
    across: int
    stages: int
    pieces: int
    grid: tuple[int, int, int]

    @classmethod
    def of(cls, gpu: "_Gpu", lines: int, out: int, taken: int, *, splits: bool, whole: bool = False) -> "_Shape":
        """`whole`: the vocabulary, so wide that a block takes all lines that it can."""
        # 1. Few lines: small tiles, since there are too few of any other.
        tall = 16 if lines <= 16 else 32 if lines <= 64 and not whole else 64
        down, widths = {16: (1, (64, 32)), 32: (2, (32,)), 64: (2, (96, 64, 32))}[tall]
        above = -(-lines // tall)
        fitting = [wide for wide in widths if gpu.holds(tall, wide, 3)]
        # 2. The width that leaves the last round of blocks least idle; where sums are split, pieces fill the rounds.
        wide = fitting[0]
        if not splits and not whole:
            costs = {wide: _rounds(above * -(-out // wide), gpu) * wide for wide in fitting}
            wide = next(wide for wide in fitting if costs[wide] <= 1.1 * min(costs.values()))
        beside = -(-out // wide)
        pieces = _pieces(above * beside, taken, gpu.processors, small=lines <= 64) if splits else 1
        across = {96: 4, 64: 4, 32: 2}[wide]
        stages = 4 if gpu.holds(tall, wide, 4) and not whole else 3
        return cls(tall, wide, down, across, stages, pieces, (above, beside, pieces))

    @property
    def warps(self) -> int:
        return self.down * self.across

    @property
    def shared(self) -> int:
        return _shared(self.tall, self.wide, self.stages)

    @property
    def text(self) -> str:
        return f"{self.tall}, {self.wide}, {self.down}, {self.across}, {self.stages}, {self.pieces}"


@dataclass(frozen=True, slots=True)
class _Gpu:
    """`processors` of a target's card, and bytes of shared memory that a block may have (CUDA C programming guide,
    compute capabilities)."""

    processors: int
    most_shared: int

    def holds(self, tall: int, wide: int, stages: int) -> bool:
        return _shared(tall, wide, stages) <= self.most_shared


GPUS = {"7.5": _Gpu(40, 64 << 10), "8.6": _Gpu(72, 99 << 10), "8.9": _Gpu(58, 99 << 10), "9.0": _Gpu(132, 227 << 10)}


def _shared(tall: int, wide: int, stages: int) -> int:
    """Bytes: stages of 64 halves and 8 more, so that no two rows meet in a bank."""
    return stages * (tall + wide) * 72 * 2


def _rounds(blocks: int, gpu: _Gpu) -> int:
    return -(-blocks // gpu.processors)


def _pieces(blocks: int, taken: int, processors: int, *, small: bool) -> int:
    """The fewest that give every processor work; of small tiles as many as leave each three steps, for two or so a
    processor."""
    steps = taken // 64
    fitting = [count for count in (1, 2, 3, 4, 6) if steps % count == 0]
    if small:
        most = min(steps // 3, int(2.5 * processors) // blocks)
        return max(count for count in fitting if count <= max(1, most))
    return next((count for count in fitting if blocks * count >= 0.7 * processors), fitting[-1])


def _tensors(config: WhisperConfig, step: Step) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """As `write_stepper` has them, stacked and with low caches."""
    rows, slots, heads, layers = step.rows, step.slots, config.decoder_attention_heads, config.decoder_layers
    states = (
        TensorSpec("text", "int32", (rows, slots)),
        TensorSpec("position", "int32", (rows,)),
        TensorSpec("likely", "float32", (rows, slots)),
        TensorSpec("self_kv", "float16", (layers, rows, 2 * heads, slots, SIZE)),
    )
    cross = (layers, rows, heads, step.positions, SIZE)
    given = (
        TensorSpec("prompt", "int32", (rows,)),
        TensorSpec("heard", "int32", (rows,)),
        TensorSpec("cross_k", "float16", cross),
        TensorSpec("cross_v", "float16", cross),
    )
    made = tuple(TensorSpec(spec.name + NEXT, spec.dtype, spec.shape) for spec in states)
    return (*states, *given), made
