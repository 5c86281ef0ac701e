"""Servers in processes of their own, and what they spend."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.triton import free_port

READY_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple[str, ...]
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where it listens, and the process group that it is."""

    http: int
    grpc: int
    group: int

    def processor_seconds(self) -> float:
        """Of all its processes that are there now."""
        total = 0.0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.group:
                    total += (int(fields[11]) + int(fields[12])) / _TICKS
        return total


@dataclass(frozen=True)
class Ran:
    """What a server's own statistics tell of its engine until a `moment`. They count the whole of a run for each
    request that was in it."""

    moment: float
    seconds: float
    requests: int
    runs: int

    def busy_since(self, before: "Ran") -> float:
        """The part of the time since then in which the engine ran."""
        requests = max(1, self.requests - before.requests)
        seconds = (self.seconds - before.seconds) * (self.runs - before.runs) / requests
        return seconds / (self.moment - before.moment)

    def run_ms_since(self, before: "Ran") -> float:
        """Of the run that a request was in."""
        return 1e3 * (self.seconds - before.seconds) / max(1, self.requests - before.requests)


def ran(port: int) -> Ran:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v2/models/engine/stats")
    (told,) = json.loads(connection.getresponse().read())["model_stats"]
    connection.close()
    infer = told["inference_stats"]["compute_infer"]
    return Ran(time.perf_counter(), infer["ns"] / 1e9, infer["count"], told["execution_count"])


@contextlib.contextmanager
def running(server: Server, engine: Path, batch: int, folder: Path) -> Iterator[Place]:
    """The server once it is ready. It ends with the block."""
    ports = free_port(), free_port()
    # PyTriton's helpers are linked to a Python of their own unless they find this one.
    environment = {**os.environ, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}
    with (folder / "server.log").open("w+b") as log:
        process = subprocess.Popen(
            [*server.command, str(engine), *map(str, ports), str(batch), *server.extra],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            if not _is_ready(process, ports[0]):
                log.seek(0)
                sys.exit(f"{server.name} does not become ready: {log.read()[-2000:].decode(errors='replace')}")
            yield Place(*ports, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # and whatever of its own session it left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True)
class Beside:
    """What a client printed, and of the engine while it asked: the part of the time in which it ran, and a run's ms."""

    words: str
    busy: float
    run_ms: float


def beside(port: int, seconds: float, *command: str) -> Beside:
    """The client's beginning is left out of account."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        time.sleep(1.5)
        before = ran(port)
        time.sleep(max(0.5, seconds - 1.0))
        after = ran(port)
        words, _ = client.communicate()
    if client.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return Beside(words.strip(), round(after.busy_since(before), 2), round(after.run_ms_since(before), 3))


def output_of(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """The last line that a program prints; it ends the benchmark if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def _is_ready(process: "subprocess.Popen[bytes]", port: int) -> bool:
    until = time.perf_counter() + READY_SECONDS
    while time.perf_counter() < until and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/v2/models/engine/ready")
            if connection.getresponse().status == 200:
                return True
        time.sleep(0.2)
    return False
