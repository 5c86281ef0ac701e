"""The parts of benchmarks/whisper.py that need no rival."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aula.bench.race import Timing
from aula.engine.build import BuildOptions, build
from aula.engine.store import Store
from aula.models.whisper import whisper_model
from benchmarks.whisper import BASELINE, Entrant, _draft, _shown
from benchmarks.whisper_competitors import Aula, Live
from tests.models.whisper_thin_model import sound, thin_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    folder = tmp_path_factory.mktemp("race")
    checkpoint = thin_checkpoint(folder / "thin")
    made = build(whisper_model(checkpoint, "thin", seeded=True), Store(folder / "store"), BuildOptions(threads=1))
    return folder / "store", made.manifest.key, folder / "thin"


def test_ours_write_the_same_with_drafts_and_in_rows(bundle: tuple[Path, str, Path]) -> None:
    store, key, folder = bundle
    texts = []
    for rows, draft in ((0, []), (0, [1, 2, 3]), (1, []), (3, [])):
        competitor = Aula(str(store), key, str(folder), 4.0, rows)
        given = {"samples": sound(1, 2.0), "tokens": np.array(9), "draft": np.array(draft, dtype=np.int64)}
        about = competitor.prepare(given)
        competitor.rewind()
        competitor.run()
        texts.append(competitor.outputs()["tokens"].tolist())
        assert about["tokens"] == 9
        assert 0 < about["memory_mb"] < about["most_memory_mb"]
    assert texts == [texts[0]] * 4


def test_live_streams_write_it_too_after_a_pause_and_together(bundle: tuple[Path, str, Path]) -> None:
    store, key, folder = bundle
    texts = []
    for streams, paused in ((1, False), (1, True), (3, False)):
        competitor = Live(str(store), key, str(folder), 4.0, streams, paused)
        competitor.prepare({"samples": sound(1, 2.0), "tokens": np.array(9)})
        competitor.rewind()
        competitor.run()
        texts.append(competitor.outputs()["tokens"].tolist())
    assert len(texts[0]) == 9
    assert texts == [texts[0]] * 3


def test_drafts_are_what_the_same_engine_wrote(bundle: tuple[Path, str, Path]) -> None:
    texts = {"ours": list(range(8))}
    assert _draft(Entrant("ours", {}), texts) == []
    assert _draft(Entrant("ours, draft right", {}, draft="right"), texts) == list(range(8))
    assert _draft(Entrant("ours, draft wrong late", {}, draft="late"), texts) == [0, 1, 2, 3, 4, 6, 7, 8]
    assert _draft(Entrant("ours, draft wrong", {}, draft="wrong"), texts) == list(range(1, 9))
    assert _draft(Entrant("theirs, draft right", {}, draft="right"), texts) == []


def test_ratios_are_to_the_baseline_of_the_same_rounds() -> None:
    timings = {BASELINE: Timing([[100.0], [200.0]]), "ours": Timing([[10.0], [10.0]])}
    texts = {BASELINE: [1, 2], "ours": [1, 2]}
    out = io.StringIO()
    console = Console(file=out, width=150)
    rows = _shown(timings, {name: {"what": name, "memory_mb": 5, "tokens": 2} for name in timings}, texts, 5.0, console)
    assert rows["ours"]["times"] == 15.0
    assert rows["ours"]["same_text"]
    assert "5 s of sound" in out.getvalue()
    assert "AMX" in out.getvalue(), "the figures depend on it"
    assert "5 MB" in out.getvalue()
    drafted = {"ours": timings["ours"], "ours, draft right": Timing([[5.0], [4.0]])}
    told, wrote = {name: {"memory_mb": 5} for name in drafted}, {name: [1] for name in drafted}
    assert _shown(drafted, told, wrote, 5.0, console)["ours, draft right"]["over_no_draft"] == 0.444
    alone = _shown({"ours": timings["ours"]}, {"ours": {"memory_mb": 5}}, {"ours": [1]}, 5.0, console)
    assert alone["ours"]["times"] is None
