"""What is compared before a plan is deserialised: the GPU, TensorRT and the driver.

A plan is machine code for one kind of GPU and one release of TensorRT. Loaded elsewhere it is refused at best; so both
sides are compared first, and the message names them and the command that builds the right one.
"""

from dataclasses import dataclass

from aula.core.errors import BundleError
from aula.engine.manifest import Device, Manifest, TargetEngine
from aula.engine.plans import release
from aula.engine.targets import TARGETS

AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU: its product's name, compute capability, the newest CUDA that its driver serves, and its number among this
    process's GPUs."""

    name: str
    capability: str
    driver: str
    number: int = 0


def machine_card(device: int) -> Card:
    """Raises BackendError where there is no such GPU."""
    from aula.backends.cuda import Cuda

    cuda = Cuda.open(device)
    return Card(cuda.name(), cuda.capability(), cuda.driver(), device)


def check_plan(
    manifest: Manifest, engine: TargetEngine, built_on: Device, installed: str, card: Card, target: str
) -> None:
    """Raises BundleError unless a plan that was built on `built_on` runs on `card` under TensorRT `installed`."""
    here = _target_of(card)
    rebuild = f"aula build {manifest.name} --target {here or target}"
    if not _runs_on(built_on, card):
        raise BundleError(
            f"the {target} engine of {manifest.key} was built on {built_on.name} (compute capability "
            f"{built_on.capability}{_reach(built_on)}); this GPU is {card.name} ({card.capability})",
            available=_fitting(manifest, card),
            next_step=f"build for this GPU: {rebuild}"
            if here
            else f"none is built for such a card; the CPU serves: aula build {manifest.name} --target cpu",
        )
    if engine.backend == "tensorrt" and not _reads(built_on, engine.backend_version, installed):
        raise BundleError(
            f"the {target} engine of {manifest.key} was built with TensorRT {engine.backend_version}; this machine has "
            f"{installed}",
            next_step=f"build it with this one: {rebuild}; or pip install tensorrt=={engine.backend_version}",
        )
    if release(card.driver) < release(built_on.driver):
        raise BundleError(
            f"the {target} engine of {manifest.key} was built under a driver for CUDA {built_on.driver}; this one "
            f"serves {card.driver}",
            next_step=f"update the NVIDIA driver, or build it here: {rebuild}",
        )


def _runs_on(built_on: Device, card: Card) -> bool:
    if built_on.compatibility == "ampere-plus":
        return release(card.capability) >= AMPERE
    return built_on.capability == card.capability and (
        built_on.compatibility == "same-capability" or built_on.name == card.name
    )


def _reads(built_on: Device, built_with: str, installed: str) -> bool:
    """A plan is for one release (major, minor); version-compatible ones also run in the same and the next major: 8 in
    10 and 10 in 11, never 8 in 11."""
    built, here = release(built_with), release(installed)
    if built == here:
        return True
    following = {8: (8, 10), 10: (10, 11)}.get(built[0], (built[0],))
    return built_on.version_compatible and here[0] in following and here >= built


def _target_of(card: Card) -> str:
    return next((name for name, target in TARGETS.items() if target.capability == card.capability), "")


def _fitting(manifest: Manifest, card: Card) -> list[str]:
    """Targets of the bundle that would run here."""
    engines = next(iter(manifest.parts.values())).engines
    return [name for name, engine in engines.items() if engine.device is None or _runs_on(engine.device, card)]


def _reach(built_on: Device) -> str:
    return {"exact": "", "ampere-plus": ", for Ampere and later", "same-capability": ", for all cards of it"}[
        built_on.compatibility
    ]
