"""Floor 5: what this machine can run, found out by trying, and what to install for more."""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aula.audio.devices import describe_devices
from aula.backends.gpus import Gpu, list_gpus
from aula.backends.kernels import compiler_here
from aula.backends.session import BACKENDS, Backend, runtime_version
from aula.core.errors import BackendError
from aula.core.settings import TABLE, Settings, settings_files
from aula.core.types import Licence
from aula.engine.identity import usable_cores
from aula.engine.manifest import TargetEngine
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.runtime import RungReport, Runtime

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
"""Instruction sets that decide how fast an engine can be, as Linux names them."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was looked for. `advice` says how to get it where it is missing."""

    name: str
    present: bool
    details: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: tuple[Part, ...]
    backends: tuple[Part, ...]
    targets: tuple[Part, ...]
    rungs: tuple[RungReport, ...]
    devices: tuple[str, ...]
    engines: tuple[Part, ...]
    settings: dict[str, Any]
    settings_files: tuple[Part, ...]
    licences: tuple[Licence, ...]

    @property
    def healthy(self) -> bool:
        """Whether every capability has at least one rung that loads."""
        wanted = {report.info.capability for report in self.rungs}
        return wanted == {report.info.capability for report in self.rungs if report.error is None}


async def diagnose(settings: Settings, runtime: Runtime) -> Diagnosis:
    """Look at everything and load every rung once; builds the engines that are not built yet."""
    rungs = tuple(await runtime.probe())
    licences = {licence for report in rungs for licence in report.info.licences}
    return Diagnosis(
        machine=_machine(),
        backends=tuple(_backend(backend) for backend in BACKENDS.values()),
        targets=_targets(),
        rungs=rungs,
        devices=tuple(describe_devices()),
        engines=_engines(settings),
        settings={setting.name: settings.text(setting.name) for setting in TABLE},
        settings_files=tuple(Part(str(path), path.is_file(), "") for path in settings_files()),
        licences=tuple(sorted(licences, key=lambda licence: licence.component)),
    )


def _machine() -> tuple[Part, ...]:
    name, flags = _processor()
    return (
        Part("Python", True, f"{platform.python_version()} at {Path(sys.executable).name}"),
        Part("system", True, platform.platform()),
        Part("processor", True, f"{name}, {usable_cores()} cores for this process"),
        Part("instruction sets", bool(flags), " ".join(flags) or "unknown"),
        Part("memory", True, _memory()),
    )


def _processor() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), []
    pairs = (line.partition(":") for line in reversed(text.splitlines()))
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), [feature for feature in FEATURES if feature in flags]


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _backend(backend: Backend) -> Part:
    if not backend.installed:
        return Part(backend.name, False, "not installed", backend.install)
    return Part(backend.name, True, runtime_version(backend.name))


def _targets() -> tuple[Part, ...]:
    """cpu always; a GPU's target needs a driver, cuda-python and TensorRT, each of which is tried."""
    cpu = Part("cpu", True, "OpenVINO and ONNX Runtime, the faster of them by measurement")
    gpus = list_gpus()
    if not gpus:
        advice = "engines for GPUs are built where they are: aula build MODEL --targets sm75,sm89,cpu --plan-ci github"
        names = ", ".join(f"{target.name} {'/'.join(target.products)}" for target in TARGETS.values() if target.is_gpu)
        return (cpu, Part(f"GPU ({names})", False, "no NVIDIA driver was found here", advice))
    return (cpu, *(_gpu(gpu) for gpu in gpus), *_gpu_runtimes())


def _gpu(gpu: Gpu) -> Part:
    """One card, and the target that its engines are built for."""
    target = next((target for target in TARGETS.values() if target.capability == gpu.capability), None)
    told = f"{gpu.memory_bytes / 2**30:.0f} GiB, compute capability {gpu.capability}, driver {gpu.driver}"
    name = f"GPU {gpu.index}: {gpu.name}"
    if target is None:
        known = ", ".join(f"{one.name} ({one.capability})" for one in TARGETS.values() if one.is_gpu)
        return Part(name, False, told, f"no target is built for it; there are {known}")
    return Part(name, True, f"{told}: target {target.name}")


def _gpu_runtimes() -> tuple[Part, ...]:
    """CUDA and TensorRT as sessions open them. Whatever is missing comes with one extra."""
    install = 'pip install "aula[gpu]"'
    parts = []
    try:
        from aula.backends.cuda import Cuda

        cuda = Cuda.open()
        parts.append(Part("CUDA", True, f"the driver serves CUDA {cuda.driver()}"))
    except BackendError as error:
        advice = error.next_step if "pip install" in error.next_step else "install NVIDIA's driver, 525 or newer"
        parts.append(Part("CUDA", False, error.what, advice))
    try:
        from aula.backends.tensorrt_runtime import Runtime as TensorRt

        parts.append(Part("TensorRT", True, f"{TensorRt.load().version}, loads"))
    except BackendError as error:
        parts.append(Part("TensorRT", False, error.what, install))
    compiler = compiler_here()
    parts.append(
        Part("kernels", True, f"compiled by {compiler}") if compiler else Part("kernels", False, "no NVRTC", install)
    )
    return tuple(parts)


def _engines(settings: Settings) -> tuple[Part, ...]:
    return tuple(
        Part(bundle.manifest.name, True, _proven(part.engines["cpu"]))
        for bundle in Store(settings.home / "engines").all()
        for part in bundle.manifest.parts.values()
        if "cpu" in part.engines
    )


def _proven(engine: TargetEngine) -> str:
    times = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in engine.chosen.milliseconds.items())
    return f"{engine.precision} on {engine.backend} {engine.backend_version}: {times}"
