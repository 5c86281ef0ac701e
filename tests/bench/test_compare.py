from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aula.bench import rivals
from aula.bench.compare import _Bench, bench, relative_error
from aula.bench.machine import Roof
from aula.bench.records import BenchOptions
from aula.bench.subjects import subject_of
from aula.core.clock import FakeClock
from aula.core.errors import EngineError
from aula.engine.store import Store
from aula.engine.targets import MIXED
from tests.bench.toy import noise, toy_model, toy_recipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def plain_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that need no measuring."""
    monkeypatch.setattr(Roof, "_read", lambda self, size: 1e9)
    monkeypatch.setattr(Roof, "_multiply", lambda self, precision: 1e9)


@pytest.mark.usefixtures("plain_roof")
def test_a_toy_races_onnx_runtime_from_recipe_to_report(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    recipe = toy_recipe(tmp_path)
    model = toy_model(tmp_path, calibration=lambda: noise(recipe))
    told: list[str] = []
    report = bench(
        subject_of(model, Store(tmp_path / "store"), ("1x8",)),
        BenchOptions(against=("onnxruntime",), precisions=("fp32", "int8"), rounds=2),
        progress=lambda what, share: told.append(f"{what} {share:.2f}"),
    )
    plain = next(row for row in report.rows if (row.precision, row.native) == ("fp32", "onnxruntime"))
    assert plain.relative_error is not None
    assert plain.relative_error < 1e-5
    assert (plain.shape, plain.part, plain.metric_drop) == ("1x8", None, None)
    assert plain.ratio is not None
    assert plain.ratio > 0
    # two matrices of 32 x 32 in fp32 at 1 GB/s, and 8 rows through them at 1 GOP/s
    assert plain.floor_ms == round(1000 * 2 * 2 * 8 * 32 * 32 / 1e9, 3)
    assert any(row.native == "onnxruntime, dynamic int8" for row in report.rows)
    assert any(row.precision in ("int8", MIXED) for row in report.rows) or any(
        one.what == "int8" for one in report.skipped
    )
    assert report.seeded
    assert any("racing" in line for line in told)


@pytest.mark.usefixtures("plain_roof")
def test_who_cannot_run_is_left_out_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals._NEEDED, "torch", ("no_such_library",))
    broken = rivals.Rival("broken", {"kind": "no such kind"})
    found = rivals.rivals_of
    monkeypatch.setattr("aula.bench.compare.rivals_of", lambda *given: (*found(*given), broken))
    report = bench(
        subject_of(toy_model(tmp_path), Store(tmp_path / "store"), ("1x8",)),
        BenchOptions(against=("torch",), precisions=("fp32", "int8"), rounds=1),
    )
    why = {one.what: one.why for one in report.skipped}
    assert 'pip install "aula[bench]"' in why["torch"]
    assert "no such kind" in why["broken"]
    assert "real examples" in why["int8"]
    (row,) = report.rows
    assert (row.native, row.native_ms, row.ratio) == (None, None, None)
    assert row.engine_ms > 0


def _race(folder: Path, *precisions: str) -> _Bench:
    subject = subject_of(toy_model(folder), Store(folder / "store"), ("1x8",))
    return _Bench(subject, BenchOptions(precisions=precisions), lambda _what, _share: None, FakeClock())


@pytest.mark.parametrize(
    ("asked", "shipped", "lost", "named"),
    [
        ("int8", MIXED, [], [MIXED]),
        ("int8", "int8", [MIXED], ["int8"]),
        (MIXED, "int8", [MIXED], []),
        (MIXED, "fp32", ["int8"], []),
    ],
)
def test_an_engine_is_named_by_the_precision_that_it_has(
    asked: str, shipped: str, lost: list[str], named: list[str], tmp_path: Path
) -> None:
    candidates = [SimpleNamespace(precision=one, backend="openvino", rejected=f"{one} is slow") for one in lost]
    engine = SimpleNamespace(precision=shipped, candidates=candidates)
    bundle: Any = SimpleNamespace(engine=lambda _part: engine)
    race = _race(tmp_path, asked)
    assert list(race._engines("model", {asked: bundle})) == named
    why = [(asked, f"the builder ships none (openvino: {lost[0]} is slow)")] if not named else []
    assert list(race._skipped) == why


def test_int8_is_plain_where_the_mix_races_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "aula.bench.compare.build", lambda _model, _store, options, **_more: given.append(options.lower)
    )
    _race(tmp_path, "int8", MIXED)._build()
    _race(tmp_path, "int8")._build()
    assert given == [(), ("int8",), ("int8", MIXED), (), ("int8", MIXED)]


def test_options_name_what_there_is() -> None:
    with pytest.raises(EngineError, match="torch, onnxruntime"):
        BenchOptions(against=("tensorflow",))
    with pytest.raises(EngineError, match="fp32, bf16, int8"):
        BenchOptions(precisions=("int3",))
    with pytest.raises(EngineError, match="--precision fp32,int8"):
        BenchOptions(precisions=())


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"y": [1.0, 2.0]}, {"y": [1.0, 4.0]}, 0.5),
        ({"y": [1.0]}, {"z": [1.0]}, None),
        ({"y": [1.0]}, {"y": [1.0, 2.0]}, None),
        ({"y": [float("nan")]}, {"y": [1.0]}, float("inf")),
    ],
)
def test_relative_error(ours: dict[str, Any], theirs: dict[str, Any], expected: float | None) -> None:
    def arrays(given: dict[str, Any]) -> dict[str, Any]:
        return {name: np.array(values, dtype=np.float32) for name, values in given.items()}

    assert relative_error(arrays(ours), arrays(theirs)) == expected
    whole = {"y": np.array([1, 2])}
    assert relative_error(whole, whole) is None
