"""A competitor that speaks the protocol without any library: `python fake_competitor.py MODE`."""

import json
import os
import sys
from pathlib import Path

import numpy as np


def main(mode: str) -> None:
    if mode == "dies at once":
        sys.exit("no such library")
    if mode == "rubbish":
        print("Welcome to this library!", flush=True)
    if mode == "not an object":
        print("[1, 2]", flush=True)
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        if request["do"] == "prepare":
            answer = {"about": {"variant": "plain"}}
        elif request["do"] == "run":
            if mode == "crashes":
                print("it was the library's fault", file=sys.stderr, flush=True)
                os._exit(3)
            if mode == "hangs":
                continue
            times: list[object] = [2.0] * request["count"]
            answer = {"milliseconds": times[1:] if mode == "too few" else ["soon"] if mode == "words" else times}
        elif request["do"] == "outputs":
            if mode == "bad file":
                Path(request["to"]).write_bytes(b"PK no archive")
            else:
                np.savez(request["to"], y=np.ones(2, dtype=np.float32))
        if mode == "cannot":
            answer = {"error": "RuntimeError: not this shape"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
