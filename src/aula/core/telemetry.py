"""Every metric, in one place: docs/metrics.md, the alerts and the dashboard are checked against this table.

Counters and histograms are written where things happen; gauges are read when somebody looks. The text is Prometheus'
exposition format 0.0.4, which is few enough rules that a library would be more to carry than to write.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper edges; the promises of a turn (0.1 and 0.2 s) are among them, so that a share inside them is exact."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    edges: tuple[float, ...] = ()


LOADS = Metric(
    "aula_engine_loads_total", Kind.COUNTER, ("capability", "rung", "result"), "models loaded: result ok or failed"
)
MEMORY_USED = Metric("aula_memory_used_bytes", Kind.GAUGE, ("device",), "memory in use on host, gpu0, gpu1 …")
MEMORY_TOTAL = Metric("aula_memory_total_bytes", Kind.GAUGE, ("device",), "memory that there is, or may be used")
REQUEST_SECONDS = Metric(
    "aula_request_seconds",
    Kind.HISTOGRAM,
    ("capability", "tier"),
    "from a request to its answer; of a stream, to its opening",
    SECONDS,
)
REQUESTS = Metric(
    "aula_requests_total",
    Kind.COUNTER,
    ("capability", "result"),
    "requests by end: answered, refused, failed or cancelled",
)
IN_FLIGHT = Metric("aula_requests_in_flight", Kind.GAUGE, (), "requests that have not ended")
QUEUED = Metric("aula_queue_depth", Kind.GAUGE, ("tier",), "tickets that wait for a worker")
BATCH_SIZE = Metric("aula_batch_size", Kind.HISTOGRAM, ("task",), "tickets that ran together", SIZES)
REFUSALS = Metric("aula_refusals_total", Kind.COUNTER, ("reason",), "requests that were refused before they were tried")
LATE = Metric("aula_late_total", Kind.COUNTER, ("task",), "tickets that were answered after their deadline")
BREAKER_OPEN = Metric("aula_breaker_open", Kind.GAUGE, ("capability", "rung"), "1 while the rung serves nobody, else 0")
RUNG_CHANGES = Metric(
    "aula_rung_changes_total",
    Kind.COUNTER,
    ("capability", "rung", "cause"),
    "breakers that opened or closed, overrides",
)
SERVED = Metric(
    "aula_served_total", Kind.COUNTER, ("capability", "rung", "why"), "tickets answered, by rung and why that one"
)
TASK_SECONDS = Metric(
    "aula_task_seconds", Kind.HISTOGRAM, ("task",), "from a ticket to its answer, chunks of streams too", SECONDS
)
DEVICE_SECONDS = Metric("aula_device_seconds_total", Kind.COUNTER, ("tier",), "time that models ran, by tier")
TENANT_SHARE = Metric(
    "aula_tenant_share",
    Kind.GAUGE,
    ("tenant",),
    "part of the device time of the last minutes: the ten that use most by name, the rest as other",
)
DRAFTS = Metric(
    "aula_drafts_total",
    Kind.COUNTER,
    ("result",),
    "turns whose answer was ready before the commit (hit) or not",
)
TURN_SECONDS = Metric(
    "aula_turn_seconds", Kind.HISTOGRAM, (), "clock A: from the commit to the first sound of the answer", SECONDS
)
HTTP_REQUESTS = Metric(
    "aula_http_requests_total",
    Kind.COUNTER,
    ("door", "status"),
    "requests at the doors, by what was answered: 2xx, 4xx, 5xx; a WebSocket counts as 1xx when it ends",
)
CONNECTIONS = Metric("aula_connections", Kind.GAUGE, (), "connections that clients hold open, WebSockets among them")

METRICS = (
    LOADS,
    MEMORY_USED,
    MEMORY_TOTAL,
    REQUEST_SECONDS,
    REQUESTS,
    IN_FLIGHT,
    QUEUED,
    BATCH_SIZE,
    REFUSALS,
    LATE,
    BREAKER_OPEN,
    RUNG_CHANGES,
    SERVED,
    TASK_SECONDS,
    DEVICE_SECONDS,
    TENANT_SHARE,
    DRAFTS,
    TURN_SECONDS,
    HTTP_REQUESTS,
    CONNECTIONS,
)
"""The four that operators watch come first."""

Labels = tuple[str, ...]


class _Spread:
    """How often a value fell under each edge."""

    __slots__ = ("counts", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0


class Telemetry:
    """The figures of one runtime; written and read in one thread."""

    def __init__(self) -> None:
        self._values: dict[Metric, dict[Labels, float]] = {metric: {} for metric in METRICS}
        self._spreads: dict[Metric, dict[Labels, _Spread]] = {metric: {} for metric in METRICS}

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        values = self._values[metric]
        values[labels] = values.get(labels, 0.0) + by

    def set(self, metric: Metric, *labels: str, to: float) -> None:
        self._values[metric][labels] = to

    def clear(self, metric: Metric) -> None:
        """A gauge's labels may go, with what they named."""
        self._values[metric].clear()

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        spreads = self._spreads[metric]
        spread = spreads.get(labels)
        if spread is None:
            spread = spreads[labels] = _Spread(metric.edges)
        spread.counts[bisect_left(metric.edges, value)] += 1
        spread.total += value

    def value(self, metric: Metric, *labels: str) -> float:
        return self._values[metric].get(labels, 0.0)

    def values(self, metric: Metric) -> dict[Labels, float]:
        """Of a counter or a gauge, by its labels."""
        return dict(self._values[metric])

    def count(self, metric: Metric, *labels: str) -> int:
        """How many were observed."""
        spread = self._spreads[metric].get(labels)
        return sum(spread.counts) if spread else 0

    def text(self) -> str:
        """Prometheus' text format."""
        lines = []
        for metric in METRICS:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [
                f"{metric.name}{_braces(metric.labels, labels)} {_number(value)}"
                for labels, value in sorted(self._values[metric].items())
            ]
            for labels, spread in sorted(self._spreads[metric].items()):
                lines += _histogram(metric, labels, spread)
        return "\n".join(lines) + "\n"


def _histogram(metric: Metric, labels: Labels, spread: _Spread) -> Iterator[str]:
    below = 0
    for edge, count in zip((*metric.edges, float("inf")), spread.counts, strict=True):
        below += count
        braces = _braces((*metric.labels, "le"), (*labels, _number(edge)))
        yield f"{metric.name}_bucket{braces} {below}"
    yield f"{metric.name}_sum{_braces(metric.labels, labels)} {_number(spread.total)}"
    yield f"{metric.name}_count{_braces(metric.labels, labels)} {below}"


def _braces(names: tuple[str, ...], values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
