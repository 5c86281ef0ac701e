"""A bundle on this machine: checked first, opened then."""

import os
from dataclasses import dataclass
from pathlib import Path

from aula.backends.session import (
    BACKENDS,
    Session,
    SessionOptions,
    StatePair,
    available_backends,
    open_session,
    runtime_version,
)
from aula.backends.sizes import Bounds
from aula.core.errors import BundleError
from aula.engine.files import check_file
from aula.engine.manifest import Manifest, Part, TargetEngine
from aula.engine.recipe import WHOLE


@dataclass(frozen=True, slots=True)
class Bundle:
    """`files` is the folder in which its files lie, by digest."""

    manifest: Manifest
    files: Path

    def part(self, name: str = WHOLE) -> Part:
        """Raises BundleError for a part that is not here."""
        parts = self.manifest.parts
        if name not in parts:
            raise BundleError(
                f"the bundle {self.manifest.key} has no part {name!r}",
                available=list(parts),
                next_step="name one of these",
            )
        return parts[name]

    def engine(self, part: str = WHOLE, target: str = "cpu") -> TargetEngine:
        """Raises BundleError where the bundle has no engine for that target."""
        engines = self.part(part).engines
        if target not in engines:
            raise BundleError(
                f"the bundle {self.manifest.key} has no engine for {target}",
                available=list(engines),
                next_step=f"aula build {self.manifest.name} --target {target}",
            )
        return engines[target]

    def check(self) -> None:
        """Raises VerificationError unless every file is byte for byte the one that was proven."""
        for part in self.manifest.parts.values():
            for engine in part.engines.values():
                for file in engine.files:
                    check_file(self.files, file)

    def model_file(self, part: str = WHOLE, target: str = "cpu") -> Path:
        """The file that the backend loads. Raises VerificationError for bytes that changed."""
        paths = [check_file(self.files, file) for file in self.engine(part, target).files]
        return paths[0]

    def open(self, part: str = WHOLE, profile: str | None = None, *, target: str = "cpu") -> Session:
        """A session on one part, for all sizes, or compiled for those of one profile.

        Everything is checked before a runtime reads the first byte. Raises BundleError for another target or
        backend version than was proven, VerificationError for changed bytes, BackendError for what the runtime says.
        """
        engine = self.engine(part, target)
        self.preflight(engine)
        return open_session(engine.backend, self.model_file(part, target), self.options(part, profile, target))

    def options(self, part: str = WHOLE, profile: str | None = None, target: str = "cpu") -> SessionOptions:
        """How the engine was proven, and so how it is opened."""
        engine = self.engine(part, target)
        bounds = {} if profile is None else engine.bounds(profile)
        return session_options(
            engine.precision,
            min(engine.threads, os.cpu_count() or 1),
            states=engine.states,
            bounds=bounds,
            dynamic_quantisation=engine.dynamic_quantisation,
        )

    def preflight(self, engine: TargetEngine) -> None:
        """Raises BundleError where this machine has another release of the backend than the engine was proven with."""
        package = BACKENDS[engine.backend].runtime
        if engine.backend not in available_backends():
            return  # opening says what to install
        installed = runtime_version(engine.backend)
        if _series(installed) != _series(engine.backend_version):
            raise BundleError(
                f"the bundle {self.manifest.key} was proven with {package} {engine.backend_version}; "
                f"this machine has {installed}",
                next_step=f"prove it with this version: aula build {self.manifest.name}, "
                f"or install the other: pip install {package}=={engine.backend_version}",
            )


def session_options(
    precision: str,
    threads: int,
    *,
    states: tuple[StatePair, ...] = (),
    bounds: Bounds | None = None,
    dynamic_quantisation: int | None = None,
) -> SessionOptions:
    """The one way from what a manifest says to what a backend is told. int8 graphs compute the rest in fp32."""
    return SessionOptions(
        threads=threads,
        precision=precision if precision in ("bf16", "fp16") else "fp32",
        states=states,
        bounds=bounds or {},
        dynamic_quantisation=dynamic_quantisation,
    )


def _series(version: str) -> tuple[str, ...]:
    """Year and release: patches of one release read the same graphs."""
    return tuple(version.split(".")[:2])
