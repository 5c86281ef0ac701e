"""What is known of a bundle, and the reader that trusts nothing.

A manifest is data from elsewhere: it may be damaged, old or hostile. It is decoded into these frozen records with every
type and name checked, and a file is only ever named by the SHA-256 of its bytes, so no name can lead out of the store.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeVar

import msgspec

from aula.backends.session import BACKENDS, StatePair
from aula.backends.sizes import Bounds
from aula.core.errors import BundleError
from aula.core.types import Licence
from aula.engine.recipe import ContextProof, Origin
from aula.engine.targets import PRECISIONS

FORMAT = 6
"""Raised when a reader of the older form could misunderstand the newer: 6 knows int8+bf16."""
READ = (5, FORMAT)
"""The forms that this version reads."""
_REBUILD = "build it again: aula build MODEL --rebuild"

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}-[0-9a-f]{16}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Extent = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]
Version = Annotated[str, msgspec.Meta(pattern=r"^[\w.+-]{1,64}$")]
Record = TypeVar("Record")
Axes = Mapping[str, tuple[int | str, ...]]
"""Every input's axes: a number where one is fixed, a name where it is free."""
Sizes = Mapping[str, Mapping[str, tuple[Extent, Extent, Extent]]]
"""By profile and free dimension: least, usual and greatest."""
NO_SEAL = "0" * 64


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store: the SHA-256 and the number of its bytes, and what it ends in."""

    digest: Digest
    suffix: Annotated[str, msgspec.Meta(pattern=r"^\.(onnx|data|plan|kernels)$")]
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
class Device:
    """The GPU that an engine was built on, and how far from it the engine still runs: on that kind of card alone, on
    every one from Ampere on, or on all of the same compute capability. `version_compatible` plans load in later
    releases of TensorRT too."""

    name: str
    capability: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]$")]
    driver: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$")]
    compatibility: Literal["exact", "ampere-plus", "same-capability"]
    version_compatible: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the engine's own inspector tells: `layers` of the engine made of `operators` of the graph, how many layers
    compute in which precision, and how many hold more than one operator (`fused`)."""

    precisions: Mapping[str, Count]
    operators: Count
    layers: Count
    fused: Count


@dataclass(frozen=True, slots=True)
class TargetEngine:
    """The engine of one part for one target. What a graph takes and how it is served may differ between targets.

    `files[0]` is what the backend loads, the others lie beside it; where each profile has a plan of its own, `plans`
    has that file's digest, and `weights` that of the ONNX file which fills it, if it comes without. `graph` is the
    shipped graph's size, `written` that of the graph as the recipe wrote it. `machine` names the processor it was
    proven on, `device` the GPU, if it is for one. `inspection` is by profile, and empty where there is no inspector.
    `dynamic_quantisation` as in SessionOptions.
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
    inputs: Axes
    profiles: Sizes
    states: tuple[StatePair, ...]
    dynamic_quantisation: Count | None
    written: GraphSize
    device: Device | None = None
    plans: Mapping[str, Digest] = field(default_factory=dict)
    weights: Mapping[str, Digest] = field(default_factory=dict)
    inspection: Mapping[str, Inspection] = field(default_factory=dict)

    @property
    def chosen(self) -> Candidate:
        return next(
            candidate
            for candidate in self.candidates
            if (candidate.backend, candidate.precision) == (self.backend, self.precision)
        )

    def bounds(self, profile: str) -> Bounds:
        """Least and greatest size of every axis of every input. Raises BundleError for a profile that is not here."""
        if profile not in self.profiles:
            raise BundleError(
                f"there is no profile {profile!r}", available=list(self.profiles), next_step="name one of these"
            )
        return bounds_of(self.inputs, self.profiles[profile])


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of the model: the files it was made from, and its engines by target."""

    sources: Mapping[str, Digest]
    engines: Mapping[str, TargetEngine]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle: one model's parts, each with its engines by target. `key` says what went in, `seal` is the SHA-256 of
    all the rest (see `sealed`): it shows damage, not who wrote it. `contexts` is what `aula verify` proved last."""

    format: int
    name: str
    key: Key
    builder: str
    origin: Origin | None
    licences: tuple[Licence, ...]
    seeded: bool
    parts: Mapping[str, Part]
    contexts: ContextProof | None = None
    seal: Digest = NO_SEAL

    @property
    def targets(self) -> list[str]:
        """Those that every part has an engine for."""
        shared = set.intersection(*(set(part.engines) for part in self.parts.values()))
        return sorted(shared)


def bounds_of(inputs: Axes, sizes: Mapping[str, tuple[int, int, int]]) -> Bounds:
    """Least and greatest size of every axis of every input, where free dimensions have these sizes."""
    return {
        name: tuple((axis, axis) if isinstance(axis, int) else (sizes[axis][0], sizes[axis][2]) for axis in axes)
        for name, axes in inputs.items()
    }


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
    if manifest.format not in READ:
        raise BundleError(
            f"the manifest {name} has form {manifest.format}; this version of aula reads forms "
            f"{' and '.join(map(str, READ))}",
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
    for target, engine in part.engines.items():
        check_profiles(engine.inputs, engine.profiles, f"{name} for {target}")
        _check_plans(engine, f"{name} for {target}")
        if engine.backend not in BACKENDS:
            raise BundleError(
                f"{name}: the engine for {target} wants the backend {engine.backend!r}",
                available=list(BACKENDS),
                next_step=_REBUILD,
            )
        if engine.precision not in PRECISIONS:
            raise BundleError(
                f"{name}: the engine for {target} is {engine.precision!r}", available=PRECISIONS, next_step=_REBUILD
            )
        if not any((c.backend, c.precision) == (engine.backend, engine.precision) for c in engine.candidates):
            raise BundleError(f"{name}: the engine for {target} is not among its candidates", next_step=_REBUILD)


def check_profiles(inputs: Axes, profiles: Sizes, name: str) -> None:
    """Raises BundleError where a profile leaves out a free dimension, or its sizes do not rise."""
    free = {axis for axes in inputs.values() for axis in axes if isinstance(axis, str)}
    for profile, sizes in profiles.items():
        if not free <= set(sizes):
            missing = ", ".join(sorted(free - set(sizes)))
            raise BundleError(f"{name}: profile {profile} has no sizes for {missing}", next_step=_REBUILD)
        for dimension, (least, usual, greatest) in sizes.items():
            if not least <= usual <= greatest:
                raise BundleError(
                    f"{name}: {dimension} of profile {profile} does not rise: {least}, {usual}, {greatest}",
                    next_step=_REBUILD,
                )


def _check_plans(engine: TargetEngine, name: str) -> None:
    if engine.plans and engine.plans.keys() != engine.profiles.keys():
        odd = ", ".join(sorted(engine.plans.keys() ^ engine.profiles.keys()))
        raise BundleError(f"{name}: profiles and plans do not match: {odd}", next_step=_REBUILD)
    vouched = {file.digest for file in engine.files}
    for kind, named in (("plan", engine.plans), ("weights", engine.weights)):
        for profile, digest in named.items():
            if digest not in vouched or profile not in engine.plans:
                raise BundleError(
                    f"{name}: the {kind} of profile {profile}, {digest[:12]}, is not among its files",
                    next_step=_REBUILD,
                )


def _decode(content: bytes, name: str, kind: type[Record]) -> Record:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"the manifest {name} cannot be trusted: {error}", next_step=_REBUILD) from error
