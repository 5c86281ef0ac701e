"""The same over gRPC, with prepared bytes and gRPC's own library, one request in flight.

python -m benchmarks.kserve.asking_grpc PORT SECONDS REQUEST_FILE
"""

import json
import sys
import time
from pathlib import Path

import grpc

from benchmarks.kserve.asking import WARM_SECONDS


def ask(port: int, seconds: float, request: bytes) -> dict[str, float]:
    times: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        start = time.perf_counter() + WARM_SECONDS
        until = start + seconds
        while (sent := time.perf_counter()) < until:
            call(request)
            if sent >= start:
                times.append(1e3 * (time.perf_counter() - sent))
    times.sort()
    return {"p50_ms": round(times[len(times) // 2], 3), "p99_ms": round(times[int(0.99 * len(times))], 3)}


if __name__ == "__main__":
    print(json.dumps(ask(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]).read_bytes())))
