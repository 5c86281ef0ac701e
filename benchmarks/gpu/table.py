"""From what the competitors said to the table and its JSON. Pure functions: nothing here runs or reads anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

Said = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """`figure` is what is compared; `native` are the variants that stand for PyTorch as its users run it, of which the
    best counts, and `rows` how many one run serves. `meets(value, ratio to native, ratio to best rival)`."""

    name: str
    title: str
    figure: str
    native: tuple[str, ...]
    target: str
    meets: Callable[[float, float | None, float | None], bool]
    rows: int = 1
    torch: bool = True

    @property
    def less_is_better(self) -> bool:
        return self.figure == "p50_ms"

    @property
    def unit(self) -> str:
        return {"p50_ms": " ms", "per_second": "/s", "speedup": "x"}.get(self.figure, "")


def _at_least(ratio: float | None, wanted: float) -> bool:
    return ratio is not None and ratio >= wanted


EAGER, GENERATE = ("fp32 eager",), ("fp32 generate",)
ROWS = {
    row.name: row
    for row in (
        Row(
            "bert-1x32",
            "BERT-base 1x32",
            "p50_ms",
            EAGER,
            "<= 0.50 ms, >= 8x",
            lambda value, native, _: value <= 0.5 and _at_least(native, 8),
        ),
        Row(
            "bert-64x32",
            "BERT-base 64x32 throughput",
            "per_second",
            EAGER,
            "better than the best rival",
            lambda _, __, rival: rival is not None and rival > 1,
            rows=64,
        ),
        Row(
            "whisper-1",
            "Whisper-small, 5 s question, 20 tokens, from mel",
            "p50_ms",
            GENERATE,
            "<= 12 ms, >= 10x",
            lambda value, native, _: value <= 12 and _at_least(native, 10),
        ),
        Row(
            "whisper-64",
            "the same, 64 rows at once, questions a second",
            "per_second",
            GENERATE,
            ">= 10x",
            lambda _, native, __: _at_least(native, 10),
            rows=64,
        ),
        Row(
            "efficientnet-32",
            "EfficientNet-B0 INT8, batch 32 throughput",
            "per_second",
            EAGER,
            ">= 7x, top-1 drop < 1 point",
            lambda _, native, __: _at_least(native, 7),
            rows=32,
        ),
        Row(
            "build-cache",
            "second build with the timing cache",
            "speedup",
            (),
            ">= 4x",
            lambda value, _, __: value >= 4,
            torch=False,
        ),
        Row(
            "in-flight",
            "identical recognitions in flight, p99 <= 100 ms",
            "in_flight",
            ("fp32 generate", "fp16 generate"),
            ">= 300, >= 6x native",
            lambda value, native, _: value >= 300 and _at_least(native, 6),
        ),
    )
}
MOST_TOP1_DROP = 1.0
"""Points of top-1 that INT8 may cost; a variant of EfficientNet that does not say its drop has not met the target."""


FIGURES = ("p50_ms", "p90_ms", "per_second", "in_flight", "p99_ms", "speedup", "top1_drop", "with_copies_ms")


def with_variants(said: Said) -> dict[str, Any]:
    """Our side tells the figures of its one engine beside the rest; here they become a variant, as PyTorch's are."""
    figures = {name: said[name] for name in FIGURES if said.get(name) is not None}
    if not figures or "variants" in said:
        return dict(said)
    rest = {name: value for name, value in said.items() if name not in FIGURES}
    return rest | {"variants": {str(said.get("variant", "engine")): figures}}


def figure(row: Row, variant: Mapping[str, Any]) -> float | None:
    """None for a variant that was skipped, or serves only as reference."""
    value = variant.get(row.figure)
    if value is None and row.figure == "per_second" and variant.get("p50_ms"):
        value = 1000 * row.rows / variant["p50_ms"]
    return None if value is None else float(value)


def best(row: Row, variants: Mapping[str, Any], among: Sequence[str] | None = None) -> tuple[str, float] | None:
    """Name and figure of the best variant, of those named in `among`."""
    found = {
        name: value
        for name, variant in variants.items()
        if (among is None or name in among) and (value := figure(row, variant)) is not None
    }
    if not found:
        return None
    name = (min if row.less_is_better else max)(found, key=lambda name: found[name])
    return name, found[name]


def times_better(row: Row, ours: float, theirs: float) -> float:
    """Infinite where the other could not serve even one."""
    better, worse = (theirs, ours) if row.less_is_better else (ours, theirs)
    return inf if worse == 0 else better / worse


