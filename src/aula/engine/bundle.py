"""A bundle on this machine: checked first, opened then."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.selecting import SelectingSession
from aula.backends.session import (
    BACKENDS,
    Session,
    SessionOptions,
    StatePair,
    available_backends,
    computes,
    open_session,
    runtime_version,
)
from aula.backends.sizes import Bounds
from aula.core.errors import BundleError
from aula.engine.files import check_file
from aula.engine.manifest import Manifest, Part, TargetEngine
from aula.engine.preflight import check_plan, machine_card
from aula.engine.recipe import WHOLE
from aula.engine.targets import MIXED


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

    def check(self, target: str | None = None) -> None:
        """Raises VerificationError unless every file, or every one of that target, is byte for byte the one that was
        proven."""
        for part in self.manifest.parts.values():
            for name, engine in part.engines.items():
                for file in engine.files if target in (None, name) else ():
                    check_file(self.files, file)

    def model_file(self, part: str = WHOLE, target: str = "cpu", profile: str | None = None) -> Path:
        """The file that the backend loads, for a profile that has one of its own the profile's. Raises
        VerificationError for bytes that changed."""
        engine = self.engine(part, target)
        paths = {file.digest: check_file(self.files, file) for file in engine.files}
        return paths[engine.plans.get(profile or "", engine.files[0].digest)]

    def open(
        self,
        part: str = WHOLE,
        profile: str | None = None,
        *,
        target: str = "cpu",
        device: int = 0,
        hosting: Hosting | None = None,
    ) -> Session:
        """A session on one part, for all sizes, or compiled for those of one profile; on a GPU on the one with that
        number. With `hosting` it lives in a process of its own, all profiles in one.

        Everything is checked before a runtime reads the first byte. Raises BundleError for another target, GPU, driver
        or backend version than was proven, VerificationError for changed bytes, BackendError for what the runtime says.
        """
        if hosting is not None:
            return HostedSession(functools.partial(self.open, part, profile, target=target, device=device), hosting)
        engine = self.engine(part, target)
        if profile is not None and profile not in engine.profiles:
            engine.bounds(profile)
        self.preflight(engine, target, device)
        if not engine.plans:
            return open_session(engine.backend, self.model_file(part, target), self.options(part, profile, target))
        if profile is not None:
            return self._open_plan(part, profile, target, device)
        if engine.states:
            raise BundleError(
                f"{self.manifest.key}, part {part}: its states stay in one engine",
                available=list(engine.profiles),
                next_step="open it for one of these profiles",
            )
        return SelectingSession(
            {name: engine.bounds(name) for name in engine.profiles},
            {name: functools.partial(self._open_plan, part, name, target, device) for name in engine.profiles},
        )

    def options(
        self, part: str = WHOLE, profile: str | None = None, target: str = "cpu", device: int = 0
    ) -> SessionOptions:
        """How the engine was proven, and so how it is opened."""
        engine = self.engine(part, target)
        bounds = {} if profile is None else engine.bounds(profile)
        return session_options(
            self.precision_here(engine),
            min(engine.threads, os.cpu_count() or 1),
            states=engine.states,
            bounds=bounds,
            dynamic_quantisation=engine.dynamic_quantisation,
            digest=engine.plans.get(profile or "", engine.files[0].digest),
            device=device,
            weights=self._weights(engine, profile),
        )

    def precision_here(self, engine: TargetEngine) -> str:
        """What the engine is proven in; an int8+bf16 engine on a processor without BF16 is opened as plain int8, if
        that passed the same gate: the graph is the same."""
        passed = any(
            (one.backend, one.precision, one.rejected) == (engine.backend, "int8", None) for one in engine.candidates
        )
        if engine.precision == MIXED and passed and not computes(engine.backend, "bf16"):
            return "int8"
        return engine.precision

    def _weights(self, engine: TargetEngine, profile: str | None) -> Path | None:
        digest = engine.weights.get(profile or "")
        return next((self.files / file.name for file in engine.files if file.digest == digest), None)

    def preflight(self, engine: TargetEngine, target: str = "cpu", device: int = 0) -> None:
        """Raises BundleError where this machine has another release of the backend than the engine was proven with, or,
        for a GPU's engine, another GPU or an older driver: it names both, and the command that builds the right one."""
        package = BACKENDS[engine.backend].runtime
        if engine.backend not in available_backends(BACKENDS[engine.backend].device):
            return  # opening says what to install
        installed = runtime_version(engine.backend)
        if engine.device is not None:
            check_plan(self.manifest, engine, engine.device, installed, machine_card(device), target)
        elif _series(installed) != _series(engine.backend_version):
            raise BundleError(
                f"the bundle {self.manifest.key} was proven with {package} {engine.backend_version}; "
                f"this machine has {installed}",
                next_step=f"prove it with this version: aula build {self.manifest.name}, "
                f"or install the other: pip install {package}=={engine.backend_version}",
            )

    def _open_plan(self, part: str, profile: str, target: str, device: int) -> Session:
        path = self.model_file(part, target, profile)
        return open_session(self.engine(part, target).backend, path, self.options(part, profile, target, device))


def session_options(
    precision: str,
    threads: int,
    *,
    states: tuple[StatePair, ...] = (),
    bounds: Bounds | None = None,
    dynamic_quantisation: int | None = None,
    digest: str = "",
    device: int = 0,
    weights: Path | None = None,
) -> SessionOptions:
    """The one way from what a manifest says to what a backend is told. int8 graphs compute the rest in fp32, unless
    the precision says int8+bf16."""
    arithmetic = "bf16" if precision == MIXED else precision
    return SessionOptions(
        threads=threads,
        precision=arithmetic if arithmetic in ("bf16", "fp16") else "fp32",
        states=states,
        bounds=bounds or {},
        dynamic_quantisation=dynamic_quantisation,
        digest=digest,
        device=device,
        weights=weights,
    )


def _series(version: str) -> tuple[str, ...]:
    """Year and release: patches of one release read the same graphs."""
    return tuple(version.split(".")[:2])
