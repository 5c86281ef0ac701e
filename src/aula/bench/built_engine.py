"""Our own engine as a competitor: the bundle as a server would open it."""

from collections.abc import Mapping
from typing import Any

from aula.bench.protocol import Arrays
from aula.engine.store import Store


class BuiltEngine:
    """One part of the bundle `key` in the folder `store`, compiled for one profile."""

    def __init__(self, store: str, key: str, part: str, profile: str) -> None:
        from pathlib import Path

        bundle = Store(Path(store)).open(key)
        self._session = bundle.open(part, profile)
        self._inputs: Arrays = {}
        self._outputs: Arrays = {}

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        wanted = {spec.name for spec in self._session.inputs}
        self._inputs = {name: array for name, array in inputs.items() if name in wanted}
        self._session.reset()
        self.run()
        return {"backend": self._session.backend, "layers": self._session.precisions()}

    def rewind(self) -> None:
        pass

    def run(self) -> None:
        self._outputs = self._session.run(self._inputs)

    def outputs(self) -> Arrays:
        self._session.reset()
        self.run()
        return self._outputs
