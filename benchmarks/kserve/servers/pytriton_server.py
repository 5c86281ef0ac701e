"""PyTriton hosting the engine, as its documentation shows it (triton-inference-server.github.io/pytriton): a decorated
function, dynamic batching, the engine called in Python.

    PYTHON pytriton_server.py ENGINE HTTP_PORT GRPC_PORT BATCH
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

ENGINE, HTTP_PORT, GRPC_PORT, BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])


def serve() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ENGINE, options, providers=["CPUExecutionProvider"])
    depth = session.get_inputs()[0].shape[1]

    @batch  # type: ignore[untyped-decorator]
    def infer(**inputs: Any) -> dict[str, Any]:
        return {"y": session.run(None, inputs)[0]}

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=HTTP_PORT,
        grpc_address="127.0.0.1",
        grpc_port=GRPC_PORT,
        allow_metrics=False,
    )
    security = TritonSecurityConfig(restricted_endpoints=[])  # perf_analyzer asks its statistics
    with Triton(config=config, security_config=security) as triton:
        triton.bind(
            model_name="engine",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(depth,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(depth,))],
            config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()


if __name__ == "__main__":
    serve()
