"""Without a GPU: a management library that answers as nvml.h says, and what nvidia-smi prints."""

import ctypes
from typing import Any

import pytest

from aula.backends import gpus
from aula.backends.gpus import Gpu, list_gpus, read_table, visible

T4 = Gpu(0, "GPU-aaaa1111", "Tesla T4", "7.5", "570.86.10", 16 * 2**30)
L4 = Gpu(1, "GPU-aabb2222", "NVIDIA L4", "8.9", "570.86.10", 24 * 2**30)


class Library:
    """Two GPUs. `broken` is the function that fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.ended = False

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            if name == self.broken:
                return 999
            return int(getattr(self, f"do_{name}")(*arguments) or 0)

        return function

    def do_nvmlInit_v2(self) -> None: ...  # noqa: N802

    def do_nvmlShutdown(self) -> None:  # noqa: N802
        self.ended = True

    def do_nvmlDeviceGetCount_v2(self, count: Any) -> None:  # noqa: N802
        count._obj.value = 2

    def do_nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> None:  # noqa: N802
        buffer.value = T4.driver.encode()

    def do_nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> None:  # noqa: N802
        device._obj.value = index.value + 100

    def do_nvmlDeviceGetCudaComputeCapability(self, device: Any, major: Any, minor: Any) -> None:  # noqa: N802
        major._obj.value, minor._obj.value = map(int, self._of(device).capability.split("."))

    def do_nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> None:  # noqa: N802
        memory._obj.total = self._of(device).memory_bytes

    def do_nvmlDeviceGetUUID(self, device: Any, buffer: Any, size: Any) -> None:  # noqa: N802
        buffer.value = self._of(device).uuid.encode()

    def do_nvmlDeviceGetName(self, device: Any, buffer: Any, size: Any) -> None:  # noqa: N802
        buffer.value = self._of(device).name.encode()

    def _of(self, device: Any) -> Gpu:
        return (T4, L4)[device.value - 100]


def test_the_library_tells_everything_and_is_closed() -> None:
    library = Library()
    assert gpus._from_library(lambda _name: library) == (T4, L4)
    assert library.ended


def test_without_a_driver_or_with_half_of_one_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(name)

    assert gpus._from_library(absent) == ()
    assert gpus._from_library(lambda _name: Library("nvmlInit_v2")) == ()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus._from_command() == ()
    for broken in ("nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID"):
        library = Library(broken)
        monkeypatch.setattr(gpus, "_library", lambda _load, library=library: library)
        assert list_gpus() == ()
        assert library.ended


def test_what_the_command_prints() -> None:
    text = (
        "0, GPU-aaaa1111, Tesla T4, 7.5, 570.86.10, 16384\n"
        "1, GPU-aabb2222, NVIDIA L4, 8.9, 570.86.10, 24576\n"
        "2, GPU-cccc3333, NVIDIA GB10, 12.1, 580.1, [N/A]\n"
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n\n"
    )
    assert read_table(text) == (T4, L4)


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (None, (T4, L4)),
        ("1,0", (L4, T4)),
        ("GPU-aabb", (L4,)),
        ("GPU-aa", ()),  # of two
        ("", ()),
        ("-1", ()),
        ("0,7,1", (T4,)),
        ("MIG-aaaa", ()),
    ],
)
def test_what_cuda_visible_devices_leaves(named: str | None, wanted: tuple[Gpu, ...]) -> None:
    environment = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    assert visible((T4, L4), environment) == wanted
