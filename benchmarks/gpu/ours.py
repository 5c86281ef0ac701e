"""Our own side: `python -m benchmarks.gpu.ours --work FOLDER --row NAME` prints one JSON line, as PyTorch's does."""

import argparse
import json
import os
from pathlib import Path
from typing import Any


def measure(row: str, work: Path) -> dict[str, Any]:  # noqa: ARG001 - the interface
    """`versions` and `variants` by name, of `p50_ms`, `p90_ms`, `per_second`, `in_flight`, `speedup` or `top1_drop`
    (points) what the row has, and `outputs`: an npz with `hidden` (BERT), `tokens` (Whisper) or `logits`."""
    return {"skipped": "not written yet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--row", required=True)
    options = parser.parse_args()
    # Libraries print where they like; the line is for the orchestrator alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = {"row": options.row, "competitor": "aula", **measure(options.row, options.work)}
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
