"""One small request, as bytes."""

import json

import numpy as np

from benchmarks.kserve.engines import DEPTH


def http_request() -> bytes:
    tensor = np.full(DEPTH, 0.5, np.float32).tobytes()
    one = {"name": "x", "shape": [1, DEPTH], "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return b"\r\n".join(
        (
            b"POST /v2/models/engine/infer HTTP/1.1",
            b"Host: localhost",
            b"Content-Type: application/octet-stream",
            b"Inference-Header-Content-Length: %d" % len(head),
            b"Content-Length: %d" % (len(head) + len(tensor)),
            b"",
            head + tensor,
        )
    )


def grpc_request() -> bytes:
    """Made with tritonclient's own messages."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="engine")
    request.inputs.add(name="x", datatype="FP32", shape=[1, DEPTH])
    request.raw_input_contents.append(np.full(DEPTH, 0.5, np.float32).tobytes())
    return bytes(request.SerializeToString())
