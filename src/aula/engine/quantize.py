"""INT8 in the graph: Q/DQ pairs from real data, and the layers that do not bear it found and put back.

NNCF places the pairs on the ONNX graph once; every backend reads that one file. Which layers lose too much is found
here, by putting one layer at a time back into full precision and watching the outputs (the idea is old: see Wu et
al. 2020, arXiv:2004.09602, section 5.2, partial quantisation).
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.core.errors import BackendError, CalibrationError
from aula.engine.graph import prune
from aula.engine.recipe import Arrays, Calibration

if TYPE_CHECKING:
    import onnx

FEWEST_EXAMPLES = 16
INSTALL = 'pip install "aula[quantize]"'

Outputs = Callable[["onnx.ModelProto"], list[Arrays]]
"""Runs a graph on a few inputs and returns its outputs."""


@dataclass(frozen=True, slots=True)
class Method:
    """How ranges are found. `smooth` is SmoothQuant's alpha (Xiao et al. 2022, arXiv:2211.10438), None for none.
    `percentile` of each example's activations is where they are clipped, 100 being the extremes; `over` says how the
    examples are put together: "all" takes the widest, "mean" the average, which clips what is rare, "mse" the range
    with the least squared rounding error over a histogram of all."""

    name: str
    smooth: float | None
    percentile: float = 100.0
    over: str = "all"


TRANSFORMER_METHODS = (
    Method("smoothquant", 0.95, over="mean"),
    Method("mean-minmax", None, over="mean"),
    Method("minmax", None),
    Method("percentile-99.99", None, 99.99),
    Method("mse", None, over="mse"),
)
CONVOLUTION_METHODS = (
    Method("minmax", None),
    Method("mean-minmax", None, over="mean"),
    Method("percentile-99.99", None, 99.99),
    Method("mse", None, over="mse"),
)


def check_calibration(calibration: Calibration, model: "onnx.ModelProto", *, seeded: bool = False) -> None:
    """Raises CalibrationError unless there are enough real examples whose names, types and shapes are the graph's.
    Made-up examples pass for `seeded` weights alone, which mean nothing themselves."""
    import onnx

    if calibration.random and not seeded:
        raise CalibrationError(
            "the calibration data is random; ranges found on it mean nothing",
            next_step="give real examples: aula build MODEL --calibrate FILE",
        )
    if len(calibration.inputs) < FEWEST_EXAMPLES:
        raise CalibrationError(
            f"{len(calibration.inputs)} examples in {calibration.source} are too few to calibrate on",
            next_step=f"give at least {FEWEST_EXAMPLES}",
        )
    wanted = {
        value.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
    }
    for place, example in enumerate(calibration.inputs):
        got = {name: array.dtype for name, array in example.items()}
        if got != wanted:
            raise CalibrationError(
                f"example {place} of {calibration.source} holds {_described(got)}, "
                f"but the graph takes {_described(wanted)}",
                next_step="prepare the examples as the recipe prepares its inputs",
            )
        for value in model.graph.input:
            axes = [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
            shape = example[value.name].shape
            if len(axes) != len(shape) or any(a not in (None, b) for a, b in zip(axes, shape, strict=False)):
                raise CalibrationError(
                    f"example {place} of {calibration.source} holds {value.name} of shape {list(shape)}, "
                    f"but the graph takes {[axis or 'any' for axis in axes]}",
                    next_step="prepare the examples as the recipe prepares its inputs",
                )
        if not all(np.isfinite(array).all() for array in example.values()):
            raise CalibrationError(
                f"example {place} of {calibration.source} holds values that are not finite",
                next_step="clean the calibration data",
            )


def quantize(
    model: "onnx.ModelProto", calibration: Calibration, method: Method, *, transformer: bool, seeded: bool = False
) -> "onnx.ModelProto":
    """A copy of `model` with Q/DQ pairs. Raises CalibrationError, and BackendError where NNCF is not installed
    or cannot take the graph."""
    check_calibration(calibration, model, seeded=seeded)
    nncf = _nncf()
    ranges = nncf.quantization.range_estimator
    advanced: dict[str, Any] = {
        "smooth_quant_alphas": nncf.AdvancedSmoothQuantParameters(
            matmul=-1 if method.smooth is None else method.smooth, convolution=-1
        )
    }
    advanced["activations_range_estimator_params"] = _range_estimator(ranges, method)
    copy = type(model)()
    copy.CopyFrom(model)
    try:
        # NNCF draws progress bars of its own on standard output, which belongs to results.
        with contextlib.redirect_stdout(io.StringIO()):
            quantised: onnx.ModelProto = nncf.quantize(
                copy,
                nncf.Dataset(list(calibration.inputs)),
                subset_size=len(calibration.inputs),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
            )
        return quantised
    except Exception as error:  # NNCF raises types of its own and of the ONNX Runtime under it
        raise BackendError(f"NNCF cannot quantise this graph: {error}", next_step="build without int8") from error


def _range_estimator(ranges: Any, method: Method) -> Any:
    """What NNCF calls the method. `ranges` is its module range_estimator."""
    if method.over == "mse":
        return ranges.RangeEstimatorParametersSet.HISTOGRAM
    statistics, aggregators = ranges.StatisticsType, ranges.AggregatorType
    clipped, averaged = method.percentile < 100, method.over == "mean"
    outliers = 1 - method.percentile / 100
    return ranges.RangeEstimatorParameters(
        min=ranges.StatisticsCollectorParameters(
            statistics_type=statistics.QUANTILE if clipped else statistics.MIN,
            aggregator_type=aggregators.MEAN if averaged else aggregators.MIN,
            quantile_outlier_prob=outliers,
        ),
        max=ranges.StatisticsCollectorParameters(
            statistics_type=statistics.QUANTILE if clipped else statistics.MAX,
            aggregator_type=aggregators.MEAN if averaged else aggregators.MAX,
            quantile_outlier_prob=outliers,
        ),
    )


def quantized_layers(model: "onnx.ModelProto") -> list[str]:
    """Names of the nodes that compute on dequantised inputs: the layers that run in INT8, and the sums and products
    between them (residuals, squeeze-excite gates), which round their inputs too."""
    dequantised = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv", "Mul", "Add") and any(name in dequantised for name in node.input)
    ]


def restored(quantised: "onnx.ModelProto", original: "onnx.ModelProto", layers: Collection[str]) -> "onnx.ModelProto":
    """A copy of `quantised` in which the named layers take their inputs from before the Q/DQ pairs again, and add
    the bias that they had before it was corrected for them."""
    copy = type(quantised)()
    copy.CopyFrom(quantised)
    producers = {output: node for node in copy.graph.node for output in node.output}
    before = {node.name: node for node in original.graph.node}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}

    def exact(source: str) -> str:
        """The name of the original's initialiser in the copy; a changed one of that name stays for the others."""
        there = constants.get(source)
        if there is not None and there.SerializeToString() == weights[source].SerializeToString():
            return source
        name = source if there is None else f"{source}/exact"
        if name not in constants:
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(weights[source])
            tensor.name = name
            constants[name] = tensor
        return name

    put_back: set[str] = set()
    for node in copy.graph.node:
        adds_bias = node.op_type == "Add" and any(name in put_back for name in node.input)
        if node.name in layers or adds_bias:
            put_back.update(node.output if node.name in layers else ())
            for place, name in enumerate(node.input):
                source = before[node.name].input[place] if node.name in before else ""
                dequantise = producers.get(name)
                if source in weights:
                    node.input[place] = exact(source)
                elif node.name in layers and dequantise is not None and dequantise.op_type == "DequantizeLinear":
                    node.input[place] = producers[dequantise.input[0]].input[0]
    return prune(copy)


