"""An ONNX graph becomes a TensorRT plan, by one path for TensorRT 8.6 to 11.

Only here do releases differ (NVIDIA's migration guides; DESIGN: precision lives in the graph):

| what                    | 8.6                         | 10                             | 11             |
|-------------------------|-----------------------------|--------------------------------|----------------|
| network                 | EXPLICIT_BATCH              | STRONGLY_TYPED from 10.12 on   | flags 0, typed |
| precision               | FP16 and INT8 flags         | flags; from 10.12 on types     | types          |
| cuBLAS, cuDNN tactics   | switched off, so that plans | off by default                 | gone           |
|                         | need neither library        |                                |                |
| plans without weights   | no                          | STRIP_PLAN, REFIT_IDENTICAL    | the same       |
| same-capability plans   | AMPERE_PLUS only            | SAME_COMPUTE_CAPABILITY, 10.9+ | the same       |

In 8.6 a graph with FP16 types does not hold TensorRT to them; what holds it is the proof that follows the build.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aula.backends.tensorrt_runtime import Runtime, is_short_of_memory
from aula.core.errors import BackendError, DeviceMemoryError, EngineError

Extents = tuple[int, int, int]
"""Least, usual and greatest size of a free dimension."""
Compatibility = Literal["exact", "ampere-plus", "same-capability"]
COMPATIBILITIES: tuple[Compatibility, ...] = ("exact", "ampere-plus", "same-capability")
LEVELS = range(6)
READY_LEVEL, TABLE_LEVEL = 1, 2
"""Up to the first TensorRT 8.6 takes the plainest convolutions that it brings, up to the second those with tables for
the edges as well; beyond, it compiles some for the sizes at hand, which takes minutes."""
USUAL_LEVEL = 3
"""TensorRT's own default. Level 5 took six times as long for BERT-base on an H100 (260 s, not 41) and came out slower
(0.49 ms, not 0.44): searching more is not finding more."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """`level` is TensorRT's builder optimisation level, 0 to 5. `compatibility`: "exact" for this GPU alone,
    "ampere-plus" for every GPU from Ampere on (slower), "same-capability" for all cards of one compute capability.
    `version_compatible` plans run on later releases (8 to 10, 10 to 11). `stripped` plans come without weights, which
    are refitted from the ONNX file when they are opened (TensorRT 10 on)."""

    level: int = USUAL_LEVEL
    compatibility: Compatibility = "exact"
    version_compatible: bool = False
    stripped: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise EngineError(
                f"there is no builder optimisation level {self.level}",
                available=[str(level) for level in LEVELS],
                next_step="choose one of these; 3 is TensorRT's own",
            )
        if self.compatibility not in COMPATIBILITIES:
            raise EngineError(
                f"there is no compatibility {self.compatibility!r}",
                available=COMPATIBILITIES,
                next_step="choose one of these",
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine; `cache` is the timing cache as it is now."""

    content: bytes
    cache: bytes


_NO_KERNEL = r"Could not find any implementation|no implementation|No supported formats"
"""The last is what TensorRT 8 says of a layer between pairs for which it has no int8 layout."""


class UnbuildableError(BackendError):
    """TensorRT has no kernel for some nodes in the precision that the graph asks for. `said` is its whole complaint, in
    which the nodes' names stand; `cache` the timings that it had taken until then, which the next attempt need not
    take again."""

    said: str = ""
    cache: bytes = b""


