import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aula.bench.records import Report, Row, Skipped
from aula.bench.subjects import Subject, subject_of
from aula.cli import bench as module
from aula.engine.store import Store
from tests.bench.toy import toy_file, toy_model
from tests.cli.running import Run

ROW = Row(
    part=None,
    shape="1x32",
    precision="int8",
    native="torch",
    native_ms=48.0,
    engine_ms=10.0,
    ratio=4.8,
    metric_drop=0.001,
    floor_ms=2.5,
    backend="openvino",
    relative_error=0.01,
    layer_share=0.5,
    engine_spread_ms=(9.5, 11.0),
    native_spread_ms=(47.0, 50.0),
    native_variant="sdpa",
)
MACHINE = {"processor": "a processor", "cores": "2", "threads": 2, "int8_gop_s": 900.0, "read_gb_s_128_mib": 30.0}
REPORT = Report("bert-base", True, (ROW,), (Skipped("onnxruntime", "not installed"),), {"torch": "2.13"}, MACHINE)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A report without a race."""

    def found(*_: object, **__: object) -> "_Found":
        return _Found(subject_of(toy_model(tmp_path), Store(tmp_path / "store"), ()))

    monkeypatch.setattr(module, "open_subject", found)
    monkeypatch.setattr(module, "compare", lambda *_, **__: REPORT)


class _Found:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __enter__(self) -> Subject:
        return self._subject

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("measured")
def test_json_is_one_object_with_the_agreed_keys(run: Run) -> None:
    ended = run("bench", "bert-base", "--json")
    assert (ended.code, len(ended.out.splitlines())) == (0, 1)
    told = json.loads(ended.out)
    assert {"model", "rows", "versions", "machine"} <= set(told)
    agreed = {"shape", "precision", "native", "native_ms", "engine_ms", "ratio", "metric_drop", "floor_ms"}
    assert agreed <= set(told["rows"][0])
    assert "part" not in told["rows"][0]


@pytest.mark.usefixtures("measured")
def test_people_get_a_table_and_the_json_line_last(run: Run) -> None:
    ended = run("bench", "bert-base")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert json.loads(lines[-1])["model"] == "bert-base"
    for text in ("made-up weights", "torch (sdpa)", "4.80×", "2.50 (4.0×)", "drop 0.10 points", "50 % of layers"):
        assert text in ended.out
    assert "Left out onnxruntime: not installed" in ended.out


def test_the_table_fits_80_columns_and_takes_names_as_they_are() -> None:
    long = replace(ROW, part="[/x]encoder", shape="1x500", native="onnxruntime, dynamic int8", engine_ms=12345.67)
    console = Console(width=80, file=StringIO(), highlight=False)
    module.print_report(console, replace(REPORT, model="[/x]evil", rows=(ROW, long)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    for text in ("[/x]evil", "[/x]encoder 1x500 int8: openvino, 50 % of layers in int8", "12345.67"):
        assert text in printed


def test_an_onnx_file_with_free_dimensions_is_raced_at_the_shape_asked_for(run: Run, tmp_path: Path) -> None:
    ended = run("bench", str(toy_file(tmp_path)), "--shape", "2x8", "--precision", "fp32", "--rounds", "1", "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["rows"]
    assert {(row["shape"], row["precision"]) for row in rows} == {("2x8", "fp32")}
    assert {"onnxruntime"} <= {row["native"] for row in rows}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("no-such-model",), 5),
        (("minilm", "--against", "tensorflow"), 5),
        (("minilm", "--precision", "int3"), 5),
        (("minilm", "--shape", "banana"), 5),
        (("minilm", "--rounds", "0"), 2),
    ],
)
def test_bad_usage_says_what_there_is(run: Run, models: None, arguments: tuple[str, ...], code: int) -> None:
    ended = run("bench", *arguments)
    assert ended.code == code
    assert "Next:" in ended.err or code == 2
