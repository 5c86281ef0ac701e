"""A user's own ONNX file as a recipe: checked and simplified, with examples made up from what the graph tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import BackendError, CalibrationError, EngineError
from aula.core.types import TensorSpec
from aula.engine.foreign import (
    drop_default_inputs,
    free_dimensions,
    input_specs,
    name_free_dimensions,
    output_specs,
    table_sizes,
)
from aula.engine.onnx_files import external_files, load_model
from aula.engine.passes import simplify
from aula.engine.profiles import read_profiles
from aula.engine.recipe import Arrays, Model, Profile, Recipe
from aula.engine.walk import without_weights
from aula.models import examples as evidence
from aula.models.labels import check_range

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-3
"""Two fp32 runtimes add in different orders and choose other convolution algorithms: 1e-4 between them is common."""

FIXED = Profile("fixed", {})
"""The profile of a graph without free dimensions."""


def own_onnx_model(
    path: Path, profiles: Sequence[str] = (), calibrate: Path | None = None, labelled: Path | None = None
) -> Model:
    """The file as a model called after it. `profiles` are written as for `aula build --profile`; see
    `own_onnx_recipe` for the rest and the errors."""
    given = read_profiles(profiles, _Graph.read(path).dimensions) if profiles else ()
    return Model.of(own_onnx_recipe(path, path.stem, profiles=given, calibrate=calibrate, labelled=labelled))


def own_onnx_recipe(
    path: Path,
    name: str,
    *,
    profiles: Sequence[Profile],
    calibrate: Path | None = None,
    labelled: Path | None = None,
    tolerance: float = TOLERANCE,
) -> Recipe:
    """The file's own inputs and outputs; `profiles` must give sizes for every free dimension of the inputs.

    `calibrate` and `labelled` are npz files as `models.examples` describes them. Where `calibrate` is given, engines
    are proven on its examples, repeated or cut to a profile's sizes; else on made-up ones: noise for numbers, rows
    that the graph's tables have for tokens, ones for masks, 0 and 1 for other integers.

    The reference is ONNX Runtime on the file as it came, in fp32 with every optimisation off: no second description
    of a foreign graph exists that could be computed in float64. So it shows what simplifying, another backend, fusing
    or rounding change, and shows nothing of a fault that the file itself, or ONNX Runtime's plain operators, have.

    Raises EngineError for a damaged or unsupported file and for profiles that do not fit, BackendError naming the
    nodes that no backend knows, CalibrationError for examples of the wrong form.
    """
    graph = _Graph.read(path)
    _check_profiles(path, graph, profiles)
    real = evidence.read_examples(calibrate, graph.inputs) if calibrate else None
    judged = evidence.read_examples(labelled, graph.inputs, labelled=True) if labelled else None
    first = graph.outputs[0]
    if judged is not None and len(first.shape) != 2:
        raise CalibrationError(
            f"the first output {first.name} has the shape {list(first.shape)}: labels judge scores [batch, classes]",
            next_step="build without labelled examples",
        )
    if judged is not None and judged.labels is not None and isinstance(first.shape[1], int):
        check_range(judged.labels, first.shape[1], judged.source)
    return Recipe(
        name=name,
        revision=1,
        sources=_sources(path, graph.external, calibrate),
        write_graph=lambda: simplify(read_graph(path)),
        example=lambda sizes, generator: graph.example(sizes, generator, real.inputs if real else ()),
        reference=_Reference(path, [spec.name for spec in graph.outputs]),
        profiles=tuple(profiles) or (FIXED,),
        tolerance=tolerance,
        transformer=graph.transformer,
        calibration=None if real is None else lambda: evidence.calibration(real),
        task=None if judged is None else lambda: evidence.task(judged, first.name),
    )


def _sources(path: Path, external: Sequence[str], calibrate: Path | None) -> tuple[Path, ...]:
    """The examples are among them, since engines are proven on these in fp32 too."""
    files = (path, *(path.parent / file for file in external))
    if calibrate is None:
        return files
    # All absolute: what they have in common is asked for, which mixed paths do not tell.
    return tuple(file.parent.resolve() / file.name for file in (*files, calibrate))


def read_graph(path: Path, *, weights: bool = True) -> "onnx.ModelProto":
    """The checked graph, with names for all free dimensions; see `own_onnx_recipe` for the errors."""
    return name_free_dimensions(drop_default_inputs(load_model(path, weights=weights)))


@dataclass(frozen=True, slots=True)
class _Graph:
    """What is worth knowing of a file when its weights are gone again."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external: tuple[str, ...]
    tables: Mapping[str, int]
    transformer: bool

    @classmethod
    def read(cls, path: Path) -> "_Graph":
        model = read_graph(path, weights=False)
        # Without the weights, what follows takes milliseconds whatever their size.
        simple = simplify(without_weights(model))
        operators = {node.op_type for node in simple.graph.node}
        return cls(
            input_specs(model),
            output_specs(simple),
            tuple(external_files(model)),
            table_sizes(simple),
            "Softmax" in operators and "Conv" not in operators,
        )

    @property
    def dimensions(self) -> list[str]:
        return free_dimensions(self.inputs)

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator, real: Sequence[Arrays]) -> Arrays:
        chosen = real[int(generator.integers(len(real)))] if real else None
        arrays = {}
        for spec in self.inputs:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
            arrays[spec.name] = (
                self._made_up(spec, shape, generator) if chosen is None else _stretched(chosen[spec.name], shape)
            )
        return arrays

    def _made_up(self, spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
        dtype = np.dtype(spec.dtype)
        if dtype == np.bool_ or "mask" in spec.name.lower():
            return np.ones(shape, dtype=dtype)
        if np.issubdtype(dtype, np.floating):
            return generator.standard_normal(shape).astype(dtype)
        rows = min(self.tables.get(spec.name, 2), np.iinfo(dtype).max)
        return generator.integers(0, max(1, rows), shape).astype(dtype)


def _stretched(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Real values, repeated or cut along each axis."""
    for axis, size in enumerate(shape):
        array = array.take(np.arange(size) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def _check_profiles(path: Path, graph: _Graph, profiles: Sequence[Profile]) -> None:
    wanted = graph.dimensions
    given = [profile.sizes.keys() for profile in profiles] or [{}.keys()]
    for sizes in given:
        missing = [name for name in wanted if name not in sizes]
        unknown = [name for name in sizes if name not in wanted]
        if missing or unknown:
            fault = f"no sizes for {', '.join(missing)}" if missing else f"sizes for {', '.join(unknown)}"
            raise EngineError(
                f"{path.name} has {'the free dimensions ' + ', '.join(wanted) if wanted else 'no free dimension'}, "
                f"and a profile gives {fault}",
                available=wanted,
                next_step=f"aula build {path.name} --profile usual:{_specification(wanted)}"
                if wanted
                else "leave --profile out",
            )


def _specification(dimensions: Sequence[str]) -> str:
    """Sizes as a user may write them: a few of what is called a batch, more of anything else."""
    return ",".join(f"{name}={'1-1-8' if 'batch' in name.lower() else '3-16-64'}" for name in dimensions)


class _Reference:
    """The file as it came, run plainly."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        self._path = path
        self._outputs = list(outputs)
        self._session: Any = None

    def __call__(self, inputs: Arrays) -> Arrays:
        try:
            self._session = self._session or _plain_session(self._path)
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except ImportError as error:
            raise BackendError(
                "the reference of an ONNX file needs ONNX Runtime", next_step="pip install onnxruntime"
            ) from error
        except Exception as error:  # the runtime raises types of its own
            reason = str(error).strip().partition("\n")[0]
            raise BackendError(
                f"ONNX Runtime cannot run {self._path.name}: {reason}",
                next_step="check that the model runs at the sizes of its profiles, and that examples fit it",
            ) from error


def _plain_session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
