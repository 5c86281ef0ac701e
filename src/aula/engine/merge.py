"""Bundles of one model, each built where its target is, become one bundle for all targets.

Nothing is believed here that a builder would not have written: what the bundles say they were made from must agree, and
every lower precision must have passed its gate. Engines are copied as they are.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aula.core.errors import BundleError, ModelNotFoundError, VerificationError
from aula.core.types import Licence
from aula.engine.bundle import Bundle
from aula.engine.files import storage_errors
from aula.engine.identity import readable_key
from aula.engine.manifest import Manifest, Part, TargetEngine, sealed
from aula.engine.store import Store, files_of, open_store
from aula.engine.targets import TARGETS
from aula.engine.trial import drop_fault
from aula.engine.verdicts import TargetVerdict, require_passed


def merge(bundles: Sequence[Bundle], store: Store, *, require: Iterable[str] = ()) -> Bundle:
    """One bundle in `store` with the engines of all. Its key follows from theirs, so that merging the same ones again,
    in whatever order, is the same bundle.

    Raises BundleError, naming both sides, for bundles that were not made from the same model, for one target with two
    different engines, for a lower precision that did not pass its gate, and where a target of `require` is missing;
    VerificationError for bytes that changed; StorageError. The store is written once everything was checked.
    """
    if not bundles:
        raise BundleError("there is no bundle to merge", next_step="name some: aula bundle merge BUNDLE BUNDLE")
    bundles = sorted({bundle.manifest.key: bundle for bundle in bundles}.values(), key=lambda one: one.manifest.key)
    first = bundles[0].manifest
    for other in bundles[1:]:
        _same_model(first, other.manifest)
    for bundle in bundles:
        _passed(bundle.manifest)
    parts = {name: _merged_part(name, [bundle.manifest for bundle in bundles]) for name in first.parts}
    manifest = replace(
        first,
        format=max(bundle.manifest.format for bundle in bundles),
        key=first.key if len(bundles) == 1 else _key(bundles),
        builder=", ".join(sorted({bundle.manifest.builder for bundle in bundles})),
        licences=_licences(bundles),
        parts=parts,
    )
    missing = sorted(set(require) - set(manifest.targets), key=list(TARGETS).index)
    if missing:
        raise BundleError(
            f"{', '.join(missing)} is asked for, and {', '.join(one.manifest.key for one in bundles)} have "
            f"engines for {', '.join(manifest.targets)} alone",
            next_step=f"build it where it is, then merge again: aula build MODEL --target {missing[0]}",
        )
    for bundle in bundles:
        bundle.check()
    for bundle in bundles:
        _copy(bundle, store)
    return store.publish(sealed(manifest))


def find_bundles(
    places: Sequence[str], verdicts: Sequence[TargetVerdict], store: Store, cache: Path
) -> tuple[Bundle, ...]:
    """What is to be merged: by key or model's name in `store`, or the one bundle of the store in another folder or at
    a URL; and what the verdicts say was built. `cache` is the folder in front of URLs.

    Raises BundleError where a verdict is that a build failed, or a store holds several bundles; ModelNotFoundError.
    """
    require_passed(verdicts)
    found = [_find(place, store, cache) for place in places]
    keys = {bundle.manifest.key for bundle in found}
    built = [verdict.bundle for verdict in verdicts if verdict.bundle is not None]
    return (*found, *(store.open(key) for key in built if key not in keys))


def _find(place: str, store: Store, cache: Path) -> Bundle:
    if "://" not in place and not Path(place).is_dir():
        return store.open(place)
    other = open_store(place, cache)
    keys = other.keys()
    if not keys:
        raise ModelNotFoundError(
            f"there is no bundle in {place}", next_step="name a store that holds one: aula build MODEL --store FOLDER"
        )
    if len(keys) > 1:
        raise BundleError(
            f"{place} holds {len(keys)} bundles, and one is wanted",
            available=keys,
            next_step=f"name them by their keys: aula bundle merge {keys[0]} --store {place}",
        )
    return other.open(keys[0])


def _key(bundles: Sequence[Bundle]) -> str:
    return readable_key(bundles[0].manifest.name, ["merged", [bundle.manifest.key for bundle in bundles]])


def _same_model(one: Manifest, other: Manifest) -> None:
    """What a bundle was made from, in the order in which a difference explains the most."""
    for what, left, right in (
        ("the model", one.name, other.name),
        ("parts", sorted(one.parts), sorted(other.parts)),
        ("weights", _weights(one), _weights(other)),
        ("the origin", _origin(one), _origin(other)),
    ):
        if left != right:
            raise BundleError(
                f"{one.key} and {other.key} are not of one model: {what} {_told(left)} and {_told(right)}",
                next_step="build both from the same model: aula build MODEL --target TARGET",
            )
    for name, part in one.parts.items():
        _same_sources(one.key, other.key, name, part.sources, other.parts[name].sources)


def _same_sources(one: str, other: str, part: str, left: Mapping[str, str], right: Mapping[str, str]) -> None:
    different = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    if different:
        digests = " and ".join(side.get(different[0], "absent")[:12] for side in (left, right))
        raise BundleError(
            f"{one} and {other} were made from other files: {', '.join(different)} of part {part} "
            f"({different[0]}: {digests})",
            next_step="build both from the same files: aula build MODEL --target TARGET --rebuild",
        )


def _passed(manifest: Manifest) -> None:
    """Made-up weights are judged by no task, and so have no gate."""
    for name, part in manifest.parts.items():
        for target, engine in part.engines.items():
            fault = engine.chosen.rejected or ("" if manifest.seeded else _gate_fault(engine))
            if fault:
                raise BundleError(
                    f"part {name} of {manifest.key} for {target}, {engine.precision} on {engine.backend}, did not "
                    f"pass its gate: {fault}",
                    next_step=f"build it again: aula build MODEL --target {target} --rebuild",
                )


def _gate_fault(engine: TargetEngine) -> str:
    if engine.precision == "fp32":
        return ""
    if engine.gate is None:
        # Without labelled examples a GPU's fp16 is held to the reference's numbers, and nothing else may ship.
        by_numbers = engine.device is not None and engine.precision == "fp16"
        return "" if by_numbers and engine.chosen.relative_error is not None else "its manifest knows of none"
    metric = engine.chosen.metric
    return (
        "no metric was measured"
        if metric is None
        else drop_fault(engine.gate.reference - metric, engine.gate.most_drop)
    )


def _merged_part(name: str, manifests: Sequence[Manifest]) -> Part:
    engines: dict[str, TargetEngine] = {}
    owner: dict[str, str] = {}
    for manifest in manifests:
        for target, engine in manifest.parts[name].engines.items():
            if engines.get(target, engine) != engine:
                raise BundleError(
                    f"{owner[target]} and {manifest.key} both have an engine for {target}, and they differ "
                    f"({engines[target].files[0].digest[:12]} and {engine.files[0].digest[:12]})",
                    next_step="leave one of them out",
                )
            engines[target] = engine
            owner.setdefault(target, manifest.key)
    known = list(TARGETS)
    ordered = sorted(engines, key=lambda target: (known.index(target) if target in known else len(known), target))
    return Part(manifests[0].parts[name].sources, {target: engines[target] for target in ordered})


def _licences(bundles: Sequence[Bundle]) -> tuple[Licence, ...]:
    return tuple(dict.fromkeys(licence for bundle in bundles for licence in bundle.manifest.licences))


def _copy(bundle: Bundle, store: Store) -> None:
    with store.draft() as draft:
        for file in files_of(bundle.manifest):
            if bundle.files == store.files or store.is_intact(file):
                continue
            with storage_errors(store.folder):
                shutil.copyfile(bundle.files / file.name, draft / file.name)
            if store.add_file(draft / file.name) != file:
                raise VerificationError(
                    f"engine file {bundle.files / file.name} changed while it was copied", next_step="merge again"
                )


def _weights(manifest: Manifest) -> str:
    return "made up" if manifest.seeded else "real"


def _origin(manifest: Manifest) -> str:
    return f"{manifest.origin.name} at {manifest.origin.revision}" if manifest.origin else "none"


def _told(side: str | list[str]) -> str:
    return side if isinstance(side, str) else ", ".join(side)
