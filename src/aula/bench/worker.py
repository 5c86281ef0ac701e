"""`python -m aula.bench.worker ORDER`: one competitor in this process. ORDER is a JSON object with its `kind`."""

import json
import os
import sys
import warnings
from typing import Any

from aula.bench.protocol import Competitor, private_answers, serve

KINDS = ("engine", "onnxruntime", "torch")


def make(order: dict[str, Any]) -> Competitor:
    """The library is imported here, in the process that needs it."""
    match order["kind"]:
        case "engine":
            from aula.bench.built_engine import BuiltEngine

            return BuiltEngine(order["store"], order["key"], order["part"], order["profile"])
        case "onnxruntime":
            from aula.bench.native_onnxruntime import OnnxRuntime

            return OnnxRuntime(order["graph"], order["threads"], dynamic_int8=order["dynamic_int8"])
        case "torch":
            from aula.bench.native_torch import open_native

            return open_native(order["folder"], order["part"], order["threads"], order["outputs"], order["variant"])
        case unknown:
            raise ValueError(f"there is no competitor {unknown!r}, only {', '.join(KINDS)}")


def main() -> None:
    # Nothing here needs the network: a library that would ask it is told not to.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    warnings.simplefilter("ignore")
    answers = private_answers()
    serve(lambda: make(json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
