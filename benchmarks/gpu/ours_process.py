"""The process of our own side: `python -m benchmarks.gpu.ours_process ROW WORK` prints one JSON line."""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    row, work = sys.argv[1], Path(sys.argv[2])
    # Libraries print where they like; the line is for the orchestrator alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from benchmarks.gpu.ours import measure

    measured = {"row": row, "competitor": "ours", **measure(row, work)}
    answers.write(json.dumps(measured, default=str) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
