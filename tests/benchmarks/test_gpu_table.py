import json

import numpy as np
import pytest

from benchmarks.gpu import table
from benchmarks.gpu.rows import ROWS
from benchmarks.gpu.table import best, compare, figure, lines, parity

TORCH = {
    "variants": {
        "fp32 eager": {"p50_ms": 4.0, "per_second": 10_000.0},
        "fp16 CUDA graph": {"p50_ms": 0.75, "per_second": 40_000.0},
        "fp16 torch.compile": {"skipped": "no compiler"},
    }
}


def ours(**figures: float) -> dict[str, object]:
    return {"variants": {"plan": figures}}


def test_ratios_to_the_users_way_and_to_the_best_rival() -> None:
    row = compare(ROWS["bert-1x32"], TORCH, ours(p50_ms=0.4))
    assert row["native"] == {"variant": "fp32 eager", "value": 4.0}
    assert row["rival"] == {"variant": "fp16 CUDA graph", "value": 0.75}
    assert row["times_native"] == pytest.approx(10)
    assert row["times_rival"] == pytest.approx(1.875)
    assert row["met"] is True


@pytest.mark.parametrize("milliseconds", [0.51, 0.6])
def test_both_halves_of_a_target_count(milliseconds: float) -> None:
    assert compare(ROWS["bert-1x32"], TORCH, ours(p50_ms=milliseconds))["met"] is False
    slow = {"variants": {"fp32 eager": {"p50_ms": 3.9}}}
    assert compare(ROWS["bert-1x32"], slow, ours(p50_ms=0.5))["met"] is False


def test_throughput_is_better_when_greater_and_follows_from_the_time_where_it_is_not_told() -> None:
    row = ROWS["bert-64x32"]
    assert figure(row, {"p50_ms": 1.6}) == pytest.approx(40_000)
    assert compare(row, TORCH, ours(per_second=39_000.0))["met"] is False
    better = compare(row, TORCH, ours(per_second=44_000.0))
    assert better["met"] is True
    assert better["times_rival"] == pytest.approx(1.1)


def test_skipped_and_reference_variants_are_no_rivals() -> None:
    variants = {"a": {"skipped": "out of memory"}, "b": {"reference": True}}
    assert best(ROWS["whisper-1"], variants) is None
    row = compare(ROWS["whisper-1"], {"variants": variants}, ours(p50_ms=5.0))
    assert (row["native"], row["times_native"], row["met"]) == (None, None, False)


def test_without_ours_nothing_is_judged() -> None:
    row = compare(ROWS["bert-1x32"], TORCH, {"skipped": "broke"})
    assert row["met"] is None
    assert row["skipped"] == {"ours": "broke", "pytorch fp16 torch.compile": "no compiler"}


def test_a_rival_that_serves_nobody_in_time_is_infinitely_worse() -> None:
    torch = {"variants": {"fp32 generate": {"in_flight": 0}, "fp16 CUDA graph, 5 s": {"in_flight": 96}}}
    row = compare(ROWS["in-flight"], torch, ours(in_flight=384))
    assert row["times_native"] == "inf"
    assert row["times_rival"] == pytest.approx(4)
    assert row["met"] is True
    assert compare(ROWS["in-flight"], torch, ours(in_flight=256))["met"] is False
    json.dumps(row, allow_nan=False)


def test_the_better_of_two_users_ways_is_the_native_one() -> None:
    torch = {"variants": {"fp32 generate": {"in_flight": 40}, "fp16 generate": {"in_flight": 64}}}
    row = compare(ROWS["in-flight"], torch, ours(in_flight=320))
    assert row["native"] == {"variant": "fp16 generate", "value": 64.0}
    assert row["met"] is False


@pytest.mark.parametrize(("figures", "met"), [({"top1_drop": 0.4}, True), ({"top1_drop": 1.0}, False), ({}, False)])
def test_int8_pictures_must_tell_what_they_lose(figures: dict[str, float], met: bool) -> None:
    assert compare(ROWS["efficientnet-32"], TORCH, ours(per_second=80_000.0, **figures))["met"] is met


