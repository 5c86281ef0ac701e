"""What came of the requests for one engine, in the words of Triton's statistics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aula.runtime import RungStatistics

_NS = 1_000_000_000


@dataclass(slots=True)
class Counts:
    """Seconds of the runtime's clock at the door: `reading` and `writing` are ours, `serving` the runtime's, waiting
    and running together."""

    succeeded: int = 0
    succeeded_s: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    rows: int = 0
    reading_s: float = 0.0
    serving_s: float = 0.0
    writing_s: float = 0.0
    latest_ms: int = 0

    def success(self, rows: int, came: float, read: float, made: float, told: float) -> None:
        """Four moments of a request: it came, it was read, the runtime had answered, the answer was written."""
        self.succeeded += 1
        self.rows += rows
        self.succeeded_s += told - came
        self.reading_s += read - came
        self.serving_s += made - read
        self.writing_s += told - made
        self.latest_ms = time.time_ns() // 1_000_000  # a date to be told, not a measure of time

    def failure(self, seconds: float) -> None:
        self.failed += 1
        self.failed_s += seconds

    def told(self, rungs: Sequence[RungStatistics]) -> dict[str, Any]:
        """`rungs` are the engine's: how often they ran, for whichever door, and how long for each that was in the
        run. What the runtime took beyond that was waiting."""
        ran = sum(rung.served for rung in rungs)
        run_s = sum(rung.run_s for rung in rungs) * (self.succeeded / ran if ran else 0.0)
        run_s = min(run_s, self.serving_s)

        def duration(count: int, seconds: float) -> dict[str, int]:
            return {"count": count, "ns": int(seconds * _NS)}

        return {
            "last_inference": self.latest_ms,
            "inference_count": self.rows,
            "execution_count": sum(rung.runs for rung in rungs),
            "inference_stats": {
                "success": duration(self.succeeded, self.succeeded_s),
                "fail": duration(self.failed, self.failed_s),
                "queue": duration(self.succeeded, self.serving_s - run_s),
                "compute_input": duration(self.succeeded, self.reading_s),
                "compute_infer": duration(self.succeeded, run_s),
                "compute_output": duration(self.succeeded, self.writing_s),
            },
        }
