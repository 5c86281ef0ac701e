"""TensorRT's own objects: what it says is passed on, and its layers are read; also on the lean runtime where it is."""

import gc
import hashlib
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aula.backends import tensorrt_runtime
from aula.backends.tensorrt_runtime import KEPT_MESSAGES, Messages, Runtime, layer_precision, layer_precisions
from aula.core.errors import BackendError, VerificationError
from tests.backends.fake_tensorrt import RELEASES, VERSIONS, fake_tensorrt
from tests.backends.gpu_engines import DOUBLING, FIXED, Machine


@pytest.mark.parametrize("release", RELEASES)
def test_a_runtime_has_its_version_and_may_run_compatible_plans(release: str) -> None:
    runtime = Runtime(fake_tensorrt(release))
    assert runtime.version == VERSIONS[release]
    assert runtime._runtime.engine_host_code_allowed
    assert runtime.said() == "no reason"


def test_without_a_gpu_the_runtime_is_refused_before_it_is_used() -> None:
    """TensorRT hands out an object that holds nothing, and whose use ends the process (seen with 11.4)."""
    trt = fake_tensorrt("11.0")
    trt.behaviour.no_gpu = True
    with pytest.raises(BackendError, match=r"TensorRT 11\.0\S* does not start here: CUDA init.*Next: aula doctor"):
        Runtime(trt)
    gc.collect()
    assert not trt.behaviour.crashed


