"""What is known of a bundle, and the reader that trusts nothing.

A manifest is data from elsewhere: it may be damaged, old or hostile. It is decoded into these frozen records with every
type and name checked, and a file is only ever named by the SHA-256 of its bytes, so no name can lead out of the store.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import msgspec

from aula.backends.session import BACKENDS, StatePair
from aula.core.errors import BundleError
from aula.core.types import Licence
from aula.engine.recipe import Origin

FORMAT = 3
"""Raised when a reader of the older form could misunderstand the newer."""
_REBUILD = "build it again: aula build MODEL --rebuild"

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}-[0-9a-f]{16}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Extent = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Version = Annotated[str, msgspec.Meta(pattern=r"^[\w.+-]{1,64}$")]
Record = TypeVar("Record")
NO_SEAL = "0" * 64


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store: the SHA-256 and the number of its bytes, and what it ends in."""

    digest: Digest
    suffix: Annotated[str, msgspec.Meta(pattern=r"^\.(onnx|data|plan)$")]
    bytes: Count

    @property
    def name(self) -> str:
        return self.digest + self.suffix


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision on one backend: median milliseconds at each profile's usual sizes, the largest error relative
    to the reference, the task's metric, how many layers truly run in which precision (empty where the backend does
    not tell); or why it was left out."""

    backend: str
    version: str
    precision: str
    milliseconds: Mapping[str, float]
    relative_error: float | None
    metric: float | None = None
    layers: Mapping[str, Count] = field(default_factory=dict)
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """What a lower precision was held to: the best fp32 engine's metric on labelled examples, and the drop allowed."""

    metric: str
    reference: float
    examples: Count
    digest: str
    most_drop: float


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the int8 graph was made: from which real data, by which method, with which layers left in fp32."""

    method: str
    examples: Count
    source: str
    digest: str
    restored: tuple[str, ...]
    tried: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a graph consists of, and what one run costs at the first profile's usual sizes: `operations` of matrix
    products and convolutions, a multiply-add being two, and `read_bytes` of weights that are read."""

    operators: Count
    parameters: Count
    weight_bytes: Count
    operations: Count
    read_bytes: Count


@dataclass(frozen=True, slots=True)
class TargetEngine:
    """The engine of one part for one target. `files[0]` is what the backend loads, the others lie beside it.

    `graph` is the shipped graph's size. `machine` names the processor it was proven on.
    """

    backend: str
    backend_version: Version
    precision: str
    threads: Threads
    machine: str
    files: Annotated[tuple[StoredFile, ...], msgspec.Meta(min_length=1)]
    graph: GraphSize
    gate: Gate | None
    quantisation: Quantisation | None
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return next(
            candidate
            for candidate in self.candidates
            if (candidate.backend, candidate.precision) == (self.backend, self.precision)
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of the model. `inputs` gives every input's axes, a number where it is fixed and a name where it is
    free; `profiles` gives least, usual and greatest of every free dimension; `written` is the size of the graph as
    the recipe wrote it. `dynamic_quantisation` as in SessionOptions."""

    sources: Mapping[str, Digest]
    inputs: Mapping[str, tuple[int | str, ...]]
    profiles: Mapping[str, Mapping[str, tuple[Extent, Extent, Extent]]]
    states: tuple[StatePair, ...]
    dynamic_quantisation: Count | None
    written: GraphSize
    engines: Mapping[str, TargetEngine]

    def bounds(self, profile: str) -> dict[str, tuple[tuple[int, int], ...]]:
        """Least and greatest size of every axis of every input. Raises BundleError for a profile that is not here."""
        if profile not in self.profiles:
            raise BundleError(
                f"there is no profile {profile!r}", available=list(self.profiles), next_step="name one of these"
            )
        sizes = self.profiles[profile]
        return {
            name: tuple((axis, axis) if isinstance(axis, int) else (sizes[axis][0], sizes[axis][2]) for axis in axes)
            for name, axes in self.inputs.items()
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle: one model's parts, each with its engines by target. `key` says what went in, `seal` is the SHA-256 of
    all the rest (see `sealed`): it shows damage, not who wrote it."""

    format: int
    name: str
    key: Key
    builder: str
    origin: Origin | None
    licences: tuple[Licence, ...]
    seeded: bool
    parts: Mapping[str, Part]
    seal: Digest = NO_SEAL

    @property
    def targets(self) -> list[str]:
        """Those that every part has an engine for."""
        shared = set.intersection(*(set(part.engines) for part in self.parts.values()))
        return sorted(shared)


def sealed(manifest: Manifest) -> Manifest:
    """With the digest of its own content, in JSON without spaces and with the seal all zeros."""
    content = msgspec.json.encode(replace(manifest, seal=NO_SEAL))
    return replace(manifest, seal=hashlib.sha256(content).hexdigest())


def write_manifest(manifest: Manifest) -> bytes:
    """JSON for machines and curious people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def read_manifest(content: bytes, name: str) -> Manifest:
    """The manifest in `content`; `name` is for messages. Raises BundleError for anything that cannot be trusted."""
    manifest = _decode(content, name, Manifest)
    if manifest.format != FORMAT:
        raise BundleError(
            f"the manifest {name} has form {manifest.format}; this version of aula reads form {FORMAT}",
            next_step=_REBUILD,
        )
    if not manifest.parts or not manifest.targets:
        raise BundleError(f"the manifest {name} has no engine for all of its parts", next_step=_REBUILD)
    for part_name, part in manifest.parts.items():
        check_part(part, f"{name}, part {part_name}")
    if sealed(manifest).seal != manifest.seal:
        raise BundleError(f"the manifest {name} has changed since it was written", next_step=_REBUILD)
    return manifest


def write_part(part: Part) -> bytes:
    return msgspec.json.encode(part)


def read_part(content: bytes, name: str) -> Part:
    """A part that was finished before its bundle. Raises BundleError."""
    part = _decode(content, name, Part)
    check_part(part, name)
    return part


def check_part(part: Part, name: str) -> None:
    """Raises BundleError where fields contradict each other."""
    free = {axis for axes in part.inputs.values() for axis in axes if isinstance(axis, str)}
    for profile, sizes in part.profiles.items():
        if not free <= set(sizes):
            missing = ", ".join(sorted(free - set(sizes)))
            raise BundleError(f"{name}: profile {profile} has no sizes for {missing}", next_step=_REBUILD)
        for dimension, (least, usual, greatest) in sizes.items():
            if not least <= usual <= greatest:
                raise BundleError(
                    f"{name}: {dimension} of profile {profile} does not rise: {least}, {usual}, {greatest}",
                    next_step=_REBUILD,
                )
    for target, engine in part.engines.items():
        if engine.backend not in BACKENDS:
            raise BundleError(
                f"{name}: the engine for {target} wants the backend {engine.backend!r}",
                available=list(BACKENDS),
                next_step=_REBUILD,
            )
        if not any((c.backend, c.precision) == (engine.backend, engine.precision) for c in engine.candidates):
            raise BundleError(f"{name}: the engine for {target} is not among its candidates", next_step=_REBUILD)


def _decode(content: bytes, name: str, kind: type[Record]) -> Record:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"the manifest {name} cannot be trusted: {error}", next_step=_REBUILD) from error
