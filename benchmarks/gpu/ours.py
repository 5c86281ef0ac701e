"""Our own side. It runs in a process of its own, under the interpreter that has TensorRT (see `ours_process`)."""

from pathlib import Path
from typing import Any


def measure(row: str, work: Path) -> dict[str, Any]:  # noqa: ARG001 - the interface
    """One row, from the files that `prepare` left in `work`. The fields, as far as they make sense for the row:

    `variant`; `p50_ms`, `p90_ms` of device time; `per_second`; `in_flight`; `first_s`, `second_s`, `speedup` of a
    build; `versions` and `tried`, by name; `outputs`, the path of an npz with `hidden` (BERT), `tokens` int
    [questions, tokens] (Whisper) or `logits` over all pictures of the row's file. `skipped` says why there is nothing.
    """
    return {"skipped": "ours: absent"}
