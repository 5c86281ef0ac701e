"""What a request costs beyond its engine, and how many pass with 64 in flight: with us, LitServe and Ray Serve.

    python -m benchmarks.serving.rate [--litserve ENVIRONMENT] [--ray ENVIRONMENT] [--seconds 8] [--rounds 2]

The same ONNX file (eight matrix products, width 512) on ONNX Runtime with one thread everywhere, small JSON over HTTP,
each server in processes of its own, one server at a time, in turns over the rounds; the better round counts, for each.
Each with batching (up to 16, waiting at most 10 ms where the library wants a time) and without. One client in flight
gives the latency of a request; 64 give the throughput. The engine's own time is printed beside.

Limits: both sides share this machine's cores, the asker too. Our door here is forty lines that serve this request
alone, with none of what a real one checks: a few tenths of a millisecond that the others pay for their frameworks are
not comparable, what comes from queues and processes is. Environments: python -m venv DIR; DIR/bin/pip install litserve
onnxruntime, or "ray[serve]" onnxruntime. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from aula.backends.session import SessionOptions, open_session
from aula.bench.machine import busy, machine, percentile
from benchmarks.serving.triton import free_port

SERVERS = Path(__file__).parent / "servers"
DEPTH, WIDTH, LAYERS = 64, 512, 8
IN_FLIGHT, BATCH = 64, 16
ALONE_REQUESTS = 400
READY_SECONDS = 90.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
BODY = json.dumps({"x": [0.5] * DEPTH}).encode()
REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple[str, ...]
    batch: int
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    alone_p50_ms: float
    alone_p99_ms: float
    a_second: float
    crowd_p99_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litserve", type=Path, help="an environment with litserve and onnxruntime")
    parser.add_argument("--ray", type=Path, help="an environment with ray[serve] and onnxruntime")
    parser.add_argument("--seconds", type=float, default=8.0, help="with 64 in flight")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as name:
        engine = _engine(Path(name) / "engine.onnx")
        for _ in range(options.rounds):
            for server in _servers(options.litserve, options.ray):
                with running(server, engine, Path(name)) as port:
                    figures = asyncio.run(measure(port, options.seconds))
                found.setdefault(server.name, []).append(figures)
        own = _own_ms(engine)
    best = {
        name: Figures(
            min(row.alone_p50_ms for row in rows),
            min(row.alone_p99_ms for row in rows),
            max(row.a_second for row in rows),
            min(row.crowd_p99_ms for row in rows),
        )
        for name, rows in found.items()
    }
    _print(best, own)
    rows = {name: vars(figures) for name, figures in best.items()}
    print(json.dumps({"benchmark": "rate", "engine_ms": own, "servers": rows, "load": busy(), **machine()}))


def _servers(litserve: Path | None, ray: Path | None) -> Iterator[Server]:
    ours = (sys.executable, "-m", "benchmarks.serving.servers.aula_server")
    for batch in (1, BATCH):
        how = "one by one" if batch == 1 else f"batches of {batch}"
        yield Server(f"aula, {how}", ours, batch)
        yield Server(f"aula hosted, {how}", ours, batch, ("hosted",))
        for name, environment in (("LitServe", litserve), ("Ray Serve", ray)):
            if environment is not None:
                python = str(environment.absolute() / "bin" / "python")
                file = SERVERS / f"{name.split()[0].lower()}_server.py"
                yield Server(f"{name}, {how}", (python, str(file)), batch)


@contextlib.contextmanager
def running(server: Server, engine: Path, scratch: Path) -> Iterator[int]:
    """Its port, once it answers. It ends with the block."""
    port = free_port()
    with (scratch / "server.log").open("w+b") as log:
        process = subprocess.Popen(
            [*server.command, str(engine), str(port), str(server.batch), *server.extra],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_QUIET, "RAY_TMPDIR": str(scratch)},
            start_new_session=True,
        )
        try:
            if not asyncio.run(_answers(port, process)):
                log.seek(0)
                sys.exit(f"{server.name} does not answer: {log.read()[-2000:].decode(errors='replace')}")
            yield port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # and whatever of its own session it left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def measure(port: int, seconds: float) -> Figures:
    alone: list[float] = []
    await _ask(port, alone, requests=50)
    alone.clear()
    await _ask(port, alone, requests=ALONE_REQUESTS)
    crowd: list[float] = []
    warm = time.perf_counter() + 1.0
    await asyncio.gather(*(_ask(port, crowd, until=warm) for _ in range(IN_FLIGHT)))
    crowd.clear()
    start = time.perf_counter()
    await asyncio.gather(*(_ask(port, crowd, until=start + seconds) for _ in range(IN_FLIGHT)))
    took = time.perf_counter() - start
    return Figures(
        round(percentile(alone, 0.5), 2),
        round(percentile(alone, 0.99), 2),
        round(len(crowd) / took),
        round(percentile(crowd, 0.99), 1),
    )


async def _ask(port: int, times: list[float], *, requests: int | None = None, until: float = 0.0) -> None:
    """One request after the other on one connection; milliseconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while requests is None or requests > 0:
        start = time.perf_counter()
        if requests is None and start >= until:
            break
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await _body(reader, head)
        if b" 200 " not in head[:16] or len(body) < DEPTH:
            raise RuntimeError(f"answered {head!r} {body[:200]!r}")
        times.append(1e3 * (time.perf_counter() - start))
        requests = None if requests is None else requests - 1
    writer.close()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
    body = b""
    while length := int(await reader.readline(), 16):
        body += (await reader.readexactly(length + 2))[:-2]
    await reader.readline()
    return body


async def _answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    until = time.perf_counter() + READY_SECONDS
    while time.perf_counter() < until and process.poll() is None:
        try:
            await asyncio.wait_for(_ask(port, [], requests=1), 5.0)
            return True
        except (OSError, TimeoutError, asyncio.IncompleteReadError, RuntimeError):
            await asyncio.sleep(0.2)
    return False


def _engine(path: Path) -> Path:
    random = np.random.default_rng(0)
    widths = [DEPTH, *[WIDTH] * (LAYERS - 1), DEPTH]
    names = ["x", *(f"h{layer}" for layer in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    weights = [
        onnx.numpy_helper.from_array(
            random.standard_normal((widths[i], widths[i + 1]), dtype=np.float32) / widths[i] ** 0.5, f"w{i}"
        )
        for i in range(LAYERS)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("rows", DEPTH)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def _own_ms(engine: Path) -> dict[str, float]:
    """Of the engine alone, by batch."""
    own = {}
    with open_session("onnxruntime", engine, SessionOptions(threads=1)) as session:
        for batch in (1, BATCH):
            tensors = {"x": np.full((batch, DEPTH), 0.5, np.float32)}
            times = []
            for _ in range(300):
                start = time.perf_counter()
                session.run(tensors)
                times.append(1e3 * (time.perf_counter() - start))
            own[str(batch)] = round(percentile(times, 0.5), 3)
    return own


def _print(best: dict[str, Figures], own: dict[str, float]) -> None:
    table = Table(title="One engine behind several servers", header_style="bold", box=None)
    columns = ("", "one in flight p50 ms", "p99 ms", f"{IN_FLIGHT} in flight: a second", "p99 ms")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, figures in best.items():
        table.add_row(name, *(f"{value:g}" for value in vars(figures).values()))
    Console(width=120).print(table)
    most = {batch: round(1e3 * int(batch) / ms) for batch, ms in own.items()}
    Console(width=120).print(f"the engine alone takes {own} ms by batch: at most {most} rows a second on one thread")


if __name__ == "__main__":
    main()
