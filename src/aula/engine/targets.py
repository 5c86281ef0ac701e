"""The kinds of machine that engines are built for."""

from collections.abc import Mapping
from dataclasses import dataclass

from aula.core.errors import EngineError

MIXED = "int8+bf16"
"""The int8 graph, with BF16 arithmetic for what is not int8 in it."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8", MIXED)
"""Every precision that some target has, the most exact first."""
_ON_GPUS = ("fp32", "fp16", "bf16", "int8")


def share_in(layers: Mapping[str, int], precision: str) -> float:
    """Of the layers, those that run in a precision; of int8+bf16, in either."""
    return sum(layers.get(one, 0) for one in precision.split("+")) / sum(layers.values())


@dataclass(frozen=True, slots=True)
class Target:
    """`capability` is a GPU's compute capability, None for a CPU; `products` name cards that have it; `selectors` are
    the values that Kubernetes nodes with such a card bear as their label `nvidia.com/gpu.product`, as NVIDIA's GPU
    feature discovery writes them: the product's name with hyphens for spaces."""

    name: str
    capability: str | None
    products: tuple[str, ...]
    precisions: tuple[str, ...]
    selectors: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        return self.capability is not None


# Turing multiplies fp16 and int8 on its tensor cores; bf16 came with Ampere (CUDA C programming guide, compute
# capabilities). fp16 is no precision of a CPU here: none that we know computes in it faster than in bf16.
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", None, (), ("fp32", "bf16", "int8", MIXED)),
        Target("sm75", "7.5", ("T4",), ("fp32", "fp16", "int8"), ("Tesla-T4",)),
        Target("sm86", "8.6", ("A10",), _ON_GPUS, ("NVIDIA-A10", "NVIDIA-A10G")),
        Target("sm89", "8.9", ("L4",), _ON_GPUS, ("NVIDIA-L4",)),
        Target("sm90", "9.0", ("H100", "H200"), _ON_GPUS, ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H200")),
    )
}


def read_targets(text: str) -> tuple[str, ...]:
    """Names of targets between commas, each once, in the table's order. Raises EngineError for others, and for none."""
    names = {name.strip() for name in text.split(",")} - {""}
    unknown = sorted(names - TARGETS.keys())
    if unknown or not names:
        raise EngineError(
            f"there is no target {', '.join(unknown)}" if unknown else f"{text!r} names no target",
            available=tuple(TARGETS),
            next_step="name some of these, with commas: sm75,sm89,cpu",
        )
    return tuple(name for name in TARGETS if name in names)
