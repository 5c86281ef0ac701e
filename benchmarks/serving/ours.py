"""Our own way to serve an engine: the runtime, as everybody else is served by it."""

from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.types import Context
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rung, Runtime


class Service:
    """Requests are rows; batches form because work waits. For one event loop, which must be running."""

    def __init__(self, session: Session, batch: int) -> None:
        (self._input,), (self._output,) = session.inputs, session.outputs
        info = EngineInfo("serve", "1", session.backend, session.inputs, session.outputs, batch)
        rung = Rung(engine_rung_info("engine", ""), "engine", lambda: SessionEngine(session, info, {}), engine=info)
        self._runtime = Runtime([rung])

    async def ask(self, row: NDArray[Any], tier: str = "question") -> NDArray[Any]:
        made = await self._runtime.infer("serve", {self._input.name: row[None]}, Context(tenant="class", tier=tier))
        answer: NDArray[Any] = made[self._output.name][0]
        return answer

    async def __aenter__(self) -> Self:
        """Loads and measures the engine."""
        await self._runtime.__aenter__()
        await self._runtime.probe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runtime.__aexit__(kind, error, trace)
