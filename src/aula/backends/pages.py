"""Memory that a process holds without need once an engine runs, and how it goes back to the system.

A runtime maps the file of weights that lies beside an ONNX file, and makes copies of its own in the order in which it
reads them. From then on the mapped pages are only held: 240 MB of Whisper-small in int8. So is what the C library keeps
of everything that was freed while a graph was compiled, and so is the code that compiled it: of OpenVINO's 50 MB a run
needs 18, of ONNX Runtime's 22 it needs 9.
"""

import ctypes
import sys
from pathlib import Path

_DONT_NEED = 4
"""MADV_DONTNEED of Linux: the pages go, and come back from the file where somebody reads them after all."""


def give_back(model: Path, runtime: Path) -> None:
    """Of the weights beside `model`, of libraries below the folder `runtime`, and of the heap. Where the system knows
    no such thing, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    for start, end in _mapped(model.resolve().parent, runtime.resolve()):
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONT_NEED)
    trim_heap()


def trim_heap() -> None:
    """What was freed and the C library keeps goes back to the system; a few milliseconds for some ten megabytes."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc's
            library.malloc_trim(0)


def _mapped(weights: Path, runtime: Path) -> list[tuple[int, int]]:
    """Where files of weights in the one folder and libraries below the other are mapped for reading, and nobody has
    written: those pages are in the file. The linker writes into some that are for reading only later on; the system
    counts such pages as anonymous (proc_pid_smaps(5))."""
    places: list[tuple[int, int]] = []
    span = ""
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            path = Path(rest[4]) if len(rest) == 5 else Path()
            ours = (path.suffix == ".data" and path.parent == weights) or path.is_relative_to(runtime)
            span = first if ours and rest[0].startswith("r-") else ""
        elif span and first == "Anonymous:" and rest[0] == "0":
            start, end = (int(place, 16) for place in span.split("-"))
            places.append((start, end))
    return places
