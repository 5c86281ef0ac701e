"""What plans are made with on this machine: TensorRT's builder, one GPU of the right kind, timings of earlier
builds."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aula.backends.kernel_program import SUFFIX as KERNELS
from aula.backends.kernels import compile_kernels
from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import BackendError, StorageError
from aula.core.files import write_atomically
from aula.engine.plans import Extents, Plan, PlanBuilder, PlanOptions
from aula.engine.preflight import Card, machine_card
from aula.engine.targets import Target


class Builder(Protocol):
    """What `PlanBuilder` is to a build; tests have another."""

    @property
    def typed(self) -> bool: ...

    def build(
        self,
        model: Path,
        precision: str,
        profiles: Sequence[Mapping[str, Sequence[Extents]]],
        options: PlanOptions,
        *,
        cache: bytes = b"",
    ) -> Plan: ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """`version` is TensorRT's. `open` loads a plan, or compiled kernels."""

    builder: Builder
    version: str
    card: Card
    open: Callable[[Path, SessionOptions], Session]
    compile: Callable[[str, str], bytes] = compile_kernels
    """CUDA C++ for a compute capability: a cubin."""

    @classmethod
    def here(cls, target: Target) -> "Workshop":
        """On this process's first GPU of that kind. Raises BackendError where there is none, or no TensorRT, with the
        command that builds where there is one."""
        from aula.backends.cuda import Cuda
        from aula.backends.tensorrt_runtime import Runtime

        elsewhere = (
            f"on such a machine: aula build MODEL --target {target.name}; or let pipelines do it: --plan-ci github"
        )
        try:
            first = Cuda.open()
        except BackendError as error:
            raise BackendError(
                f"an engine for {target.name} ({', '.join(target.products)}) is built on such a GPU: {error.what}",
                next_step=elsewhere,
            ) from error
        found = {}
        for number in range(first.count()):
            card = machine_card(number)
            if card.capability == target.capability:
                runtime = Runtime.load()
                return cls(PlanBuilder(runtime), runtime.version, card, _open_plan)
            found[card.name] = card.capability
        raise BackendError(
            f"an engine for {target.name} needs a GPU of compute capability {target.capability} "
            f"({', '.join(target.products)})",
            available=[f"{name} ({capability})" for name, capability in found.items()],
            next_step=elsewhere,
        )

    def timings(self, folder: Path) -> "Timings":
        return Timings(folder, f"{self.card.name} {self.card.capability} {self.card.driver} {self.version}")


class Timings:
    """TensorRT's timing cache of one kind of GPU, driver and release, as a file. Losing it costs time, nothing else:
    what cannot be read is empty, what cannot be written is left."""

    def __init__(self, folder: Path, machine: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", machine).strip("-")
        self.path = folder / f"{readable}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}.cache"

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> None:
        if not content:
            return
        try:
            write_atomically(self.path, lambda file: file.write(content))
        except (OSError, StorageError):
            return


def _open_plan(path: Path, options: SessionOptions) -> Session:
    return open_session("kernels" if path.suffix == KERNELS else "tensorrt", path, options)
