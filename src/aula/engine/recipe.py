"""What a model hands to the engine builder: a graph to write, sizes to serve, and a way to prove the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session, StatePair
from aula.core.errors import EngineError
from aula.core.types import Licence

if TYPE_CHECKING:
    import onnx

    from aula.backends.kernel_program import Program
    from aula.engine.bundle import Bundle

Arrays = dict[str, NDArray[Any]]
WHOLE = "model"
"""The part's name where a model is one graph."""


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
    """What the model is for, measured: `evaluate` gives at most 1, higher is better, on `examples` labelled examples
    whose SHA-256 is `digest`. `inputs` are some of them without their labels, on which layers are ranked by what their
    rounding costs; where there are none, calibration data serves, which shows less of what is rare in it. `chance` is
    what always giving the most frequent answer would score: a model that is no better cannot be judged by this."""

    metric: str
    examples: int
    digest: str
    evaluate: Callable[[Session], float]
    inputs: Sequence[Arrays] = ()
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model becomes an engine.

    `write_graph` returns the ONNX graph with the weights inside; `example(sizes, generator)` gives inputs of those
    sizes; `reference(inputs)` computes the outputs by a second, plain implementation in float64, against
    which every engine is checked: the largest difference divided by the largest reference value must not
    exceed `tolerance` in fp32. Lower precisions need `calibration` and are judged by `task`. `sources` are the files
    whose digests identify what went in; raising `revision` says that the recipe itself changed. `written` gives graphs
    of a lower precision that the recipe writes itself, by precision, in place of the builder's own;
    `dynamic_quantisation` is how many activations share a scale where only weights are int8 (see SessionOptions).
    `unproven` names the outputs that the reference leaves out; `limits` is the greatest size that a dimension can have.
    `shared`: one session, with free sizes, serves all profiles on a CPU, so that it is raced like that.
    `seeded` owns up to made-up weights: such an engine is measured, never packaged for use, so no task judges it.

    For GPUs: `half_tolerance` is what fp16 may differ from the reference, relative to its largest value; `low_borders`
    names inputs and outputs that are of the low precision themselves (states, what one graph hands to the next);
    `gpu_profiles` are served there instead of `profiles`; `least_scales` are what differences of an output are relative
    to at least, and `scales(inputs)` the same where it depends on the inputs (a logarithm of a probability is a
    difference of logits, and as exact as they are); `handed_over` names inputs and outputs that never leave the device,
    since another engine makes or takes them there, so that their copies are no part of the time; `rows` is the
    dimension whose items do not depend on one another, so that a few of many prove all; `spelling` tells graphs apart
    that one recipe writes in several ways; `by_profile` gives the recipe of a profile that another graph with the same
    inputs and outputs computes (a prompt beside a step); `program(profile, capability)` writes fp16 as a program of our
    own kernels for a compute capability, in place of a TensorRT plan.
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
    written: Mapping[str, Callable[[], "onnx.ModelProto"]] = field(default_factory=dict)
    dynamic_quantisation: int | None = None
    unproven: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    shared: bool = False
    seeded: bool = False
    licences: tuple[Licence, ...] = field(default=())
    half_tolerance: float = 2e-2
    low_borders: tuple[str, ...] = ()
    least_scales: Mapping[str, float] = field(default_factory=dict)
    scales: Callable[[Arrays], Mapping[str, float]] | None = None
    handed_over: tuple[str, ...] = ()
    rows: str = ""
    spelling: str = ""
    gpu_profiles: tuple[Profile, ...] = ()
    by_profile: Mapping[str, "Recipe"] = field(default_factory=dict)
    program: Callable[[Profile, str], "Program"] | None = None

    def __post_init__(self) -> None:
        if not self.profiles:
            raise EngineError(f"the recipe {self.name} has no profile", next_step="give it at least one")
        for profile in self.profiles:
            for dimension, size in profile.sizes.items():
                most = self.limits.get(dimension, size.greatest)
                if size.greatest > most:
                    raise EngineError(
                        f"profile {profile.name} wants {dimension} up to {size.greatest}, {self.name} goes to {most}",
                        next_step=f"give sizes up to {most}",
                    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint came from: its name on the hub, and the commit that was pinned."""

    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class ContextProof:
    """How much sound a model must be given to hear a short one: sounds are classed by the least context, in seconds,
    that holds them and `margin` seconds of silence. `measured` is the metric of each class's labelled examples in every
    context that was tried, "whole" among them; `safe` is the smallest that lost at most `most_drop` against that. A
    class that is not in it needs the whole window. `digest` is the SHA-256 of the examples."""

    metric: str
    examples: int
    digest: str
    most_drop: float
    margin: float
    measured: Mapping[str, Mapping[str, float]]
    safe: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Model:
    """What one bundle holds: graphs by the name of their part ("model" where there is only one), each as a recipe.
    `gpu_parts` are the recipes of those parts that are served otherwise on a GPU: other sizes, states on the device.
    `prove_contexts`, of a model that hears and was given labelled examples, proves shorter contexts with a bundle's own
    engines and a margin in seconds."""

    name: str
    parts: Mapping[str, Recipe]
    origin: Origin | None = None
    gpu_parts: Mapping[str, Recipe] = field(default_factory=dict)
    prove_contexts: Callable[["Bundle", float], ContextProof] | None = None

    @classmethod
    def of(cls, recipe: Recipe, origin: Origin | None = None) -> "Model":
        """A model of one graph, with the recipe's name."""
        return cls(recipe.name, {WHOLE: recipe}, origin)

    def parts_for(self, gpu: bool) -> dict[str, Recipe]:
        """The recipe of every part, for a GPU or for a CPU."""
        return {name: self._for_gpu(name, recipe) if gpu else recipe for name, recipe in self.parts.items()}

    def _for_gpu(self, name: str, recipe: Recipe) -> Recipe:
        chosen = self.gpu_parts.get(name, recipe)
        return replace(chosen, profiles=chosen.gpu_profiles) if chosen.gpu_profiles else chosen

    def recipe(self, part: str, *, gpu: bool = False) -> Recipe:
        """Raises EngineError for a part that the model does not have."""
        if part not in self.parts:
            raise EngineError(
                f"the model {self.name} has no part {part!r}", available=list(self.parts), next_step="name one of these"
            )
        return self.parts_for(gpu)[part]
