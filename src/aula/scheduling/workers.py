"""What runs where, and when a worker will be free."""

from collections.abc import Mapping

from aula.core.errors import SettingsError
from aula.scheduling.batching import Batch


class Workers:
    """How many batches each kind of worker runs at once; a number alone is of workers that all rungs share."""

    def __init__(self, capacity: int | Mapping[str, int] = 1) -> None:
        self.capacity = {"": capacity} if isinstance(capacity, int) else dict(capacity)
        if not self.capacity or any(count < 1 for count in self.capacity.values()):
            raise SettingsError(f"{capacity} workers cannot serve", next_step="give at least 1")
        self.running: dict[str, dict[Batch, float]] = {name: {} for name in self.capacity}
        """By worker: each batch and the moment at which it should end."""

    def start(self, batch: Batch) -> None:
        self.running[batch.worker][batch] = batch.started + batch.predicted_ms / 1e3

    def end(self, batch: Batch) -> bool:
        """False where it does not run, or no longer."""
        return self.running[batch.worker].pop(batch, None) is not None

    def runs(self, batch: Batch) -> bool:
        return batch in self.running[batch.worker]

    def idle(self, name: str) -> bool:
        return len(self.running[name]) < self.capacity[name]

    @property
    def some_idle(self) -> bool:
        return any(map(self.idle, self.capacity))

    def free_in_s(self, name: str, now: float) -> float:
        """Seconds until it should have room; one that is overdue is expected at once."""
        return 0.0 if self.idle(name) else max(0.0, min(self.running[name].values()) - now)

    def batches(self) -> list[Batch]:
        return [batch for running in self.running.values() for batch in running]