def test_errors_are_kept_and_warnings_are_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runtime = machine.runtime()
    path = machine.save(FIXED, DOUBLING, release="10.3")
    with pytest.raises(BackendError, match=r"does not take engine0\.plan: The engine plan file is of 10\.3"):
        runtime.deserialise(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert list(runtime.messages.said_since(0)) == [
        "The engine plan file is of 10.3, expecting 10.12",
        "Engine deserialization failed.",
    ]
    assert runtime.said() == "Engine deserialization failed."


def test_messages_since_a_mark_are_those_of_one_failure() -> None:
    messages = Messages()
    assert messages.said_since(0) == ()
    messages.add("an old\n   one")
    mark = messages.count()
    assert (messages.said_since(0), messages.said_since(mark)) == (("an old one",), ())
    for number in range(KEPT_MESSAGES + 5):
        messages.add(str(number))
    assert (len(messages.said_since(mark)), messages.last()) == (KEPT_MESSAGES, str(KEPT_MESSAGES + 4))
    assert messages.said_since(messages.count() - 2) == (str(KEPT_MESSAGES + 3), str(KEPT_MESSAGES + 4))


def test_no_plan_is_opened_unless_somebody_vouches_for_its_bytes(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runtime, path = machine.runtime(), machine.save(FIXED, DOUBLING)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(BackendError, match="nobody vouches"):
        runtime.deserialise(path, "")
    with pytest.raises(BackendError, match=r"absent\.plan cannot be read.*build the engine again"):
        runtime.deserialise(tmp_path / "absent.plan", digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(VerificationError, match=rf"the manifest says {digest[:16]}"):
        runtime.deserialise(path, digest)
    assert machine.trt.behaviour.deserialised == []


def test_garbage_that_somebody_vouches_for_is_refused_by_tensorrt(tmp_path: Path) -> None:
    path = tmp_path / "garbage.plan"
    path.write_bytes(b"garbage")
    with pytest.raises(BackendError, match="magicTagRead"):
        Machine(tmp_path).runtime().deserialise(path, hashlib.sha256(b"garbage").hexdigest())


def test_the_process_has_one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_runtime, "_loaded", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(BackendError, match=r"cannot be imported here.*aula\[gpu\]"):
        Runtime.load()
    trt: Any = fake_tensorrt("11.0")
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)
    assert Runtime.load().trt is trt, "the lean runtime opens plans as well"
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.0"))
    assert Runtime.load().trt is trt, "TensorRT keeps the first logger that it sees"


@pytest.mark.parametrize("release", RELEASES)
def test_types_are_called_as_numpy_calls_them(release: str) -> None:
    trt = fake_tensorrt(release)
    runtime = Runtime(trt)
    names = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT8": "int8", "BOOL": "bool", "UINT8": "uint8"}
    if release != "8.6":
        names |= {"BF16": "bfloat16", "INT64": "int64"}
    assert {name: runtime.dtype(trt.DataType[name]) for name in names} == names


def _layer(kind: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    def told(types: list[str]) -> list[dict[str, str]]:
        return [{"Name": "t", "Format/Datatype": text} for text in types]

    return {"LayerType": kind, "Inputs": told(inputs), "Outputs": told(outputs)}


def test_layers_are_read_where_there_are_any(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    session = machine.open(machine.save(FIXED, DOUBLING))
    layers = [_layer("gemm", ["Half"], ["Half"]), _layer("Reformat", ["Float"], ["Half"])]
    for text, found in (
        (json.dumps({"Layers": layers}), layers),
        ('{"Layers": ["only a name"]}', []),
        ('{"Layers": [{"Name": "two\nlines"}]}', [{"Name": "two\nlines"}]),
        ("{}", []),
        ("", []),
        ("no json", []),
    ):
        machine.trt.behaviour.inspected = text
        assert session.layers() == found
    machine.trt.behaviour.inspected = json.dumps({"Layers": layers})
    assert session.precisions() == {"fp16": 1}
    del machine.trt.EngineInspector
    assert session.layers() == [], "the lean runtime has no inspector"


@pytest.mark.parametrize(
    ("inputs", "outputs", "precision"),
    [
        (["Row major linear FP32"], ["Row major linear FP32"], "fp32"),
        (["Row major linear FP16 format"], ["Row major linear FP32"], "fp16"),
        (["Thirty-two wide channel vectorized row major Int8 format."], ["Row major linear FP16 format"], "int8"),
        (["Half"], ["Float"], "fp16"),
        (["Float"], ["Float"], "fp32"),
        (["BFloat16"], ["Float"], "bf16"),
        (["Row major linear BF16 format (kLINEAR)"], [], "bf16"),
        (["Int8"], ["Half"], "int8"),
        (["FP8"], ["Half"], "fp8"),
        (["UInt8"], ["Float"], "fp32"),
        (["Int32"], ["Int64"], ""),
        (["Bool"], [], ""),
    ],
)
def test_a_layer_computes_in_the_lowest_of_its_types(inputs: list[str], outputs: list[str], precision: str) -> None:
    assert layer_precision(_layer("gemm", inputs, outputs)) == precision
    assert layer_precision(_layer("Reformat", inputs, outputs)) == "", "it only moves data"


def test_layers_are_counted_by_precision() -> None:
    layers = [_layer("gemm", ["Half"], []), _layer("kgen", ["Half"], []), _layer("gemm", ["Float"], [])]
    assert layer_precisions([*layers, _layer("NoOp", ["Float"], []), {}]) == {"fp16": 2, "fp32": 1}


# A current release, as far as it goes without a GPU.


@pytest.fixture(scope="module")
def lean() -> Any:
    """`tensorrt_lean` hands on what is in `tensorrt_lean_bindings`."""
    for name in ("tensorrt_lean", "tensorrt_lean_bindings"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    pytest.skip("TensorRT's lean runtime is absent: pip install --no-deps tensorrt_lean_cu12_{libs,bindings}")


def test_the_lean_runtime_has_what_sessions_call(lean: Any) -> None:
    calls = {
        "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_shape get_tensor_dtype get_tensor_mode "
        "get_tensor_profile_shape num_optimization_profiles create_execution_context create_engine_inspector",
        "IExecutionContext": "set_optimization_profile_async set_input_shape get_tensor_shape set_tensor_address "
        "execute_async_v3",
        "ILogger": "log Severity",
        "LayerInformationFormat": "JSON",
        "TensorIOMode": "INPUT",
    }
    missing = [f"{kind}.{name}" for kind, names in calls.items() for name in names.split()
               if not hasattr(getattr(lean, kind), name)]  # fmt: skip
    assert not missing
    kinds = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "BF16": "bfloat16"}
    named = {name: Runtime.dtype(Any, getattr(lean.DataType, name)) for name in kinds}  # type: ignore[arg-type]
    assert named == kinds


def test_the_lean_runtime_refuses_garbage_and_a_machine_without_gpu(lean: Any, tmp_path: Path) -> None:
    path = tmp_path / "garbage.plan"
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(BackendError, match=r"does not start here: \S|does not take garbage\.plan: \S"):
        Runtime(lean).deserialise(path, hashlib.sha256(path.read_bytes()).hexdigest())
