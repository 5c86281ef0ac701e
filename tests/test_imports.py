"""Importing aula starts nothing and loads no heavy runtime; every module imports where none is installed."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"

HEAVY = (
    "espeakng_loader",
    "filelock",
    "fsspec",
    "huggingface_hub",
    "magika",
    "markitdown",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "pdfminer",
    "pocketsphinx",
    "safetensors",
    "silero_vad",
    "sounddevice",
    "soundfile",
    "soxr",
    "spox",
    "tensorrt",
    "tokenizers",
    "torch",
    "transformers",
    "webvtt",
)
RUNTIME_MODULES = {"aula.backends.openvino", "aula.backends.onnxrt"}
"""These are the runtimes' own adapters: `open_session` imports them, nothing else may."""

_PROGRAM = """
import importlib.abc, logging, pkgutil, sys, threading

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
import aula
for module in pkgutil.walk_packages(aula.__path__, "aula."):
    if module.name not in RUNTIME_MODULES and not module.name.endswith("__main__"):
        __import__(module.name)
        print(module.name)
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers, "importing configured logging"
"""


def test_every_module_imports_without_the_heavy_runtimes_and_starts_nothing() -> None:
    program = f"HEAVY = {HEAVY!r}\nRUNTIME_MODULES = {RUNTIME_MODULES!r}\n{_PROGRAM}"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE), "PATH": ""},
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "aula.runtime" in finished.stdout
