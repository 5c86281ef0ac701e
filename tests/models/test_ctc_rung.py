"""The recogniser as a rung: which folder serves, where it stands, and a whole question on a built engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.core.errors import ModelNotFoundError, NothingHeardError, SettingsError
from aula.core.settings import Settings
from aula.core.types import Context, TranscribeRequest
from aula.models import ctc_rung, ctc_task
from aula.models.catalogue import find_model
from aula.models.rungs import hearing_rungs
from tests.models.ctc_small_model import small


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings({"home": str(tmp_path / "home"), "whisper": "none", "threads": 1, **values})


def names(found: Settings) -> list[str]:
    return [rung.info.name for rung in hearing_rungs(found, None, lambda _what, _share: None)]


@pytest.fixture
def without_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc_rung, "PACKAGED", tmp_path / "absent")


@pytest.mark.usefixtures("without_packaged")
def test_a_named_folder_stands_above_pocketsphinx(tmp_path: Path) -> None:
    small(tmp_path / "mine")
    assert names(settings(tmp_path, recogniser=str(tmp_path / "mine"))) == ["mine", "pocketsphinx"]
    assert names(settings(tmp_path)) == ["pocketsphinx"]
    with pytest.raises(SettingsError, match=r"no config\.json"):
        names(settings(tmp_path, recogniser=str(tmp_path)))


def test_what_ships_stands_there_by_itself_unless_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctc_rung, "PACKAGED", small(tmp_path / "packaged").folder)
    assert names(settings(tmp_path)) == ["recogniser", "pocketsphinx"]
    assert names(settings(tmp_path, recogniser="none")) == ["pocketsphinx"]
    assert find_model("recogniser").name == "recogniser"


@pytest.mark.usefixtures("without_packaged")
def test_a_package_without_weights_says_so() -> None:
    with pytest.raises(ModelNotFoundError, match="carries no recogniser"):
        find_model("recogniser")


def test_a_question_is_heard_on_an_engine_that_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    sounds = [(rng.normal(0, 0.1, 4000).astype(np.float32), "a b") for _ in range(3)]
    monkeypatch.setattr(ctc_task, "spoken", lambda: ctc_task.Labelled(lambda: sounds, 3, "0" * 64))
    folder, own = small(tmp_path / "mine").folder, settings(tmp_path)
    reports: list[str] = []
    transcriber = ctc_rung.open_transcriber(folder, own, lambda what, _share: reports.append(what))
    assert "measuring" in reports
    stream = transcriber.start(TranscribeRequest(("a b c.",), "k"), Context("en"))
    try:
        stream.feed(sounds[0][0])
        assert stream.commit().confidence is None
    except NothingHeardError:  # made-up weights may say nothing
        pass
    transcriber.close()
    reports.clear()
    ctc_rung.open_transcriber(folder, own, lambda what, _share: reports.append(what)).close()
    assert reports == ["found"]
