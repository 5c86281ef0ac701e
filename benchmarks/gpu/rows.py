"""The rows of the table, for every part of the benchmark. Standard library only: both interpreters read this."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

TOKENS = 20
"""Tokens of a question's text."""
FRAMES = 500
"""Five seconds of mel, a hundred frames a second."""
PROMPT = (50258, 50259, 50359, 50363)
"""Start, English, transcribe, no timestamps."""
MANY = 64
IN_FLIGHT = (("152x256", 2), ("64x256", 5), ("304x256", 1), ("152x256", 1), ("64x256", 2), ("64x256", 1), ("64", 1))
"""What `in-flight` is tried with: engines by rows and positions, and how many of them serve at once, each on a stream
of its own: while one listens, which is arithmetic, another writes, which is waiting for memory. With 256 positions,
5.12 s, every row of attention's scores begins where a tensor core reads; with 250 only every fourth does."""
PICTURES = 32
LATENCY_MS = 100.0
"""Greatest p99 latency that counts as served, for `in-flight`."""
MOST_TOP1_DROP = 1.0
"""Points of top-1 that INT8 may cost; a variant of EfficientNet that does not say its drop has not met the target."""


@dataclass(frozen=True, slots=True)
class Row:
    """`figure` is what is compared; `native` are the variants that stand for PyTorch as its users run it, of which the
    best counts, and `rows` how many one run serves. `meets(value, ratio to native, ratio to best rival)`. `jobs` build
    the engines of our side; PyTorch's rows of one `family` share a process, and a model that is loaded once."""

    name: str
    title: str
    family: str
    figure: str
    native: tuple[str, ...]
    target: str
    meets: Callable[[float, float | None, float | None], bool]
    jobs: tuple[str, ...]
    rows: int = 1

    @property
    def torch(self) -> bool:
        return self.family in TORCH_FAMILIES

    @property
    def less_is_better(self) -> bool:
        return self.figure == "p50_ms"

    @property
    def unit(self) -> str:
        return {"p50_ms": " ms", "per_second": "/s", "speedup": "x"}.get(self.figure, "")


def _at_least(ratio: float | None, wanted: float) -> bool:
    return ratio is not None and ratio >= wanted


TORCH_FAMILIES = {"bert": 0.25, "whisper": 0.5, "efficientnet": 0.25}
"""PyTorch's processes, and each one's share of PyTorch's time."""
EAGER, GENERATE = ("fp32 eager",), ("fp32 generate",)
ROWS = {
    row.name: row
    for row in (
        Row(
            "bert-1x32",
            "BERT-base 1x32",
            "bert",
            "p50_ms",
            EAGER,
            "<= 0.50 ms, >= 8x",
            lambda value, native, _: value <= 0.5 and _at_least(native, 8),
            ("bert-1x32",),
        ),
        Row(
            "bert-64x32",
            "BERT-base 64x32 throughput",
            "bert",
            "per_second",
            EAGER,
            "better than the best rival",
            lambda _, __, rival: rival is not None and rival > 1,
            ("bert-64x32",),
            rows=MANY,
        ),
        Row(
            "whisper-1",
            "Whisper-small, 5 s question, 20 tokens, from mel",
            "whisper",
            "p50_ms",
            GENERATE,
            "<= 12 ms, >= 10x",
            lambda value, native, _: value <= 12 and _at_least(native, 10),
            ("whisper-1",),
        ),
        Row(
            "whisper-64",
            "the same, 64 rows at once, questions a second",
            "whisper",
            "per_second",
            GENERATE,
            ">= 10x",
            lambda _, native, __: _at_least(native, 10),
            ("whisper-64",),
            rows=MANY,
        ),
        Row(
            "efficientnet-32",
            "EfficientNet-B0 INT8, batch 32 throughput",
            "efficientnet",
            "per_second",
            EAGER,
            ">= 7x, top-1 drop < 1 point",
            lambda _, native, __: _at_least(native, 7),
            ("efficientnet", "digits"),
            rows=PICTURES,
        ),
        Row(
            "build-cache",
            "second build with the timing cache",
            "build",
            "speedup",
            (),
            ">= 4x",
            lambda value, _, __: value >= 4,
            ("bert-1x32", "bert-1x32-again"),
        ),
        Row(
            "in-flight",
            f"identical recognitions in flight, p99 <= {LATENCY_MS:.0f} ms",
            "whisper",
            "in_flight",
            ("fp32 generate", "fp16 generate"),
            ">= 300, >= 6x native",
            lambda value, native, _: value >= 300 and _at_least(native, 6),
            tuple(dict.fromkeys(f"whisper-{sizes}" for sizes, _ in IN_FLIGHT)),
        ),
    )
}


def chosen(names: Iterable[str]) -> list[Row]:
    """The rows of these names, in the table's order."""
    wanted = set(names)
    return [row for row in ROWS.values() if row.name in wanted]
