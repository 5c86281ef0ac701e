"""Engines as they are: a session without states that takes its turns like every other model. Implements `RawEngine`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session, Tensors
from aula.core.errors import SettingsError
from aula.core.types import Capability, Licence, RungInfo, TensorSpec
from aula.serving.records import EngineInfo


class SessionEngine:
    """`usual` sizes of free axes are those of its example; an axis that it does not name has 1."""

    def __init__(self, session: Session, info: EngineInfo, usual: Mapping[str, int]) -> None:
        """Raises SettingsError for a session with states, which one caller would spoil for another."""
        if session.options.states:
            raise SettingsError(
                f"the engine {info.name} keeps states between runs, which nobody may share",
                next_step="serve an engine without states as it is; this one serves through its capability",
            )
        self._session, self._usual = session, usual
        inputs = tuple(_whole(spec, info.inputs) for spec in session.inputs)
        outputs = tuple(_whole(spec, info.outputs) for spec in session.outputs)
        self.info = replace(info, platform=session.backend, inputs=inputs, outputs=outputs)

    @property
    def max_batch(self) -> int:
        return self.info.max_batch

    @property
    def sessions(self) -> tuple[Session, ...]:
        return (self._session,)

    def infer(self, tensors: Tensors) -> Mapping[str, NDArray[Any]]:
        return self._session.run(tensors)

    def example(self, rows: int = 1) -> Mapping[str, NDArray[Any]]:
        """Ones: a token that every vocabulary has, a mask that hides nothing."""
        first = {spec.shape[0] for spec in self.info.inputs if spec.shape and self.max_batch > 1}
        sizes = {**self._usual, **{axis: rows for axis in first if isinstance(axis, str)}}
        return {
            spec.name: np.ones(
                [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype
            )
            for spec in self.info.inputs
        }

    def close(self) -> None:
        self._session.close()


def engine_rung_info(name: str, note: str, licences: tuple[Licence, ...] = ()) -> RungInfo:
    return RungInfo(name, Capability.INFER, frozenset({"*"}), note, licences)


def _whole(spec: TensorSpec, known: tuple[TensorSpec, ...]) -> TensorSpec:
    """A session may have forgotten what free axes are called."""
    told = next((one for one in known if one.name == spec.name and len(one.shape) == len(spec.shape)), spec)
    shape = tuple(
        axis if isinstance(size, str) and isinstance(axis, str) else size
        for size, axis in zip(spec.shape, told.shape, strict=True)
    )
    return TensorSpec(spec.name, spec.dtype, shape)