def test_the_timing_cache_has_no_rival() -> None:
    assert compare(ROWS["build-cache"], {}, ours(speedup=4.5))["met"] is True
    assert compare(ROWS["build-cache"], {}, ours(speedup=3.5))["met"] is False


def test_parity_of_hidden_states_is_relative() -> None:
    expected = np.array([[3.0, 4.0]])
    assert parity("bert-1x32", {"hidden": expected}, {"hidden": expected * 1.01}) == {
        "relative_error": pytest.approx(0.01)
    }
    assert parity("bert-1x32", {"hidden": expected}, {}) == {}
    assert "shapes_differ" in parity("bert-1x32", {"hidden": expected}, {"hidden": expected.T})


def test_parity_of_texts_looks_at_the_gap_where_they_part() -> None:
    expected = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[1, 2, 3, 4], [5, 9, 9, 8]])
    gaps = np.array([[4.0, 4.0, 4.0, 4.0], [4.0, 0.01, 3.0, 4.0]])
    torch = {"tokens_question_fp32": expected, "gaps_question_fp32": gaps}
    about = parity("whisper-64", torch, {"tokens": found})
    assert about == {
        "equal_tokens": 0.75,
        "equal_texts": 0.5,
        "greatest_gap_where_texts_part": 0.01,
        "usual_gap": 4.0,
    }
    assert "greatest_gap_where_texts_part" not in parity("whisper-64", torch, {"tokens": expected})
    assert "shapes_differ" in parity("whisper-64", torch, {"tokens": found[:1]})


def test_the_table_names_variants_verdicts_parity_and_what_was_left_out() -> None:
    rows = [
        compare(ROWS["bert-1x32"], TORCH, ours(p50_ms=0.6), {"relative_error": 0.00123}),
        compare(ROWS["build-cache"], {}, {"skipped": "no GPU"}),
    ]
    drawn = lines(rows)
    assert [len(line) for line in drawn[:4]] == [len(drawn[0])] * 4
    cells = [cell.strip() for cell in drawn[2].strip("|").split("|")]
    assert cells == [
        "BERT-base 1x32",
        "4 ms",
        "0.75 ms (fp16 CUDA graph)",
        "0.6 ms (plan)",
        "6.67",
        "1.25",
        "-",
        "<= 0.50 ms, >= 8x",
        "NO",
    ]
    assert drawn[4:] == [
        "parity of bert-1x32 with PyTorch fp32: relative error 0.00123",
        "bert-1x32: pytorch fp16 torch.compile left out: no compiler",
        "build-cache: ours left out: no GPU",
    ]


def test_the_last_line_stays_short_whatever_went_wrong() -> None:
    torch = {"variants": {**TORCH["variants"], **{f"variant {n}": {"skipped": "why " * 100} for n in range(8)}}}
    rows = [
        compare(row, torch, {**ours(p50_ms=0.4, p90_ms=0.51234567), "skipped": "x" * 5000}, {"relative_error": 0.01})
        for row in ROWS.values()
    ]
    report = {"host": {"gpu": "NVIDIA H100"}, "versions": {"torch": "2.11"}, "limits": {}, "rows": rows, "children": {}}
    line = table.brief(report)
    assert len(line) <= table.BRIEF
    told = json.loads(line)["rows"]["bert-1x32"]
    assert told["ours"] == ["plan", 0.4]
    assert told["more"] == {"p90_ms": 0.5123}
    assert (told["times_native"], told["met"]) == (10.0, True)
    short = json.loads(table.brief({**report, "rows": rows[:1]}))["rows"]["bert-1x32"]
    assert short["parity"] == {"relative_error": 0.01}
    assert short["skipped"]["ours"].startswith("xxx")


def test_points_of_top1_are_shown() -> None:
    row = compare(ROWS["efficientnet-32"], TORCH, ours(per_second=80_000.0, top1_drop=0.25))
    assert any("0.25 points of top-1" in line for line in lines([row]))


def test_every_row_has_a_unit_and_a_name_of_its_own() -> None:
    assert [row.name for row in ROWS.values()] == list(ROWS)
    assert {row.figure for row in ROWS.values()} <= {"p50_ms", "per_second", "speedup", "in_flight"}
    assert table.HEAD[0] == "work"
