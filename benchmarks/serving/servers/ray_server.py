"""Ray Serve, as its documentation advises (docs.ray.io, dynamic request batching: serve.batch)."""

import signal
import sys
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request

ENGINE, PORT, BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Engine:
    def __init__(self, engine: str, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
        self._alone = batch == 1
        self.many.set_max_batch_size(batch)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def many(self, rows: list[Any]) -> list[Any]:
        return list(self._session.run(None, {"x": np.stack(rows)})[0])

    async def __call__(self, request: Request) -> dict[str, Any]:
        row = np.array((await request.json())["x"], np.float32)
        made = self._session.run(None, {"x": row[None]})[0][0] if self._alone else await self.many(row)
        return {"y": made.tolist()}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    deployment: Any = serve.deployment(num_replicas=1, max_ongoing_requests=128)(Engine)
    serve.run(deployment.bind(ENGINE, BATCH), route_prefix="/")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
