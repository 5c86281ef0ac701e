"""How PyTorch is timed, without PyTorch: a stand-in that captures graphs and loses devices."""

import argparse
import contextlib
import gc
import importlib
import signal
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Device:
    def __init__(self, name: str) -> None:
        self.type = name


class Context:
    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def wait_stream(self, _other: object) -> None: ...
    def replay(self) -> None: ...


class Ones:
    def add_(self, _number: int) -> None: ...


class OutOfMemoryError(RuntimeError): ...


class FakeTorch(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("torch")
        self.lost = False
        self.complaints = 0
        self.device, self.inference_mode, self.Tensor = Device, Context, object
        self.cuda = types.SimpleNamespace(
            Stream=Context,
            current_stream=Context,
            stream=Context,
            CUDAGraph=Context,
            graph=Context,
            synchronize=lambda: None,
            empty_cache=lambda: None,
            OutOfMemoryError=OutOfMemoryError,
        )

    def zeros(self, _size: int, device: Device) -> Ones:
        if self.lost or self.complaints:
            self.complaints = max(0, self.complaints - 1)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return Ones()


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu.torch_timing", raising=False)
    return fake


Told = list[tuple[str, dict[str, Any]]]


def open_bench(work: Path, told: Told, **options: Any) -> Any:
    timing = importlib.import_module("benchmarks.gpu.torch_timing")
    given = {"device": "cuda", "tiny": True, "compile": True, "seconds": 0.01, "compile_seconds": 60.0, "budget": 60.0}
    said = argparse.Namespace(work=str(work), **(given | options))
    bench = timing.Bench(said, lambda bench: told.append((bench.row, dict(bench.variants))))
    bench.begin("bert-1x32")
    return bench


def raising(error: Exception) -> Callable[[], dict[str, Any]]:
    def body() -> dict[str, Any]:
        raise error

    return body


def test_who_replays_a_graph_keeps_what_it_reads(torch: FakeTorch, tmp_path: Path) -> None:
    """On an H100, BERT's tables were freed and written over between capture and replay: a device-side assert."""

    class Weights: ...

    weights = Weights()
    seen = weakref.ref(weights)

    def opened(weights: Weights) -> Callable[[], bool]:
        return lambda: weights is not None

    bench = open_bench(tmp_path, [])
    # As a capture leaves it: what came out is memory of the graph, and refers to no weights.
    replay = bench.graphed(opened(weights))
    del weights
    gc.collect()
    assert seen() is not None
    del replay
    gc.collect()
    assert seen() is None


def test_a_broken_variant_is_told_and_the_rest_goes_on(torch: FakeTorch, tmp_path: Path) -> None:
    told: Told = []
    bench = open_bench(tmp_path, told)
    torch.complaints = 1  # once, to whom asks next: that is no lost device
    bench.try_variant("broken", raising(RuntimeError("no such kernel\nand more")))
    bench.try_variant("good", lambda: {"p50_ms": 1.0})
    assert told[-1][1]["broken"]["skipped"] == "RuntimeError: no such kernel"
    assert told[-1][1]["good"]["p50_ms"] == 1.0


def test_a_lost_device_ends_the_process_after_it_was_told(torch: FakeTorch, tmp_path: Path) -> None:
    told: Told = []
    bench = open_bench(tmp_path, told)
    torch.lost = True
    with pytest.raises(sys.modules["benchmarks.gpu.torch_timing"].DeviceLostError):
        bench.try_variant("graph", raising(RuntimeError("CUDA error: device-side assert triggered")))
    assert "device-side assert" in told[-1][1]["graph"]["skipped"]


def test_compilers_come_after_everything_else_and_are_stopped(torch: FakeTorch, tmp_path: Path) -> None:
    def for_ever() -> dict[str, Any]:
        while True:
            with contextlib.suppress(Exception):
                signal.pause()

    told: Told = []
    bench = open_bench(tmp_path, told, compile_seconds=0.05)
    bench.try_variant("compiled", for_ever, compiled=True)
    bench.begin("bert-64x32")
    bench.try_variant("eager", lambda: {"p50_ms": 1.0})
    bench.finish()
    assert [(row, list(variants)) for row, variants in told] == [
        ("bert-1x32", []),
        ("bert-64x32", []),
        ("bert-64x32", ["eager"]),
        ("bert-1x32", ["compiled"]),
    ]
    assert told[-1][1]["compiled"]["skipped"].startswith("OutOfTimeError: not done within")


def test_when_the_time_is_spent_the_rest_is_skipped_aloud(torch: FakeTorch, tmp_path: Path) -> None:
    told: Told = []
    open_bench(tmp_path, told, budget=0.5).try_variant("late", lambda: {"p50_ms": 1.0})
    assert told[-1][1]["late"]["skipped"] == "TimeoutError: PyTorch's time is spent"


def test_models_are_made_once_for_all_rows(torch: FakeTorch, tmp_path: Path) -> None:
    bench = open_bench(tmp_path, [])
    made = [bench.kept("model", object)]
    bench.begin("bert-64x32")
    assert bench.kept("model", object) is made[0]


def test_numbers_that_need_too_much_memory_are_refused(torch: FakeTorch, tmp_path: Path) -> None:
    class Text:
        def cpu(self) -> None: ...

    def open_run(rows: int) -> Callable[[], Text]:
        if rows > 1:
            raise OutOfMemoryError("CUDA out of memory")
        return Text

    found = open_bench(tmp_path, []).in_flight(open_run, first=64)
    assert found["in_flight"] == 1
    assert found["tried_p99_ms"]["2"] is None
