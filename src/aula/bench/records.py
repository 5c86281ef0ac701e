"""What is asked of a bench, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aula.bench.race import ROUNDS
from aula.core.errors import EngineError
from aula.engine.precision import PRECISIONS

RIVALS = ("torch", "onnxruntime")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """`threads` 0 means one per core of this process; engines and rivals get the same."""

    against: tuple[str, ...] = RIVALS
    precisions: tuple[str, ...] = ("fp32", "int8")
    rounds: int = ROUNDS
    threads: int = 0

    def __post_init__(self) -> None:
        _known("rival", self.against, RIVALS, "--against torch,onnxruntime")
        _known("precision", self.precisions, PRECISIONS, "--precision fp32,int8")
        if not self.precisions:
            raise EngineError(
                "there is no engine to race", available=PRECISIONS, next_step="name a precision: --precision fp32,int8"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """One engine against one rival at one shape.

    Times in milliseconds are medians over all runs, `ratio` that of `race.ratio`; spreads are the 10th and the 90th
    percentile. `metric_drop` is what the bundle's gate measured (0..1), None for made-up weights and for fp32;
    `floor_ms` is the roof's (see machine.Roof). `native` None: no rival finished. `relative_error` is the largest
    difference of the two outputs over the rival's largest value; `layer_share` the share of the layers that truly run
    in the precision, None where the backend does not tell.
    """

    part: str | None
    shape: str
    precision: str
    native: str | None
    native_ms: float | None
    engine_ms: float
    ratio: float | None
    metric_drop: float | None
    floor_ms: float | None
    backend: str
    relative_error: float | None
    layer_share: float | None
    engine_spread_ms: tuple[float, float]
    native_spread_ms: tuple[float, float] | None
    native_variant: str | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    model: str
    seeded: bool
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            fields = asdict(row)
            if row.part is None:
                del fields["part"]
            rows.append(fields)
        return {
            "model": self.model,
            "seeded": self.seeded,
            "rows": rows,
            "skipped": [asdict(one) for one in self.skipped],
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }


def _known(kind: str, names: Sequence[str], known: Sequence[str], example: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EngineError(
            f"there is no {kind} {', '.join(unknown)}", available=known, next_step=f"choose of these: {example}"
        )
