"""Toy engines behind the true runtime, and both doors of the protocol on free ports of this machine, in a thread."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from aula.backends.session import Session, SessionOptions
from aula.core.clock import Clock
from aula.core.errors import OverloadError
from aula.core.settings import Settings
from aula.core.types import TensorSpec
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rules, Rung, Runtime
from aula.servers import kserve
from aula.servers.callers import Caller, Doorman, EveryoneIsLocal
from aula.servers.house import House
from aula.servers.wire import listen

Arrays = Mapping[str, NDArray[Any]]
Function = Callable[[Arrays], dict[str, NDArray[Any]]]

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
"""Written down again: what is tested may not be its own measure."""
TWICE = EngineInfo(
    "twice",
    "7",
    "toy",
    (TensorSpec("x", "float32", ("batch", "width")), TensorSpec("bias", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", "width")), TensorSpec("rows", "int64", ("batch",))),
    4,
    ({"batch": (1, 4), "width": (1, 4096)},),
)
_EACH = tuple(TensorSpec(name, np.dtype(dtype).name, ("n",)) for name, dtype in DTYPES.items())
ECHO = EngineInfo("echo", "1", "toy", _EACH, tuple(replace(spec, name=f"{spec.name}_again") for spec in _EACH), 1)
GATE = EngineInfo("gate", "1", "toy", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),), 1)
SHY = replace(GATE, name="shy", inputs=(TensorSpec("x", "", ("n",)),), outputs=())
"""It tells what it takes only when it is loaded."""


def twice(tensors: Arrays) -> dict[str, NDArray[Any]]:
    y = (2 * tensors["x"] + tensors["bias"][:, None]).astype(np.float32)
    return {"y": y, "rows": np.full(len(y), len(y), np.int64)}


def echo(tensors: Arrays) -> dict[str, NDArray[Any]]:
    return {f"{name}_again": np.array(array) for name, array in tensors.items()}


def plain(tensors: Arrays) -> dict[str, NDArray[Any]]:
    return {"y": np.array(tensors["x"])}


class Gate:
    """A run that is under way until the test lets it end."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.entered = threading.Event()
        self.runs = 0

    def __call__(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        self.runs += 1
        self.entered.set()
        if not self.is_open.wait(30):
            raise RuntimeError("the test forgot to open the gate")
        return plain(tensors)


class ToySession(Session):
    backend = "toy"

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], function: Function) -> None:
        super().__init__(inputs, outputs, SessionOptions())
        self._function = function

    def _run(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        return self._function(tensors)


def toy_rung(info: EngineInfo, function: Function, inputs: Any = None, outputs: Any = None) -> Rung:
    session = ToySession(inputs or info.inputs, outputs or info.outputs, function)
    return Rung(
        engine_rung_info(info.name, "a toy"),
        f"engine.{info.name}",
        lambda: SessionEngine(session, info, {}),
        engine=info,
    )


@dataclass
class Keys:
    """A doorman with a book of secrets; one that is not in it may do nothing."""

    callers: Mapping[str, Caller]
    asked: list[str] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)

    def admit(self, connection: HTTPConnection, ability: str) -> Caller:
        self.asked.append(ability)
        if connection.client is not None:
            self.clients.add(connection.client.host)
        secret = connection.headers.get("authorization", "").removeprefix("Bearer ")
        if secret == "slow down":
            raise OverloadError("too many", reason="rate", retry_after_s=2.5, next_step="wait")
        if secret not in self.callers:
            raise KeyError(secret)
        return self.callers[secret]

    def again(self, caller: Caller) -> None:
        pass


def make_house(
    gate: Gate | None = None,
    clock: Clock | None = None,
    doorman: Doorman | None = None,
    rules: Rules | None = None,
    rungs: Sequence[Rung] | None = None,
) -> House:
    rungs = rungs or [
        toy_rung(TWICE, twice),
        toy_rung(ECHO, echo),
        toy_rung(GATE, gate or Gate()),
        toy_rung(SHY, plain, GATE.inputs, GATE.outputs),
    ]
    return House(Runtime(rungs, clock, rules=rules), Settings({}), doorman or EveryoneIsLocal())


@dataclass(frozen=True)
class Doors:
    """Where both listen; `call` runs something in the server's own loop."""

    http: str
    grpc: str
    house: House
    gate: Gate
    call: Callable[[Callable[[], Any]], Any]


@contextmanager
def serving(
    doorman: Doorman | None = None, rules: Rules | None = None, rungs: Sequence[Rung] | None = None
) -> Iterator[Doors]:
    gate = Gate()
    ready: list[Doors] = []
    is_ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        house = make_house(gate, doorman=doorman, rules=rules, rungs=rungs)
        async with house.runtime:
            with listen("127.0.0.1", 0, 60.0) as bound:
                bound.listen(256)
                grpc_address = f"127.0.0.1:{free_port()}"
                grpc = await kserve.grpc_server(house, grpc_address)
                await grpc.start()
                config = uvicorn.Config(Starlette(routes=kserve.routes(house)), lifespan="off", log_config=None)
                server = uvicorn.Server(config)
                task = asyncio.ensure_future(server.serve(sockets=[bound]))
                ready.append(Doors(f"127.0.0.1:{bound.getsockname()[1]}", grpc_address, house, gate, call))
                is_ready.set()
                await stop.wait()
                gate.is_open.set()
                await grpc.stop(None)
                server.should_exit = True
                await task

    def call(function: Callable[[], Any]) -> Any:
        async def work() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(work(), loops[0]).result(30)

    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    is_ready.wait()
    try:
        if failures:
            raise failures[0]
        yield ready[0]
    finally:
        if not failures:
            loops[0].call_soon_threadsafe(stop.set)
        thread.join()
    if failures:
        raise failures[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
