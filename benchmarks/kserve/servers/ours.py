"""Our runtime, our session and our doors, as `aula serve` joins them, without what it puts before all doors.

python -m benchmarks.kserve.servers.ours ENGINE HTTP_PORT GRPC_PORT BATCH [h11|httptools] [asyncio|uvloop]
"""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from aula.backends.session import SessionOptions, open_session
from aula.core.settings import Settings
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rung, Runtime
from aula.servers import kserve
from aula.servers.callers import EveryoneIsLocal
from aula.servers.house import House


async def main(engine: Path, http_port: int, grpc_port: int, batch: int, http: Any) -> None:
    session = open_session("onnxruntime", engine, SessionOptions(threads=1))
    info = EngineInfo("engine", "1", session.backend, session.inputs, session.outputs, batch)
    rung = Rung(engine_rung_info("engine", ""), "engine", lambda: SessionEngine(session, info, {}), engine=info)
    house = House(Runtime([rung]), Settings({}), EveryoneIsLocal())
    async with house.runtime:
        await house.runtime.probe()
        grpc = await kserve.grpc_server(house, f"127.0.0.1:{grpc_port}")
        await grpc.start()
        app = Starlette(routes=kserve.routes(house))
        config = uvicorn.Config(app, port=http_port, http=http, log_level="error", access_log=False)
        await uvicorn.Server(config).serve()
        await grpc.stop(None)


if __name__ == "__main__":
    _engine, _http_port, _grpc_port, _batch, _http, _loop = (*sys.argv[1:], "auto", "auto")[:6]
    serving = main(Path(_engine), int(_http_port), int(_grpc_port), int(_batch), _http)
    if _loop == "uvloop":
        importlib.import_module("uvloop").run(serving)
    else:
        asyncio.run(serving)
