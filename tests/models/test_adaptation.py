from pathlib import Path
from typing import Any

import pytest

from aula.core.errors import StorageError
from aula.core.settings import Settings
from aula.core.types import Context, TranscribeRequest
from aula.models import adaptation
from aula.models.adaptation import Adapter
from aula.models.sphinx import SphinxTranscriber

COURSE = ("Torque is the turning effect of a force.", "A kilojoule is 1000 joules.", "力 is force.")
REQUEST = TranscribeRequest(COURSE, "tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Adapter(tmp_path / "cache")


def test_the_model_knows_the_words_of_the_course(adapter: Adapter) -> None:
    files = adapter.model(adapter.key(REQUEST), REQUEST)
    words = {line.split()[0] for line in files.dictionary.read_text().splitlines()}
    assert {"torque", "kilojoule", "thousand", "slower", "the"} <= words
    assert files.language.read_text().endswith("\\end\\\n")


def test_a_second_start_reads_what_is_on_disk(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    key = adapter.key(REQUEST)
    first = adapter.model(key, REQUEST)
    monkeypatch.setattr(adapter, "_made", lambda *_: pytest.fail("made again"))
    assert adapter.model(key, REQUEST) == first


def test_the_same_course_gives_the_same_files(adapter: Adapter, tmp_path: Path) -> None:
    key = adapter.key(REQUEST)
    first, second = adapter.model(key, REQUEST), Adapter(tmp_path / "other").model(key, REQUEST)
    assert first.language.read_bytes() == second.language.read_bytes()
    assert first.dictionary.read_bytes() == second.dictionary.read_bytes()


def test_an_edited_course_has_another_key(adapter: Adapter) -> None:
    keys = {
        adapter.key(TranscribeRequest(vocabulary, name))
        for vocabulary, name in [(COURSE, "tiny"), (COURSE, "new"), (COURSE[:1], "tiny"), ((), "tiny")]
    }
    assert len(keys) == 4


def test_no_course_means_the_general_model(adapter: Adapter) -> None:
    request = TranscribeRequest()
    assert adapter.model(adapter.key(request), request).language.name == "en-us.lm.bin"


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    transcriber = SphinxTranscriber(Settings({"home": str(tmp_path)}))
    transcriber.start(REQUEST, Context()).close()
    transcriber.close()
    language = next((tmp_path / "cache" / "sphinx").glob("*.arpa"))
    sound = language.read_bytes()
    language.write_bytes(sound[:200])
    transcriber.start(REQUEST, Context()).close()
    assert language.read_bytes() == sound


def test_a_home_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    adapter = Adapter(blocked / "cache")
    assert adapter.model(adapter.key(REQUEST), REQUEST).language.is_file()


def test_old_models_are_removed(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "KEPT_ON_DISK", 1)
    old = adapter.model(adapter.key(REQUEST), REQUEST)
    other = TranscribeRequest(COURSE[:1], "other")
    new = adapter.model(adapter.key(other), other)
    assert not old.language.exists()
    assert not old.dictionary.exists()
    assert new.language.exists()


@pytest.mark.parametrize("suffix", [".dict", ".arpa", ".sha256"])
def test_a_truncated_file_is_noticed_before_it_is_used(adapter: Adapter, suffix: str) -> None:
    key = adapter.key(REQUEST)
    path = adapter.model(key, REQUEST).language.with_suffix(suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    adapter.model(key, REQUEST)
    assert path.read_bytes() == whole


def test_a_home_that_cannot_be_read_only_costs_time(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("closed", next_step="open it")

    written = Adapter._written
    closed = adapter._folder

    def guarded(self: Adapter, folder: Path, *made: Any) -> Any:
        return refuse() if folder == closed else written(self, folder, *made)

    read = Path.read_bytes

    def closed_read(path: Path) -> bytes:
        if path.parent == closed:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Adapter, "_written", guarded)
    monkeypatch.setattr(Path, "read_bytes", closed_read)
    files = adapter.model(adapter.key(REQUEST), REQUEST)
    assert files.language.is_file()
    assert files.language.parent != closed
