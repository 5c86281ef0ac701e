"""Bundles that the setting `engines` names, as rungs: for each engine this machine's GPUs first, then its processor.

    engines = "minilm-int8, faces=/srv/store/bundles/efficientnet-0123456789abcdef.json"
    engines = "/srv/store"

A name is a bundle's key or its model's name in the home's store, a path leads to a bundle in any store, and a folder is
a store of which the newest bundle of every name is served. A part of a model of several is `name.part`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aula.backends.gpus import list_gpus
from aula.backends.hosting.records import hosting_for
from aula.backends.onnx_file import tensor_specs
from aula.core.errors import AulaError, SettingsError
from aula.core.settings import Settings
from aula.core.types import TensorSpec
from aula.engine.bundle import Bundle
from aula.engine.manifest import TargetEngine
from aula.engine.recipe import WHOLE
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.models.raw import SessionEngine, engine_rung_info
from aula.serving.places import Rung
from aula.serving.records import EngineInfo


def bundle_rungs(settings: Settings) -> list[Rung]:
    """Nothing is loaded. Raises SettingsError for what is no bundle, and for two engines of one name."""
    rungs: dict[str, list[Rung]] = {}
    for name, bundle in _named_bundles(settings):
        for part in bundle.manifest.parts:
            engine = name if part == WHOLE else f"{name}.{part}"
            if engine in rungs:
                raise SettingsError(
                    f"engines names two engines {engine!r}", next_step="give one another name: other=bundle"
                )
            rungs[engine] = list(_Source(engine, bundle, part).rungs(settings))
    return [rung for ladder in rungs.values() for rung in ladder]


def _named_bundles(settings: Settings) -> Iterator[tuple[str, Bundle]]:
    home = Store(settings.home / "engines")
    for word in filter(None, (part.strip() for part in settings.text("engines").split(","))):
        name, _, place = word.rpartition("=")
        folder = Path(place).expanduser()
        try:
            if (folder / "bundles").is_dir() and not name:
                store = Store(folder)
                names = dict.fromkeys(bundle.manifest.name for bundle in store.all())
                yield from ((one, store.open(one)) for one in names)
                continue
            bundle = Store(folder.parent.parent).open(folder.stem) if folder.suffix == ".json" else home.open(place)
        except AulaError as error:
            raise SettingsError(
                f"engines names {word!r}: {error.what}",
                available=error.available,
                next_step="name a bundle (aula inspect lists them), the .json of one, or the folder of a store",
            ) from error
        yield name or bundle.manifest.name, bundle


@dataclass(frozen=True, slots=True)
class _Source:
    """One engine's name, and the part of the bundle that serves under it."""

    name: str
    bundle: Bundle
    part: str

    def rungs(self, settings: Settings) -> Iterator[Rung]:
        """Those with states are left out: they serve through a capability, one utterance after the other."""
        engines = self.bundle.part(self.part).engines
        for gpu in list_gpus():
            for target in (one.name for one in TARGETS.values() if one.capability == gpu.capability):
                if target in engines and not engines[target].states:
                    yield self._rung(target, settings, gpu.index)
        if "cpu" in engines and not engines["cpu"].states:
            yield self._rung("cpu", settings)

    def _rung(self, target: str, settings: Settings, gpu: int | None = None) -> Rung:
        engine = self.bundle.engine(self.part, target)
        info = self._described(engine, least=gpu is not None)
        usual = {axis: sizes[1] for axis, sizes in next(iter(engine.profiles.values()), {}).items()}
        hosting = hosting_for(settings, "cpu" if gpu is None else "gpu")
        rung = self.name if gpu is None else f"{self.name}@gpu{gpu}"

        def load() -> SessionEngine:
            session = self.bundle.open(self.part, target=target, device=gpu or 0, hosting=hosting)
            try:
                return SessionEngine(session, info, usual)
            except BaseException:
                session.close()
                raise

        return Rung(
            engine_rung_info(
                rung, f"{self.bundle.manifest.key}, tensors in, tensors out", self.bundle.manifest.licences
            ),
            f"engine.{rung}",
            load,
            device="host" if gpu is None else f"gpu{gpu}",
            needs=None if gpu is None else partial(engine_bytes, engine),
            engine=info,
        )

    def _described(self, engine: TargetEngine, *, least: bool) -> EngineInfo:
        inputs = tuple(TensorSpec(one, "", axes) for one, axes in engine.inputs.items())
        outputs: tuple[TensorSpec, ...] = ()
        onnx = next((file for file in engine.files if file.suffix == ".onnx"), None)
        if onnx is not None:
            found, outputs = tensor_specs(self.bundle.files / onnx.name)
            inputs = tuple(next((one for one in found if one.name == spec.name), spec) for spec in inputs)
        profiles = tuple(_limits(sizes, least=least) for sizes in engine.profiles.values())
        return EngineInfo(
            self.name,
            self.bundle.manifest.key.rpartition("-")[2],
            engine.backend,
            inputs,
            outputs,
            _max_batch(inputs, outputs, profiles),
            profiles,
        )


def engine_bytes(engine: TargetEngine) -> int:
    """On a device it takes at least what lies in its files."""
    return sum(file.bytes for file in engine.files)


def _limits(sizes: Mapping[str, tuple[int, int, int]], *, least: bool) -> Mapping[str, tuple[int, int]]:
    """A processor's engine is opened for all sizes, and a shorter text than was proven is no harm."""
    return {axis: (low if least else 1, high) for axis, (low, _, high) in sizes.items()}


def _max_batch(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], profiles: tuple[Mapping[str, tuple[int, int]], ...]
) -> int:
    """What the engines' own axes say: one name first in all of them."""
    first = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
    axis = next(iter(first)) if len(first) == 1 and outputs else None
    if not isinstance(axis, str):
        return 1
    return max((profile[axis][1] for profile in profiles if axis in profile), default=1)
