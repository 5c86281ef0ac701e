"""The rows of the table. Standard library only: both interpreters read this."""

from dataclasses import dataclass

TOKENS = 20
"""Tokens of a question's text."""
FRAMES = 500
"""Five seconds of mel, a hundred frames a second."""
MANY = 64
PICTURES = 32
LATENCY_MS = 100.0
"""Greatest p99 latency that counts as served, for `in-flight`."""

BY_HAND = "fp32 by hand, 5 s"
"""Whisper's reference for parity: the window of the question alone, in float32."""


@dataclass(frozen=True, slots=True)
class Row:
    """`figure`: the field of a measurement that is compared. `baseline`: PyTorch's variant that ratios are against.
    `reference`: the variant whose outputs are right."""

    name: str
    title: str
    family: str
    figure: str
    baseline: str
    reference: str
    target: str

    @property
    def less_is_better(self) -> bool:
        return self.figure == "p50_ms"


_GENERATE = "fp32 generate, 30 s"

ROWS = {
    row.name: row
    for row in (
        Row("bert-1x32", "BERT-base 1x32", "bert", "p50_ms", "fp32 eager", "fp32 eager", "<= 0.50 ms, >= 8x"),
        Row(
            "bert-64x32",
            "BERT-base 64x32, sequences a second",
            "bert",
            "per_second",
            "fp32 eager",
            "fp32 eager",
            "> CUDA graph",
        ),
        Row(
            "whisper-1",
            "Whisper-small, 5 s question, 20 tokens, from mel",
            "whisper",
            "p50_ms",
            _GENERATE,
            BY_HAND,
            "<= 12 ms, >= 10x",
        ),
        Row(
            "whisper-64",
            "the same, 64 rows at once, questions a second",
            "whisper",
            "per_second",
            _GENERATE,
            BY_HAND,
            ">= 10x",
        ),
        Row(
            "efficientnet-32",
            "EfficientNet-B0, batch 32, pictures a second",
            "efficientnet",
            "per_second",
            "fp32 eager",
            "fp32 eager",
            ">= 7x, top-1 drop < 1 point",
        ),
        Row(
            "in-flight",
            f"identical recognitions in flight, p99 <= {LATENCY_MS:.0f} ms",
            "whisper",
            "in_flight",
            "fp16 generate, 30 s",
            "",
            ">= 300, >= 6x",
        ),
        Row("build-cache", "second build with the timing cache, times faster", "build", "speedup", "", "", ">= 4x"),
    )
}
TORCH_FAMILIES = ("bert", "whisper", "efficientnet")
"""One PyTorch process each, which loads its model once."""


def chosen(names: str) -> list[Row]:
    """The rows that a list with commas names, in the table's order. Raises ValueError."""
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        raise ValueError(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return [row for row in ROWS.values() if row.name in wanted]
