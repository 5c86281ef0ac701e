"""What a model hands to the engine builder: a graph to write, sizes to serve, and a way to prove the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session, StatePair
from aula.core.errors import EngineError
from aula.core.types import Licence

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Size:
    """One free dimension of a profile: its least, usual and greatest size."""

    least: int
    usual: int
    greatest: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.greatest:
            raise EngineError(
                f"a profile's sizes must rise from 1: least {self.least}, usual {self.usual}, "
                f"greatest {self.greatest} do not",
                next_step="order them least <= usual <= greatest",
            )


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes for every free dimension, by the dimension's name in the graph."""

    name: str
    sizes: Mapping[str, Size]

    @property
    def usual(self) -> dict[str, int]:
        return {name: size.usual for name, size in self.sizes.items()}

    @property
    def corners(self) -> list[dict[str, int]]:
        """The sizes at which an engine is checked: all least, all usual, all greatest."""
        return [
            {name: size.least for name, size in self.sizes.items()},
            self.usual,
            {name: size.greatest for name, size in self.sizes.items()},
        ]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Real inputs on which INT8 ranges are found. `source` is for people, `digest` (SHA-256) for the manifest;
    `random` owns up to made-up data, which no builder takes."""

    inputs: Sequence[Arrays]
    source: str
    digest: str
    random: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What the model is for, measured: `evaluate` gives 0..1, higher is better, on `examples` labelled examples
    whose SHA-256 is `digest`."""

    metric: str
    examples: int
    digest: str
    evaluate: Callable[[Session], float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model becomes an engine.

    `write_graph` returns the ONNX graph with the weights inside; `example(sizes, generator)` gives inputs of those
    sizes; `reference(inputs)` computes the outputs by a second, plain implementation in float64, against
    which every engine is checked: the largest difference divided by the largest reference value must not
    exceed `tolerance` in fp32. Lower precisions need `calibration` and are judged by `task`. `sources` are the files
    whose digests identify what went in; raising `revision` says that the recipe itself changed.
    """

    name: str
    revision: int
    sources: tuple[Path, ...]
    write_graph: Callable[[], "onnx.ModelProto"]
    example: Callable[[Mapping[str, int], np.random.Generator], Arrays]
    reference: Callable[[Arrays], Arrays]
    profiles: tuple[Profile, ...]
    tolerance: float = 1e-4
    states: tuple[StatePair, ...] = ()
    transformer: bool = True
    calibration: Callable[[], Calibration] | None = None
    task: Callable[[], Task] | None = None
    licences: tuple[Licence, ...] = field(default=())
