"""The NVIDIA GPUs of this machine, asked of the management library that comes with the driver.

CUDA itself is not asked: whoever initialises it keeps the devices that CUDA_VISIBLE_DEVICES named then, and a process
that starts others for other GPUs must not have chosen.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_FIELDS = "index,uuid,name,compute_cap,driver_version,memory.total"
_TEXT = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE; a driver's version takes 80 (nvml.h)."""
_ANSWER_SECONDS = 20.0
"""nvidia-smi takes a second where a driver has to be loaded first."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """`index` is its place on the PCI bus, `uuid` what CUDA_VISIBLE_DEVICES takes, `capability` like "8.9".
    `used_bytes` is of the moment, whoever uses them; 0 where only the command could be asked."""

    index: int
    uuid: str
    name: str
    capability: str
    driver: str
    memory_bytes: int
    used_bytes: int = 0


def list_gpus() -> tuple[Gpu, ...]:
    """Every GPU that CUDA_VISIBLE_DEVICES leaves to this process; none where there is no driver. Raises nothing."""
    try:
        found = _from_library() or _from_command()
    except Exception:  # a driver half installed fails in ways of its own, and means that no GPU can be used
        return ()
    return visible(found, os.environ)


def visible(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names by index or by the beginning of the UUID, up to the first that is not
    there, as CUDA reads it (CUDA C++ programming guide, environment variables)."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for word in (part.strip() for part in named.split(",")):
        matching = [gpu for gpu in gpus if word and (word == str(gpu.index) or gpu.uuid.startswith(word))]
        if len(matching) != 1:
            break
        chosen += matching
    return tuple(chosen)


def _from_library(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[Gpu, ...]:
    library = _library(load)
    if library is None or library.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        _must(library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        driver = _text(library.nvmlSystemGetDriverVersion)
        return tuple(_gpu(library, index, driver) for index in range(count.value))
    finally:
        library.nvmlShutdown()


def _library(load: Callable[[str], Any]) -> Any:
    for name in _LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    return None


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _gpu(library: Any, index: int, driver: str) -> Gpu:
    device, memory = ctypes.c_void_p(), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _must(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
    _must(library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)))
    _must(library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
    return Gpu(
        index=index,
        uuid=_text(library.nvmlDeviceGetUUID, device),
        name=_text(library.nvmlDeviceGetName, device),
        capability=f"{major.value}.{minor.value}",
        driver=driver,
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
    )


def _text(function: Any, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(_TEXT)
    _must(function(*arguments, buffer, ctypes.c_uint(_TEXT)))
    return buffer.value.decode(errors="replace")


def _must(code: int) -> None:
    if code != 0:
        raise OSError(f"NVML answers {code}")


def _from_command() -> tuple[Gpu, ...]:
    """What nvidia-smi says, where the library cannot be loaded: a container may carry the command alone."""
    try:
        told = subprocess.run(  # noqa: S603 - words of our own
            ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],  # noqa: S607 - wherever it is
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_table(told.stdout)


def read_table(text: str) -> tuple[Gpu, ...]:
    """Lines of _FIELDS between commas, the memory in MiB; a line that says something else names no GPU."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 6 and cells[0].isdecimal() and cells[5].isdecimal():
            index, uuid, name, capability, driver, memory = cells
            found.append(Gpu(int(index), uuid, name, capability, driver, int(memory) * 2**20))
    return tuple(found)
