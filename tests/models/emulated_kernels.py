"""The CUDA code of backends/kernels/decoder.cu itself, run on a processor: block by block, thread by thread.

`emulated(source)` are kernels for `FakeDriver`, in place of their arithmetic in numpy. g++ compiles the source with
emulated_cuda.cpp before it; what stands in PTX is said in C++, and tensor cores (TILE) are not emulated. Reading and
writing behind the ends of shared memory, and addresses that are not aligned, are told by g++'s sanitizer on stderr.
"""

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.backends.fake_driver import Kernel, Memory

COMPILER = shutil.which("g++")
_HALVES = """
DEVICE float widened(half_t one) { return _cvtsh_ss(one); }
DEVICE half_t narrowed(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
DEVICE float low(pair_t two) { return widened((half_t)two); }
DEVICE float high(pair_t two) { return widened((half_t)(two >> 16)); }
"""
_PTX = re.compile(r"^DEVICE \w+ (low|high|widened|narrowed)\(.*?^}\n", re.MULTILINE | re.DOTALL)
_TILES = re.compile(r"^DEVICE unsigned shared_address.*?(?=^// -+ what comes last$)", re.MULTILINE | re.DOTALL)
_WARPS = {"WALK": 5, "ATTEND": 4, "NORM": 3, "CHOICE": 3, "REPLY": 3}
"""Which of a macro's numbers says how many warps a block has; EMBED takes what it gets."""
_TAKEN = {
    "EMBED": "const int*, const int*, const half_t*, const half_t*, float*",
    "WALK": "const half_t*, const float*, const void*, void*, half_t*, const int*, const int*, const float*, Best*, "
    "const int*, float*",
    "ATTEND": "const half_t*, const half_t*, const half_t*, const int*, long long, half_t*",
    "NORM": "const float*, const float*, float*, half_t*",
    "CHOICE": "const Best*, const int*, int*, int*, float*",
    "REPLY": "const Best*, int*, int*, float*, int*, float*",
}
_INSTANCE = re.compile(r"^(\w+)\((\w+), (.*)\)$", re.MULTILINE)
_FLAGS = (
    *("-std=c++17", "-O1", "-mf16c", "-mavx2", "-mfma", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"),
    "-fsanitize=bounds,alignment",
)


def why_not() -> str:
    """Why nothing can be emulated here; empty where it can."""
    if COMPILER is None:
        return "there is no g++ here"
    flags = Path("/proc/cpuinfo")
    known = flags.read_text(encoding="utf-8").split() if flags.exists() else []
    if platform.machine() != "x86_64" or not {"f16c", "avx2", "fma"} <= set(known):
        return "the emulation is written for x86-64 with F16C, AVX2 and FMA"
    return ""


def emulated(source: str, folder: Path) -> Mapping[str, Kernel]:
    """Of a program's source; compiled into `folder`."""
    assert COMPILER is not None
    instances = [(macro, name, rest.split(", ")) for macro, name, rest in _INSTANCE.findall(source)]
    text = _TILES.sub("", _PTX.sub("", source))
    begin = text.index("DEVICE pair_t paired")
    cuda = Path(__file__).with_name("emulated_cuda.cpp").read_text(encoding="utf-8")
    text = cuda + text[:begin] + _HALVES + text[begin:]
    for macro, name, numbers in instances:
        warps = int(numbers[_WARPS[macro]]) if macro in _WARPS else 4
        taken = ", ".join(f"({kind})v[{place}]" for place, kind in enumerate(_TAKEN[macro].split(", ")))
        text += (
            f'extern "C" void run_{name}(long long* v, unsigned x, unsigned y, unsigned z) {{\n'
            f"  run_grid({{x, y, z}}, {32 * warps}, [=] {{ {name}({taken}); }});\n}}\n"
        )
    code, library = folder / "emulated.cpp", folder / "emulated.so"
    code.write_text(text, encoding="utf-8")
    subprocess.run([COMPILER, *_FLAGS, "-o", str(library), str(code)], check=True, timeout=300)
    loaded = ctypes.CDLL(str(library))
    names = {(macro, *numbers): name for macro, name, numbers in instances}

    def kernel(macro: str) -> Kernel:
        def run(_memory: Memory, numbers: list[str], values: tuple[int, ...], grid: tuple[int, int, int]) -> None:
            given = (ctypes.c_longlong * len(values))(*values)
            getattr(loaded, f"run_{names[(macro, *numbers)]}")(given, *grid)

        return run

    return {macro: kernel(macro) for macro in _TAKEN}