def compare(
    row: Row, torch: Said, ours: Said, parity: Mapping[str, Any] | None = None, floor_ms: float | None = None
) -> dict[str, Any]:
    """One row of the report. `met` is None where there is nothing to judge; `floor` is the best figure that any
    version could have, where one run takes no less than `floor_ms`."""
    own = best(row, ours.get("variants", {}))
    native = best(row, torch.get("variants", {}), row.native)
    rival = best(row, torch.get("variants", {}))
    ratio = {
        name: None if own is None or other is None else times_better(row, own[1], other[1])
        for name, other in (("native", native), ("rival", rival))
    }
    met: bool | None = None
    if own is not None:
        met = row.meets(own[1], ratio["native"], ratio["rival"])
        if row.name == "efficientnet-32":
            drop = ours["variants"][own[0]].get("top1_drop")
            met = met and drop is not None and drop < MOST_TOP1_DROP
    return {
        "row": row.name,
        "title": row.title,
        "figure": row.figure,
        "native": _named(native),
        "rival": _named(rival),
        "ours": _named(own),
        "times_native": _number(ratio["native"]),
        "times_rival": _number(ratio["rival"]),
        "floor": None if floor_ms is None else _significant(figure(row, {"p50_ms": floor_ms})),
        "target": row.target,
        "met": met,
        "parity": dict(parity or {}),
        "skipped": {
            name: said["skipped"] for name, said in (("pytorch", torch), ("ours", ours)) if said.get("skipped")
        },
    }


def _named(found: tuple[str, float] | None) -> dict[str, Any] | None:
    return None if found is None else {"variant": found[0], "value": round(found[1], 4)}


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _number(ratio: float | None) -> float | str | None:
    """JSON has no infinity."""
    return None if ratio is None else "inf" if ratio == inf else round(ratio, 3)


def parity(row: str, torch: Arrays, ours: Arrays) -> dict[str, Any]:
    """How far our outputs are from PyTorch's in float32; empty where either has none.

    Whisper's reference hears five seconds, as our engines do. After a first different token a text goes its own way,
    so what counts is how far ahead the reference's likeliest token was just there: next to nothing means a tie.
    """
    if row.startswith("whisper"):
        return _tokens(torch, ours)
    name = {"bert": "hidden", "efficientnet": "logits"}.get(row.split("-")[0], "")
    if name not in torch or name not in ours:
        return {}
    expected, found = torch[name].astype(np.float64), ours[name].astype(np.float64)
    if expected.shape != found.shape:
        return {"shapes_differ": [list(expected.shape), list(found.shape)]}
    return {"relative_error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected))}


def _tokens(torch: Arrays, ours: Arrays) -> dict[str, Any]:
    if "tokens_question_fp32" not in torch or "tokens" not in ours:
        return {}
    expected, found = torch["tokens_question_fp32"], ours["tokens"]
    if expected.shape != found.shape:
        return {"shapes_differ": [list(expected.shape), list(found.shape)]}
    different = expected != found
    rows = np.flatnonzero(different.any(axis=1))
    about: dict[str, Any] = {
        "equal_tokens": float(1 - different.mean()),
        "equal_texts": 1 - len(rows) / len(expected),
    }
    if len(rows) and "gaps_question_fp32" in torch:
        gaps = torch["gaps_question_fp32"]
        about["greatest_gap_where_texts_part"] = float(gaps[rows, different[rows].argmax(axis=1)].max())
        about["usual_gap"] = float(np.median(gaps))
    return about


HEAD = ("work", "PyTorch as users run it", "best rival", "ours", "x native", "x rival", "floor", "target", "met")


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table in Markdown, then the parity of each row and what was left out."""
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    drawn = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        if row["parity"]:
            figures = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in row["parity"].items())
            drawn.append(f"parity of {row['row']} with PyTorch fp32: {figures}")
        drawn += [f"{row['row']}: {name} left out: {why}" for name, why in row["skipped"].items()]
    return drawn


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    unit = ROWS[row["row"]].unit
    native, rival, ours = (row[name] for name in ("native", "rival", "ours"))
    return (
        row["title"],
        _value(native, unit),
        _value(rival, unit, name=True),
        _value(ours, unit, name=True),
        _ratio(row["times_native"]),
        _ratio(row["times_rival"]),
        "-" if row["floor"] is None else f"{row['floor']:.3g}{unit}",
        row["target"],
        {True: "yes", False: "NO", None: "-"}[row["met"]],
    )


def _value(found: Mapping[str, Any] | None, unit: str, *, name: bool = False) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.4g}{unit}" + (f" ({found['variant']})" if name else "")


def _ratio(ratio: float | str | None) -> str:
    return "-" if ratio is None else ratio if isinstance(ratio, str) else f"{ratio:.2f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
