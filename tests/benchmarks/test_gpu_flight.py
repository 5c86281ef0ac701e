import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.gpu.flight import Serve, closed_loop, greatest, most_in_flight, percentile, shared_loop

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.batches = 0

    def now(self) -> float:
        return self.seconds

    def serve(self, number: int) -> None:
        """A millisecond each, and ten for the batch."""
        self.batches += 1
        self.seconds += 0.010 + 0.001 * number


def test_all_in_one_batch_wait_for_one_batch() -> None:
    clock = Clock()
    latencies = closed_loop(clock.serve, 10, 10, 3, clock.now)
    assert latencies == pytest.approx([20.0] * 30)


def test_those_behind_wait_for_the_batches_before_theirs() -> None:
    clock = Clock()
    latencies = closed_loop(clock.serve, 20, 10, 3, clock.now)
    assert latencies == pytest.approx([40.0] * len(latencies))


def test_a_number_that_cannot_pass_is_given_up_at_once() -> None:
    clock = Clock()
    latencies = closed_loop(clock.serve, 10, 10, 20, clock.now, limit_ms=15)
    assert clock.batches == 2
    assert percentile(latencies, 0.99) > 15
    # One late answer of two hundred is no reason to.
    slow = iter([0.01, 0.01, 0.5, *[0.01] * 300])

    def serve(_number: int) -> None:
        clock.seconds += next(slow)

    latencies = closed_loop(serve, 1, 1, 200, clock.now, limit_ms=100)
    assert len(latencies) == 200
    assert percentile(latencies, 0.99) == pytest.approx(10)


def test_servers_beside_each_other_share_what_is_in_flight() -> None:
    """Neither answers before the other has taken its share."""
    both = threading.Barrier(2, timeout=20)
    taken: list[list[int]] = [[], []]
    rounds = 3

    def server(number: int) -> Serve:
        def serve(count: int) -> None:
            taken[number].append(count)
            if len(taken[number]) <= rounds:
                both.wait()

        return serve

    ticks = iter(range(10_000))
    latencies = shared_loop([server(0), server(1)], 10, 8, rounds, lambda: float(next(ticks)))
    assert len(latencies) >= 30
    assert min(latencies) > 0
    assert sorted(counts[0] for counts in taken) == [2, 8], "a batch is filled before the next is begun"


def test_what_one_server_raises_ends_all() -> None:
    def broken(_count: int) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        shared_loop([broken, broken], 4, 2, 3)


def test_late_answers_end_a_shared_loop_early() -> None:
    served: list[int] = []
    ticks = iter(range(100_000))
    latencies = shared_loop([served.append, served.append], 10, 5, 20, lambda: float(next(ticks)), limit_ms=1.0)
    assert 0 < len(latencies) < 200


def test_several_servers_are_warmed_and_counted_together() -> None:
    seen: set[int] = set()
    lock = threading.Lock()

    def server(number: int) -> Serve:
        def serve(_count: int) -> None:
            with lock:
                seen.add(number)

        return serve

    told = most_in_flight(lambda _count: (4, [server(0), server(1)]), 8, tries=1, rounds=2)
    assert seen == {0, 1}
    assert told["in_flight"] in (0, 8)
    assert list(told["tried_p99_ms"]) == ["8"]


@pytest.mark.parametrize("limit", [1, 3, 64, 100, 1000, 5000])
def test_the_greatest_that_passes_is_found_closely(limit: int) -> None:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number <= limit

    found = greatest(passes, 16, tries=20)
    assert 0.96 * limit - 1 <= found <= limit
    assert len(tried) == len(set(tried))


def test_none_passes_and_the_tries_are_bounded() -> None:
    tried: list[int] = []

    def never(number: int) -> bool:
        tried.append(number)
        return False

    assert greatest(never, 64, tries=20) == 0
    assert tried == [64, 32, 16, 8, 4, 2, 1]
    assert greatest(lambda _: True, 1, tries=4) == 8


def test_both_ways_of_serving_are_counted_alike() -> None:
    """Ten milliseconds and one for each: 90 in a batch of their own; batches of 64 serve no more than that many."""
    clock = Clock()
    own = most_in_flight(lambda count: (count, clock.serve), 64, now=clock.now)
    assert 87 <= own["in_flight"] <= 90
    assert own["p99_ms"] == own["tried_p99_ms"][str(own["in_flight"])] <= 100
    fixed = most_in_flight(lambda _count: (64, lambda _: clock.serve(64)), 64, now=clock.now)
    assert fixed["in_flight"] == 64


def test_a_number_without_memory_does_not_pass_and_none_is_told_with_its_latency() -> None:
    clock = Clock()

    def open_server(count: int) -> tuple[int, Serve]:
        if count > 20:
            raise MemoryError
        return count, clock.serve

    found = most_in_flight(open_server, 16, now=clock.now)
    assert found["in_flight"] == 20
    assert found["tried_p99_ms"]["32"] is None
    found = most_in_flight(open_server, 4, limit_ms=5, now=clock.now)
    assert (found["in_flight"], found["p99_ms"]) == (0, pytest.approx(11))


@pytest.mark.parametrize("module", ["rows", "flight", "torch_timing", "torch_whisper", "torch_native"])
def test_pytorch_s_side_never_asks_for_aula(module: str) -> None:
    program = (
        "import importlib.abc, sys, types\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] == 'aula':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "torch = types.ModuleType('torch')\n"
        "torch.Tensor = torch.dtype = object\n"
        "functional, nn = types.ModuleType('torch.nn.functional'), types.ModuleType('torch.nn')\n"
        "nn.functional = functional\n"
        "sys.modules |= {'torch': torch, 'torch.nn': nn, 'torch.nn.functional': functional}\n"
        f"import benchmarks.gpu.{module}\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
