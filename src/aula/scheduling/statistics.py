"""What a scheduler tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """submitted = answered + refused + failed + cancelled + waiting + running. `late` ones are among the answered."""

    submitted: int
    answered: int
    late: int
    refused: Mapping[str, int]
    failed: int
    cancelled: int
    waiting: int
    running: int
    batches: int
    retried: int
    served_by: Mapping[str, int]
    tier_ms: Mapping[str, float]
