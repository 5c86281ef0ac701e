"""An engine of our own kernels, as a file: what is launched, in which order, on which memory, with the weights.

The file is safetensors: weights and the compiled kernels as tensors, the rest as JSON in its metadata. Its kernels are
compiled for one compute capability and run as they are: a program is opened by its digest alone, as a plan is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import BackendError
from aula.core.types import TensorSpec

SUFFIX = ".kernels"
FORM = 1
_KEY, _IMAGE = "aula", "compiled kernels"
_AGAIN = "build it again: aula build MODEL --target ..."


@dataclass(frozen=True, slots=True)
class At:
    """Memory by name: an input, an output, a weight or a scratch buffer, `offset` bytes from its beginning."""

    name: str
    offset: int = 0


Argument = At | int | None
"""A place, a whole number of 64 bits, or no place (a null pointer)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """`block` threads in each of `grid` blocks, with `shared` bytes of dynamic shared memory a block."""

    kernel: str
    grid: tuple[int, int, int]
    block: int
    arguments: tuple[Argument, ...]
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """What runs from inputs to outputs. All sizes are fixed. `scratch` is bytes by name; `products` is how many matrix
    products run in each precision. `source` is CUDA C++ that needs no header; `early`: each kernel reads nothing that
    another wrote before it has waited for the kernel before it, so that it may begin early where a GPU can."""

    source: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch: Mapping[str, int]
    launches: tuple[Launch, ...]
    products: Mapping[str, int]
    early: bool = True
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A program and the kernels for one compute capability ("9.0")."""

    program: Program
    image: bytes
    capability: str


def check_program(program: Program) -> None:
    """Raises BackendError where a launch names memory that there is not, or begins behind its end."""
    sizes = {spec.name: None for spec in (*program.inputs, *program.outputs)}
    known: dict[str, int | None] = {**sizes, **program.scratch}
    known |= {name: array.nbytes for name, array in program.weights.items()}
    for launch in program.launches:
        for one in launch.arguments:
            if not isinstance(one, At):
                continue
            if one.name not in known:
                raise BackendError(
                    f"kernel {launch.kernel} takes {one.name!r}, which the program does not have",
                    available=sorted(known)[:20],
                    next_step=_AGAIN,
                )
            most = known[one.name]
            if one.offset < 0 or (most is not None and one.offset >= max(most, 1)):
                raise BackendError(
                    f"kernel {launch.kernel} begins {one.offset} bytes into {one.name}, which has {most}",
                    next_step=_AGAIN,
                )


def save_program(compiled: Compiled, path: Path) -> None:
    from safetensors.numpy import save_file

    program = compiled.program
    check_program(program)
    told = {
        "form": FORM,
        "capability": compiled.capability,
        "source": program.source,
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": [asdict(spec) for spec in program.outputs],
        "scratch": dict(program.scratch),
        "launches": [asdict(launch) for launch in program.launches],
        "products": dict(program.products),
        "early": program.early,
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in program.weights.items()}
    tensors[_IMAGE] = np.frombuffer(compiled.image, dtype=np.uint8)
    save_file(tensors, path, metadata={_KEY: json.dumps(told)})


def load_program(path: Path, digest: str) -> Compiled:
    """Raises BackendError for a file that nobody vouches for, another digest, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    if not digest:
        raise BackendError(
            f"nobody vouches for {path.name}: compiled kernels are opened by their digest alone",
            next_step="open it through its bundle, whose manifest tells the digest",
        )
    found = _digest(path)
    if found != digest:
        raise BackendError(
            f"{path.name} is not what its manifest vouches for: its SHA-256 is {found}, not {digest}", next_step=_AGAIN
        )
    try:
        with safe_open(str(path), framework="numpy") as file:
            told = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told["form"] != FORM:
            raise BackendError(f"{path.name} is of form {told['form']}, this release reads {FORM}", next_step=_AGAIN)
        image = tensors.pop(_IMAGE).tobytes()
        program = Program(
            source=str(told["source"]),
            inputs=_specs(told["inputs"]),
            outputs=_specs(told["outputs"]),
            scratch={str(name): int(count) for name, count in told["scratch"].items()},
            launches=tuple(_launch(one) for one in told["launches"]),
            products={str(name): int(count) for name, count in told["products"].items()},
            early=bool(told["early"]),
            weights=tensors,
        )
        check_program(program)
        return Compiled(program, image, str(told["capability"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"{path.name} is no program of kernels, or damaged ({type(error).__name__}: {error})", next_step=_AGAIN
        ) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror}", next_step=_AGAIN) from error


def _specs(told: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(one["name"]), str(one["dtype"]), tuple(map(int, one["shape"]))) for one in told)


def _launch(told: Mapping[str, Any]) -> Launch:
    x, y, z = map(int, told["grid"])
    arguments = tuple(
        At(str(one["name"]), int(one["offset"])) if isinstance(one, dict) else one for one in told["arguments"]
    )
    return Launch(str(told["kernel"]), (x, y, z), int(told["block"]), arguments, int(told["shared"]))