def sensitivities(
    quantised: "onnx.ModelProto", original: "onnx.ModelProto", outputs: Outputs
) -> list[tuple[str, float]]:
    """How much of the outputs' squared error goes away when a layer alone is put back, the most telling first."""
    exact = outputs(original)
    error = _squared_error(outputs(quantised), exact)
    gains = [
        (layer, error - _squared_error(outputs(restored(quantised, original, {layer})), exact))
        for layer in quantized_layers(quantised)
    ]
    return sorted(gains, key=lambda gain: -gain[1])


def _squared_error(got: Sequence[Arrays], wanted: Sequence[Arrays]) -> float:
    pairs: Iterable[tuple[Any, Any]] = (
        (mine[name], theirs[name]) for mine, theirs in zip(got, wanted, strict=True) for name in theirs
    )
    return float(sum(np.square(mine.astype(np.float64) - theirs).sum() for mine, theirs in pairs))


def _described(types: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(types.items())) or "nothing"


def _nncf() -> Any:
    # NNCF reports its use to its makers unless it believes itself in a CI; a school's machine reports to nobody.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        import nncf.quantization.range_estimator
    except ImportError as error:
        raise BackendError("quantising needs the package nncf, which is not installed", next_step=INSTALL) from error
    nncf.set_log_level(logging.ERROR)
    return nncf
