import json
from pathlib import Path
from typing import Any

import pytest

from aula.models import bert_seeded, efficientnet_seeded, whisper
from benchmarks.gpu.__main__ import limits_of
from benchmarks.gpu.floors import floor_ms, load_of
from benchmarks.gpu.rows import ROWS
from benchmarks.gpu.table import compare, lines

CONFIGS: dict[str, dict[str, Any]] = {
    "bert-base": bert_seeded.ARCHITECTURES["bert-base"],
    "whisper-small": whisper.ARCHITECTURES["whisper-small"],
    "efficientnet-b0": efficientnet_seeded.ARCHITECTURES["efficientnet-b0"],
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name, config in CONFIGS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_a_sentence_reads_the_layers_once_and_computes_twice_as_much_for_each_token(work: Path) -> None:
    one, many = load_of("bert-1x32", work), load_of("bert-64x32", work)
    assert one is not None
    assert many is not None
    # 85 million numbers: 0.04 ms at 4.3 TB/s.
    assert one["bytes"] == many["bytes"] == pytest.approx(170e6, rel=0.01)
    assert one["operations"] == pytest.approx(2 * 85e6 * 32, rel=0.02)
    assert many["operations"] == pytest.approx(64 * one["operations"])


def test_a_question_reads_the_decoder_for_every_token(work: Path) -> None:
    one, many = load_of("whisper-1", work), load_of("whisper-64", work)
    assert one is not None
    assert many is not None
    # Encoder with the cross projections once; twenty times the decoder with the vocabulary, and the sound.
    assert one["bytes"] == pytest.approx(2 * (99e6 + 20 * (139e6 + 4.6e6)), rel=0.01)
    assert many["operations"] == pytest.approx(64 * one["operations"])


def test_rows_without_a_checkpoint_have_no_load(work: Path, tmp_path: Path) -> None:
    assert load_of("efficientnet-32", work) is not None
    assert load_of("in-flight", work) is None
    assert load_of("build-cache", work) is None
    assert load_of("bert-1x32", tmp_path / "elsewhere") is None


def test_the_floor_is_the_longer_of_bytes_and_operations() -> None:
    limits = {"bytes_per_second": 1e9, "operations_per_second": 1e12}
    assert floor_ms({"bytes": 1e6, "operations": 1e6}, limits) == pytest.approx(1.0)
    assert floor_ms({"bytes": 1e6, "operations": 1e10}, limits) == pytest.approx(10.0)
    assert floor_ms(None, limits) is None
    assert floor_ms({"bytes": 1.0, "operations": 1.0}, {}) is None


def test_the_table_shows_a_time_for_one_and_a_rate_for_many() -> None:
    one = compare(ROWS["bert-1x32"], {}, {}, floor_ms=0.04)
    many = compare(ROWS["bert-64x32"], {}, {}, floor_ms=0.5)
    assert (one["floor"], many["floor"]) == (0.04, 128_000)
    assert "0.04 ms" in "\n".join(lines([one]))
    assert "1.28e+05/s" in "\n".join(lines([many]))


def test_the_best_limits_of_all_processes_count() -> None:
    children: dict[str, Any] = {
        "bert-1x32": {"pytorch": {"limits": {"bytes_per_second": 4.0, "operations_per_second": 9.0}}},
        "bert-64x32": {"pytorch": {"limits": {"bytes_per_second": 5.0, "operations_per_second": 8.0}}},
        "build-cache": {"pytorch": {}},
    }
    assert limits_of(children) == {"bytes_per_second": 5.0, "operations_per_second": 9.0}