class PlanBuilder:
    """Builds on this process's GPU. `runtime` carries the module and its messages."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._trt = runtime.trt
        self.version = release(runtime.version)

    @property
    def typed(self) -> bool:
        """Whether TensorRT keeps to the graph's types by itself."""
        return self.version >= (10, 12)

    def build(
        self,
        model: Path,
        precision: str,
        profiles: Sequence[Mapping[str, Sequence[Extents]]],
        options: PlanOptions,
        *,
        cache: bytes = b"",
    ) -> Plan:
        """The plan of the ONNX file `model` for these profiles: for every input with a free axis the extents of all its
        axes. `cache` is a timing cache of the same GPU, TensorRT and driver, b"" for none.

        Raises UnbuildableError where some node has no kernel, DeviceMemoryError where memory was short, EngineError for
        options that this TensorRT does not have, BackendError for everything else that it says.
        """
        trt = self._trt
        mark = self._runtime.messages.count()
        builder = self._builder(mark)
        network = builder.create_network(self._network_flags())
        # The parser finds weights that lie beside the file by its path.
        parser = trt.OnnxParser(network, self._runtime.messages)
        if not parser.parse(model.read_bytes(), str(model)):
            raise BackendError(
                f"TensorRT {self._runtime.version} cannot read the graph: {_parser_errors(parser)}",
                next_step="export the model with other operators, or build for the CPU: --target cpu",
            )
        config = builder.create_builder_config()
        self._set_flags(config, precision, options)
        config.builder_optimization_level = options.level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for extents in profiles:
            self._add_profile(builder, config, extents)
        timings = self._timings(config, cache)
        content = builder.build_serialized_network(network, config)
        held = timings.serialize()
        measured = b"" if held is None else bytes(held)
        if content is None:
            refusal = self._refusal(model, self._runtime.messages.said_since(mark))
            if isinstance(refusal, UnbuildableError):
                refusal.cache = measured
            raise refusal
        return Plan(bytes(content), measured)

    def _builder(self, mark: int) -> Any:
        try:
            return self._trt.Builder(self._runtime.messages)
        except TypeError as error:  # pybind11: "factory function returned nullptr"
            said = self._runtime.messages.said_since(mark)
            raise self._failure(f"TensorRT {self._runtime.version} cannot start to build", said) from error

    def _add_profile(self, builder: Any, config: Any, extents: Mapping[str, Sequence[Extents]]) -> None:
        """Raises BackendError: a profile that TensorRT does not take would be missing from the plan without a word."""
        try:
            place = config.add_optimization_profile(_profile(builder, extents))
        except ValueError:
            place = -1
        if place < 0:
            raise BackendError(
                f"TensorRT {self._runtime.version} does not take the profile "
                + ", ".join(f"{name} {[list(axis) for axis in axes]}" for name, axes in extents.items()),
                next_step="order its sizes least <= usual <= greatest, around what the graph fixes",
            )

    def _network_flags(self) -> int:
        """By name: the numbers of these flags changed from release to release."""
        flags = self._trt.NetworkDefinitionCreationFlag
        if self.version < (10, 0):
            return 1 << int(flags.EXPLICIT_BATCH)
        if self.typed and hasattr(flags, "STRONGLY_TYPED"):
            return 1 << int(flags.STRONGLY_TYPED)
        return 0

    def _set_flags(self, config: Any, precision: str, options: PlanOptions) -> None:
        trt = self._trt
        if not self.typed:
            for flag in {"fp16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8", "FP16")}.get(precision, ()):
                if not hasattr(trt.BuilderFlag, flag):
                    raise self._too_old(f"{precision} plans", "10.0")
                config.set_flag(getattr(trt.BuilderFlag, flag))
        if precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
            # TF32 has ten bits where fp32 has 23: a reference must be what it is called.
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.version < (10, 0):
            kinds = trt.TacticSource
            sources = 1 << int(kinds.EDGE_MASK_CONVOLUTIONS) if options.level > READY_LEVEL else 0
            sources |= 1 << int(kinds.JIT_CONVOLUTIONS) if options.level > TABLE_LEVEL else 0
            config.set_tactic_sources(sources)
        if options.compatibility != "exact":
            levels = trt.HardwareCompatibilityLevel
            name = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}[options.compatibility]
            if not hasattr(levels, name):
                raise self._too_old(f"{options.compatibility} plans", "10.9")
            config.hardware_compatibility_level = getattr(levels, name)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.stripped:
            if not hasattr(trt.BuilderFlag, "STRIP_PLAN"):
                raise self._too_old("plans without weights", "10.0")
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            # With the weights of the build itself, nothing has to be given up for refitting.
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)

    def _timings(self, config: Any, content: bytes) -> Any:
        """A cache that TensorRT does not take is a miss, never an error."""
        timings = config.create_timing_cache(content)
        if timings is None or not config.set_timing_cache(timings, False):
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, False)
        return timings

    def _refusal(self, model: Path, said: Sequence[str]) -> BackendError:
        """Memory first: where it is short, TensorRT finds no kernels either."""
        whole = " ".join(said)
        if not is_short_of_memory(whole) and re.search(_NO_KERNEL, whole):
            nodes = re.findall(r"(?:implementation for node|formats for) (.+?)(?:\.\)|\)|\.\s|\.\[|\.?$)", whole)
            unbuildable = UnbuildableError(
                f"TensorRT {self._runtime.version} has no kernel for {nodes[0] if nodes else 'some node'}"[:300],
                next_step="let these layers be computed in fp16, or build for another precision",
            )
            unbuildable.said = whole
            return unbuildable
        return self._failure(f"TensorRT {self._runtime.version} cannot build {model.name}", said)

    def _failure(self, what: str, said: Sequence[str]) -> BackendError:
        if is_short_of_memory(" ".join(said)):
            return DeviceMemoryError(
                f"{what}: the GPU's memory was too short",
                next_step="stop what else runs on the card, or build for smaller profiles",
            )
        return BackendError(
            f"{what}: {said[-1] if said else 'it does not say why'}",
            next_step="build for another precision, or for the CPU: --target cpu",
        )

    def _too_old(self, what: str, since: str) -> EngineError:
        return EngineError(
            f"TensorRT {self._runtime.version} builds no {what}; {since} and later do",
            next_step='leave the option out, or pip install --upgrade "aula[gpu]"',
        )


def release(version: str) -> tuple[int, int]:
    """Major and minor number; zeros for what says none ("unknown")."""
    numbers = re.findall(r"\d+", version)
    major, minor = [*map(int, numbers[:2]), 0, 0][:2]
    return major, minor


def _profile(builder: Any, extents: Mapping[str, Sequence[Extents]]) -> Any:
    profile = builder.create_optimization_profile()
    for name, axes in extents.items():
        least, usual, greatest = (tuple(sizes) for sizes in zip(*axes, strict=True))
        profile.set_shape(name, least, usual, greatest)
    return profile


def _parser_errors(parser: Any) -> str:
    said = [str(parser.get_error(place)) for place in range(min(3, parser.num_errors))]
    return "; ".join(said) or "it does not say why"
