"""What a figure was measured on."""

import importlib.metadata
import platform
from pathlib import Path

from aula.engine.build import usable_cores

PACKAGES = ("numpy", "onnxruntime", "openvino", "pocketsphinx", "espeakng-loader")


def machine() -> dict[str, str]:
    """Processor, cores, system and versions, for the table's head and the JSON line."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += " with AMX" if "amx_tile" in flags else ""
    except OSError:
        pass
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "processor": name,
        "cores": str(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
