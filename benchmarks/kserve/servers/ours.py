"""Our runtime, our session and our doors, as `aula serve` opens them: limits, origins, log and keys' place included.

python -m benchmarks.kserve.servers.ours ENGINE HTTP_PORT GRPC_PORT BATCH [asyncio|uvloop]
"""

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from aula.backends.session import SessionOptions, open_session
from aula.core.settings import Settings
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rung, Runtime
from aula.servers.callers import EveryoneIsLocal
from aula.servers.house import House
from aula.servers.logs import configure
from aula.servers.serving import open_doors, share_the_interpreter, spare_what_stays


async def main(engine: Path, http_port: int, grpc_port: int, batch: int) -> None:
    session = open_session("onnxruntime", engine, SessionOptions(threads=1))
    info = EngineInfo("engine", "1", session.backend, session.inputs, session.outputs, batch)
    rung = Rung(engine_rung_info("engine", ""), "engine", lambda: SessionEngine(session, info, {}), engine=info)
    house = House(Runtime([rung]), Settings({"serve.port": http_port, "serve.grpc_port": grpc_port}), EveryoneIsLocal())
    share_the_interpreter()
    async with house.runtime:
        await house.runtime.probe()
        async with open_doors(house):
            spare_what_stays()
            await asyncio.Event().wait()


if __name__ == "__main__":
    _engine, _http_port, _grpc_port, _batch, _loop = (*sys.argv[1:], "auto")[:5]
    serving: Any = main(Path(_engine), int(_http_port), int(_grpc_port), int(_batch))
    with Path(os.devnull).open("w", encoding="utf-8") as log:
        configure("text", log)
        if _loop == "uvloop":
            importlib.import_module("uvloop").run(serving)
        else:
            asyncio.run(serving)
