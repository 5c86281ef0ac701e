"""What the door of the Open Inference Protocol adds to an engine, beside PyTriton hosting the same one.

    python -m benchmarks.kserve [--pytriton ENVIRONMENT] [--perf-analyzer BINARY --libraries FOLDER]
                                [--loop asyncio|uvloop] [--engines small middle large] [--seconds 3] [--rounds 3]

ONNX files of matrix products, small, middling and large, on ONNX Runtime with one thread; the engine alone, our server,
PyTriton, each in a process of its own, in turns over the rounds. Small requests (64 numbers) as binary tensors: one in
flight for what a request costs, 64 in flight for how many pass. The median of the rounds counts. Clients are plain
sockets with prepared bytes, gRPC's own library, and perf_analyzer where it is given.

Limits: client and server share this machine's cores, and so does whoever else works on it. So the processor time that
a server spends on a request, its engine included, is printed beside, and the part of the time in which the engine ran,
and how long a run took there (as the server's own statistics tell it; PyTriton's count the way to its process too):
they say more than any clock.
Ours is all that `aula serve` puts around an engine: limits, origins, the log of requests, the question for a key.

PyTriton: python3.11 -m venv DIR; DIR/bin/pip install nvidia-pytriton==0.7.0 "numpy<2" onnxruntime. perf_analyzer is in
the wheel tritonclient==2.49.0; the two libraries that it wants are in nvidia_pytriton.libs. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aula.bench.machine import busy, machine
from benchmarks.kserve.engines import BATCH, SIZES, Alone, write
from benchmarks.kserve.requests import grpc_request, http_request
from benchmarks.kserve.running import Place, Server, beside, output_of, running

CROWD = 64
Figures = dict[str, float]


@dataclass(frozen=True)
class Tools:
    seconds: float
    perf_analyzer: Path | None
    libraries: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pytriton", type=Path, help="an environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--perf-analyzer", type=Path)
    parser.add_argument("--libraries", type=Path, help="where perf_analyzer finds libb64 and libcudart")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--engines", nargs="+", choices=[size.name for size in SIZES], help="all, where none is named")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tools = Tools(options.seconds, options.perf_analyzer, options.libraries)
    alone: dict[str, list[Figures]] = {}
    found: dict[tuple[str, str], list[Figures]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "http").write_bytes(http_request())
        (folder / "grpc").write_bytes(grpc_request())
        chosen = options.engines or [size.name for size in SIZES]
        engines = [write(size, folder) for size in SIZES if size.name in chosen]
        for _ in range(options.rounds):
            for engine in engines:
                words = output_of(sys.executable, "-m", "benchmarks.kserve.engines", str(engine))
                alone.setdefault(engine.stem, []).append(json.loads(words))
                for server in _servers(options):
                    with running(server, engine, BATCH, folder) as place:
                        figures = dict(_measure(place, folder, tools))
                    found.setdefault((engine.stem, server.name), []).append(figures)
    own = {name: Alone(**_median(rows)) for name, rows in alone.items()}
    middle = {key: _median(rows) for key, rows in found.items()}
    rows = {name: {server: row for (which, server), row in middle.items() if which == name} for name in own}
    for name, one in own.items():
        _print(name, one, rows[name])
    for missing, given in (("PyTriton", options.pytriton), ("perf_analyzer", options.perf_analyzer)):
        if given is None:
            print(f"skipped: {missing}, which was not given")
    engines_alone = {name: vars(one) for name, one in own.items()}
    how = {"loop": options.loop, "rounds": options.rounds, "seconds": options.seconds}
    print(json.dumps({"benchmark": "kserve", "alone": engines_alone, **rows, **how, "load": busy(), **machine()}))


def _servers(options: argparse.Namespace) -> Iterator[Server]:
    ours = (sys.executable, "-m", "benchmarks.kserve.servers.ours")
    yield Server("aula", ours, (options.loop,))
    if options.pytriton is not None:
        python = str(options.pytriton.absolute() / "bin" / "python")
        yield Server("PyTriton", (python, str(Path(__file__).parent / "servers" / "pytriton_server.py")))


def _measure(place: Place, folder: Path, tools: Tools) -> Iterator[tuple[str, float]]:
    seconds = str(tools.seconds)
    for many in (1, CROWD):
        before = place.processor_seconds()
        asking = ("-m", "benchmarks.kserve.asking", str(place.http), str(many), seconds, str(folder / "http"))
        seen = beside(place.http, tools.seconds, sys.executable, *asking)
        told = json.loads(seen.words)
        spent = place.processor_seconds() - before
        for name in ("p50_ms", "p99_ms", "a_second"):
            yield f"http {many} {name}", told[name]
        yield f"http {many} cpu_us", round(1e6 * spent / told["all"])
        yield f"http {many} engine busy", seen.busy
        yield f"http {many} engine_ms", seen.run_ms
    over_grpc = ("-m", "benchmarks.kserve.asking_grpc", str(place.grpc), seconds, str(folder / "grpc"))
    seen = beside(place.http, tools.seconds, sys.executable, *over_grpc)
    for name, value in json.loads(seen.words).items():
        yield f"grpc 1 {name}", value
    yield "grpc 1 engine_ms", seen.run_ms
    if tools.perf_analyzer is not None:
        for protocol, port in (("http", place.http), ("grpc", place.grpc)):
            for many in (1, CROWD):
                for name, value in _perf_analyzer(tools, protocol, port, many, folder).items():
                    yield f"perf {protocol} {many} {name}", value


def _perf_analyzer(tools: Tools, protocol: str, port: int, many: int, folder: Path) -> Figures:
    """Its own figures: requests a second, and milliseconds of the median."""
    told = folder / "perf.csv"
    output_of(
        str(tools.perf_analyzer), "-m", "engine", "-u", f"127.0.0.1:{port}", "-i", protocol,
        "--concurrency-range", str(many), "--measurement-interval", str(int(1000 * tools.seconds)),
        "--stability-percentage", "999", "--max-trials", "3", "-f", str(told),
        environment={**os.environ, "LD_LIBRARY_PATH": str(tools.libraries or "")},
    )  # fmt: skip
    names, values, *_ = (line.split(",") for line in told.read_text(encoding="utf-8").splitlines())
    row = dict(zip(names, values, strict=False))
    return {"a_second": float(row["Inferences/Second"]), "p50_ms": round(float(row["p50 latency"]) / 1e3, 3)}


def _median(rows: list[Figures]) -> Figures:
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def _print(engine: str, own: Alone, found: dict[str, Figures]) -> None:
    told = f"{own.row_ms} ms a row, {own.batch_ms} ms for {BATCH}, at most {own.rows_a_second:g} rows a second"
    table = Table(title=f"The {engine} engine, alone {told}", header_style="bold", box=None)
    for column in ("", *found):
        table.add_column(column, justify="right" if column else "left")
    for name in dict.fromkeys(name for row in found.values() for name in row):
        cells = []
        for row in found.values():
            cell = f"{row[name]:g}" if name in row else ""
            if name in ("http 1 p50_ms", "grpc 1 p50_ms"):
                cell += f" (adds {row[name] - own.row_ms:.2f})"
            elif name == f"http {CROWD} a_second":
                cell += f" ({row[name] / own.rows_a_second:.0%})"
            cells.append(cell)
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
