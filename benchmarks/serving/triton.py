"""The real Triton, as the wheel nvidia-pytriton carries it, in a process of its own; asked over plain HTTP.

Install it in an environment of its own: python3.11 -m venv DIR; DIR/bin/pip install nvidia-pytriton==0.7.0 "numpy<2".
The wheel has the Python backend alone.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_READY_SECONDS = 60.0

_MODEL = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({seconds})
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", row + row)]) for row in rows]
"""
_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [{{ name: "x" data_type: TYPE_FP32 dims: [1] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [1] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ {batching} }}
"""


def write_repository(folder: Path, models: dict[str, str], seconds: float, batch: int) -> Path:
    """A model by name for each way to batch; every execution takes `seconds`."""
    for name, batching in models.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(_MODEL.format(seconds=seconds), encoding="utf-8")
        text = _CONFIG.format(name=name, batch=batch, batching=batching)
        (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
    return folder


@contextlib.contextmanager
def running(environment: Path, repository: Path, scratch: Path) -> Iterator[int]:
    """The port of its HTTP door, once all models are ready."""
    packages = next((environment / "lib").glob("python3.*/site-packages"))
    server = packages / "pytriton" / "tritonserver"
    python = packages.parent.name.removeprefix("python")
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    for file in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(server / "backends" / "python" / file, backend)
    shutil.copy(server / "python_backend_stubs" / python / "triton_python_backend_stub", backend)
    port = free_port()
    library = subprocess.run(
        [environment / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    log = (scratch / "triton.log").open("wb")
    process = subprocess.Popen(
        [
            server / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backend.parent}",
            "--http-address=127.0.0.1",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{library}",
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        },
    )
    try:
        _await_ready(process, port, scratch / "triton.log")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


class Client:
    """One connection that stays open. For one thread."""

    def __init__(self, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._path = f"/v2/models/{model}/infer"

    def ask(self, value: float, priority: int | None = None) -> float:
        body: dict[str, object] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}]}
        if priority is not None:
            body["parameters"] = {"priority": priority}
        self._connection.request("POST", self._path, json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return float(answer["outputs"][0]["data"][0])

    def close(self) -> None:
        self._connection.close()


def _await_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.perf_counter() + _READY_SECONDS
    while time.perf_counter() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    sys.exit(f"Triton does not become ready; its last words:\n{tail}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
