"""What both doors of the protocol tell of the engines here: who they are, what they take and give, how they are."""

from typing import Any
from weakref import WeakKeyDictionary

from aula import __version__
from aula.core.errors import ModelNotFoundError
from aula.core.types import TensorSpec
from aula.runtime import EngineInfo, Runtime
from aula.servers.house import House
from aula.servers.kserve.counts import Counts
from aula.servers.kserve.tensors import datatype_of

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
"""Of Triton's, beyond the protocol itself; of `model_repository` the index alone."""
TIERS = ("question", "caption", "vision", "batch")
"""The most urgent first: Triton's priorities 1 to 4."""
_OUT_OF_ORDER = "no rung of its ladder is in order"


class Engines:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.counts: dict[str, Counts] = {}

    def find(self, name: str, version: str = "") -> EngineInfo:
        """Raises ModelNotFoundError for a name or a version that is not here."""
        engine = self.runtime.engine(name)
        if version not in ("", engine.version):
            raise ModelNotFoundError(
                f"there is no version {version[:80]!r} of {name[:80]!r}",
                available=[engine.version],
                next_step="name this one, or none",
            )
        return engine

    async def known(self, name: str, version: str = "") -> EngineInfo:
        """As `find`, and with every datatype, which of some engines only loading them tells."""
        engine = self.find(name, version)
        if all(spec.dtype for spec in (*engine.inputs, *engine.outputs)):
            return engine
        await self.runtime.load(engine.name)
        return self.find(name, version)

    def server(self) -> dict[str, Any]:
        return {"name": "aula", "version": __version__, "extensions": list(EXTENSIONS)}

    def is_ready(self, name: str | None = None) -> bool:
        """Whether some rung of the engine's ladder is in order; of every engine, where none is named."""
        rungs = [rung for rung in self.runtime.statistics().rungs if rung.engine is not None]
        names = {rung.engine for rung in rungs} if name is None else {name}
        return names <= {rung.engine for rung in rungs if rung.state == "closed"}

    def metadata(self, engine: EngineInfo) -> dict[str, Any]:
        def told(spec: TensorSpec) -> dict[str, Any]:
            return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": _sizes(spec)}

        return {
            "name": engine.name,
            "versions": [engine.version],
            "platform": engine.platform,
            "inputs": [told(spec) for spec in engine.inputs],
            "outputs": [told(spec) for spec in engine.outputs],
        }

    def config(self, engine: EngineInfo) -> dict[str, Any]:
        """In the words of Triton's model configuration, where sizes leave the batch out if there is one."""
        is_batched = engine.max_batch > 1

        def told(spec: TensorSpec) -> dict[str, Any]:
            datatype = datatype_of(spec.dtype)
            kind = "STRING" if datatype == "BYTES" else datatype or "INVALID"
            return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": _sizes(spec)[is_batched:]}

        config: dict[str, Any] = {
            "name": engine.name,
            "platform": engine.platform,
            "backend": engine.platform,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": engine.max_batch if is_batched else 0,
            "input": [told(spec) for spec in engine.inputs],
            "output": [told(spec) for spec in engine.outputs],
            "model_transaction_policy": {"decoupled": False},
        }
        if is_batched:
            # Work waits for a worker and for no timer.
            config["dynamic_batching"] = {
                "max_queue_delay_microseconds": 0,
                "preserve_ordering": False,
                "priority_levels": len(TIERS),
            }
        return config

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        told = []
        for engine in self.runtime.engines():
            ready = self.is_ready(engine.name)
            if ready or not only_ready:
                state, reason = ("READY", "") if ready else ("UNAVAILABLE", _OUT_OF_ORDER)
                told.append({"name": engine.name, "version": engine.version, "state": state, "reason": reason})
        return told

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Of one engine, or of all."""
        engines = [self.find(name, version)] if name else list(self.runtime.engines())
        rungs = self.runtime.statistics().rungs
        return [
            {
                "name": engine.name,
                "version": engine.version,
                **self.count(engine.name).told([rung for rung in rungs if rung.engine == engine.name]),
            }
            for engine in engines
        ]

    def count(self, name: str) -> Counts:
        """Of an engine that is here, by its name."""
        return self.counts.setdefault(name, Counts())


_ENGINES: "WeakKeyDictionary[House, Engines]" = WeakKeyDictionary()


def engines_of(house: House) -> Engines:
    """The same for both doors of a house: they count together."""
    if house not in _ENGINES:
        _ENGINES[house] = Engines(house.runtime)
    return _ENGINES[house]


def _sizes(spec: TensorSpec) -> list[int]:
    """-1 for a free axis, as the protocol writes it."""
    return [size if isinstance(size, int) else -1 for size in spec.shape]
