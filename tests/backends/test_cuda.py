"""CUDA's errors become ours, and its memory is truly held."""

import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aula.backends.cuda import OUT_OF_MEMORY, STICKY, Cuda
from aula.core.errors import BackendError, DeviceLostError, DeviceMemoryError
from tests.backends.fake_cuda import FakeCuda


def _bindings(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> None:
    package: Any = ModuleType("cuda")
    package.bindings = ModuleType("cuda.bindings")
    package.bindings.runtime = fake
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", package.bindings)


def test_bytes_travel_to_the_device_and_back() -> None:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    stream = cuda.stream()
    given, taken = (cuda.pinned((2, 3), np.dtype(np.float32)) for _ in range(2))
    given.array[:] = np.arange(6).reshape(2, 3)
    first, second = cuda.allocate(given.bytes), cuda.allocate(given.bytes)
    cuda.upload(first, given.address, given.bytes, stream)
    cuda.copy(second, first, given.bytes, stream)
    cuda.clear(first, 4, stream)
    cuda.download(taken.address, second, taken.bytes, stream)
    cuda.synchronise(stream)
    np.testing.assert_array_equal(taken.array, [[0, 1, 2], [3, 4, 5]])
    for each in (given, taken):
        each.free()
    for address in (first, second):
        cuda.free(address)
    cuda.destroy_stream(stream)
    assert gpu.held() == {}


def test_an_empty_tensor_has_memory_too() -> None:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    pinned = cuda.pinned((0, 3), np.dtype(np.float16))
    assert (pinned.array.shape, pinned.bytes) == ((0, 3), 0)
    cuda.free(cuda.allocate(0))
    pinned.free()
    assert gpu.held() == {}


def test_a_full_card_and_a_lost_one_have_their_own_errors() -> None:
    gpu = FakeCuda(total=1000)
    cuda = Cuda(gpu)
    with pytest.raises(DeviceMemoryError, match=r"no memory left \(cudaMalloc\).*Next: close other sessions"):
        cuda.allocate(1001)
    assert cuda.free_memory() == (1000, 1000)
    gpu.fail("cudaFree", 1)
    with pytest.raises(BackendError, match=r"cudaErrorInvalidValue \(error 1 in cudaFree\)") as plain:
        cuda.free(0)
    assert type(plain.value) is BackendError
    gpu.fail("cudaStreamCreateWithFlags", 700)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match=r"illegal memory access .*CUDA error 700.*Next: replace the process"):
            cuda.stream()


def test_known_codes_are_those_of_the_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    names = {code: runtime.cudaError_t(code).name for code in (*STICKY, OUT_OF_MEMORY)}
    assert names[OUT_OF_MEMORY] == "cudaErrorMemoryAllocation"
    assert names[700] == "cudaErrorIllegalAddress"
    assert runtime.cudaDeviceAttr(75).name == "cudaDevAttrComputeCapabilityMajor"
    missing = [name for name in vars(FakeCuda) if name.startswith("cuda") and not hasattr(runtime, name)]
    assert not missing, "the fake has what CUDA has"


def test_every_thread_and_every_session_speaks_to_its_own_gpu() -> None:
    gpu = FakeCuda(devices=2)
    first, second = Cuda(gpu, 0), Cuda(gpu, 1)
    first.use()
    assert gpu.current == 0, "though this thread spoke to the second in between"
    thread = threading.Thread(target=second.use)
    thread.start()
    thread.join()
    assert gpu.current == 1


def test_a_graph_does_what_was_captured_each_time() -> None:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    stream, memory = cuda.stream(), cuda.allocate(4)
    pinned = cuda.pinned((1,), np.dtype(np.int32))
    cuda.begin_capture(stream)
    cuda.upload(memory, pinned.address, 4, stream)
    graph = cuda.end_capture(stream)
    assert gpu.held()["executables"] == 1
    assert "graphs" not in gpu.held(), "the graph behind the executable is gone"
    for value in (3, 4):
        pinned.array[:] = value
        cuda.launch(graph, stream)
        cuda.synchronise(stream)
        assert int(np.frombuffer(gpu.device_memory[memory], dtype=np.int32)[0]) == value
    cuda.destroy_graph(graph)


@pytest.mark.parametrize("step", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_can_be_abandoned(step: str) -> None:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    gpu.fail(step, 901)
    with pytest.raises(BackendError, match=step):
        cuda.end_capture(stream)
    cuda.abandon_capture(stream)
    assert not gpu.capturing
    assert gpu.held() == {"streams": 1}


def test_events_tell_the_time_between_them() -> None:
    gpu = FakeCuda()
    cuda = Cuda(gpu)
    stream = cuda.stream()
    start, end = cuda.event(), cuda.event()
    cuda.record(start, stream)
    cuda.record(end, stream)
    assert cuda.milliseconds(start, end) == 1
    for event in (start, end):
        cuda.destroy_event(event)
    assert gpu.held() == {"streams": 1}


def test_what_the_gpu_is() -> None:
    cuda = Cuda(FakeCuda())
    assert (cuda.capability(), cuda.driver()) == ("8.9", "12.8")


def test_opening_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-python, which is not installed.*aula\[gpu\]"):
        Cuda.open()
    _bindings(monkeypatch, FakeCuda(devices=0))
    with pytest.raises(BackendError, match=r"no GPU that CUDA can use.*aula doctor"):
        Cuda.open()
    _bindings(monkeypatch, FakeCuda(devices=2))
    with pytest.raises(BackendError, match=r"no GPU 2 here\. Available: 0, 1"):
        Cuda.open(2)
    assert Cuda.open(1).device == 1
