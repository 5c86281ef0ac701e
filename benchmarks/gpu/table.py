"""From what the competitors said to the table and its last line. Pure: nothing here runs or reads anything."""

import json
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from benchmarks.gpu.rows import MOST_TOP1_DROP, ROWS, Row

Said = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray[Any, Any]]


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
        if row.family == "efficientnet":
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
        "ours_more": {} if own is None else _more(ours["variants"][own[0]]),
        "floor": None if floor_ms is None else _significant(figure(row, {"p50_ms": floor_ms})),
        "target": row.target,
        "met": met,
        "parity": dict(parity or {}),
        "skipped": _left_out(pytorch=torch, ours=ours),
    }


def _left_out(**both: Said) -> dict[str, str]:
    """By competitor, or by its variant."""
    found = {name: str(said["skipped"]) for name, said in both.items() if said.get("skipped")}
    for name, said in both.items():
        for variant, figures in said.get("variants", {}).items():
            if figures.get("skipped"):
                found[f"{name} {variant}"] = str(figures["skipped"])
    return found


def _more(variant: Mapping[str, Any]) -> dict[str, Any]:
    return {name: variant[name] for name in MORE if variant.get(name) is not None}


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


BRIEF = 4000
"""Characters that the last line of a run may have."""
MORE = (
    "p90_ms",
    "p99_ms",
    "with_copies_ms",
    "first_s",
    "second_s",
    "first_whole_s",
    "second_whole_s",
    "top1_drop",
)


def brief(report: Mapping[str, Any]) -> str:
    """The report as one line of JSON for whoever reads logs: best figures, ratios, verdicts and parity. Where that is
    too long, reasons are cut shorter, then parity and finally the reasons go."""
    for reasons, with_parity in ((200, True), (60, True), (60, False), (0, False)):
        rows = {row["row"]: _brief(row, reasons, parity=with_parity) for row in report["rows"]}
        line = json.dumps({**{name: report[name] for name in ("host", "versions", "limits")}, "rows": rows})
        if len(line) <= BRIEF:
            break
    return line


def _brief(row: Mapping[str, Any], reasons: int, *, parity: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [row[name]["variant"], row[name]["value"]] for name in ("native", "rival", "ours") if row[name]
    }
    found |= {name: row[name] for name in ("times_native", "times_rival", "floor", "met") if row[name] is not None}
    if row["ours_more"]:
        found["more"] = {name: _rounded(value) for name, value in row["ours_more"].items()}
    if row["parity"] and parity:
        found["parity"] = {name: _rounded(value) for name, value in row["parity"].items()}
    if row["skipped"] and reasons:
        found["skipped"] = {name: str(why)[:reasons] for name, why in row["skipped"].items()}
    return found


def _rounded(value: Any) -> Any:
    return _significant(value) if isinstance(value, float) else value


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
        if "top1_drop" in row["ours_more"]:
            drop = row["ours_more"]["top1_drop"]
            drawn.append(
                f"{row['row']}: ours costs {drop:.2f} points of top-1, on the trained network of training/digits"
            )
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
