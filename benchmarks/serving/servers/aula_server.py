"""Our runtime with our session, behind as little of HTTP as serves these requests: a stand-in for a door.

python -m benchmarks.serving.servers.aula_server ENGINE PORT BATCH [hosted]
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import numpy as np

from aula.backends.hosting.records import Hosting
from aula.backends.session import SessionOptions, open_session
from benchmarks.serving.ours import Service


async def main(engine: Path, port: int, batch: int, *, hosted: bool) -> None:
    options = SessionOptions(threads=1, hosted=Hosting() if hosted else None)
    async with Service(open_session("onnxruntime", engine, options), batch) as service:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                    asked = msgspec.json.decode(await reader.readexactly(length))
                    made = await service.ask(np.array(asked["x"], np.float32))
                    body = msgspec.json.encode({"y": made.tolist()})
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), hosted="hosted" in sys.argv[4:]))
