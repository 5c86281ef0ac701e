"""Memory that a process holds without need once an engine runs, and how it goes back to the system.

A runtime maps the file of weights that lies beside an ONNX file, and makes copies of its own in the order in which it
reads them. From then on the mapped pages are only held: 240 MB of Whisper-small in int8. So is what the C library keeps
of everything that was freed while a graph was compiled, and so is the code that compiled it: of OpenVINO's 37 MB a run
needs 13.
"""

import ctypes
import sys
from pathlib import Path

_DONT_NEED = 4
"""MADV_DONTNEED of Linux: the pages go, and come back from the file where somebody reads them after all."""


def give_back(model: Path, runtime: Path) -> None:
    """Of the weights beside `model`, of the code of libraries below the folder `runtime`, and of the heap. Where the
    system knows no such thing, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    for start, end in _mapped(model.resolve().parent, runtime.resolve()):
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONT_NEED)
    if hasattr(library, "malloc_trim"):  # glibc's
        library.malloc_trim(0)


def _mapped(weights: Path, runtime: Path) -> list[tuple[int, int]]:
    """Where files are mapped whose pages nobody wrote, so that they are in the file: of weights in the one folder, and
    code below the other. What is read alone may have been written: the linker does so before it locks a library's
    tables."""
    places = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        path = Path(name[0]) if name else Path()
        is_weights = path.suffix == ".data" and path.parent == weights and rights.startswith("r--")
        if is_weights or (rights.startswith("r-x") and path.is_relative_to(runtime)):
            start, end = (int(place, 16) for place in span.split("-"))
            places.append((start, end))
    return places
