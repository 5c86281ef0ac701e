"""CUDA kernels of our own, as source, and their compiler."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from aula.core.errors import BackendError

DECODER = "decoder.cu"
COMPILE_SECONDS = 300
_INSTALL = 'pip install "aula[gpu]", which brings NVRTC; or put nvcc of the CUDA toolkit on the PATH'


@cache
def source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def compile_kernels(text: str, capability: str) -> bytes:
    """A cubin for the compute capability ("9.0"), by NVRTC, or by nvcc where that is not installed. No GPU is needed.

    Raises BackendError where there is neither, or for source that does not compile.
    """
    architecture = f"sm_{capability.replace('.', '')}"
    nvrtc = _nvrtc()
    if nvrtc is not None:
        return _by_nvrtc(nvrtc, text, architecture)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise BackendError("there is no compiler for CUDA kernels here", next_step=_INSTALL)
    return _by_nvcc(nvcc, text, architecture)


def compiler_here() -> str:
    """ "nvrtc", "nvcc" or ""."""
    return "nvrtc" if _nvrtc() is not None else "nvcc" if shutil.which("nvcc") else ""


@cache
def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception:  # cuda-python raises types of its own where the library itself is missing
        return None
    return nvrtc


def _by_nvrtc(nvrtc: Any, text: str, architecture: str) -> bytes:
    def call(name: str, *arguments: Any) -> Any:
        error, *values = getattr(nvrtc, name)(*arguments)
        if int(error) != 0 and name != "nvrtcCompileProgram":
            raise BackendError(f"NVRTC says: error {int(error)} in {name}", next_step=_INSTALL)
        return int(error) if name == "nvrtcCompileProgram" else values[0] if values else None

    program = call("nvrtcCreateProgram", text.encode(), b"kernels.cu", 0, [], [])
    try:
        options = [
            f"--gpu-architecture={architecture}".encode(),
            b"--std=c++17",
            b"--device-as-default-execution-space",
        ]
        failed = call("nvrtcCompileProgram", program, len(options), options)
        if failed:
            said = b" " * call("nvrtcGetProgramLogSize", program)
            call("nvrtcGetProgramLog", program, said)
            raise _refused(said.decode(errors="replace"), architecture)
        image: bytes = b" " * call("nvrtcGetCUBINSize", program)
        call("nvrtcGetCUBIN", program, image)
        return image
    finally:
        call("nvrtcDestroyProgram", program)


def _by_nvcc(nvcc: str, text: str, architecture: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        path.write_text(text, encoding="utf-8")
        command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-O3", "-o", str(made), str(path)]
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"{nvcc} did not compile the kernels: {error}", next_step=_INSTALL) from error
        if done.returncode:
            raise _refused(done.stderr or done.stdout, architecture)
        return made.read_bytes()


def _refused(said: str, architecture: str) -> BackendError:
    lines = [line for line in said.replace("\0", "").splitlines() if "error" in line] or said.splitlines()
    return BackendError(
        f"kernels for {architecture} do not compile: {lines[0].strip() if lines else 'no reason given'}",
        next_step="a compiler too old or too new for this GPU? NVRTC 12.6 or later compiles for all targets",
    )
