from pathlib import Path

import numpy as np
import pytest

from aula.core.errors import CalibrationError
from aula.models.whisper_clips import digest, read_clips, read_sounds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import soundfile

    (tmp_path / "clips").mkdir()
    for place, name in enumerate(("one.wav", "two.wav")):
        tone = np.sin(np.arange(800 + 80 * place) / 9).astype(np.float32) / 2
        soundfile.write(str(tmp_path / "clips" / name), tone, 8000)
    (tmp_path / "transcripts.tsv").write_text(
        "file\ttext\tsource\nclips/one.wav\tWhat is inertia?\ta page\n\n"
        "clips/two.wav\t\u60ef\u6027\u662f\u4ec0\u4e48\n",
        encoding="utf-8",
    )
    return tmp_path


def test_a_list_gives_files_and_their_texts(folder: Path) -> None:
    clips = read_clips(folder / "transcripts.tsv")
    assert [(clip.file.name, clip.text) for clip in clips] == [
        ("one.wav", "What is inertia?"),
        ("two.wav", "\u60ef\u6027\u662f\u4ec0\u4e48"),
    ]
    assert read_clips(folder) == clips
    assert [len(clip.samples()) for clip in clips] == pytest.approx([1600, 1760], abs=2)


def test_sounds_need_no_list(folder: Path) -> None:
    assert [clip.file.name for clip in read_sounds(folder)] == ["one.wav", "two.wav"]
    assert [clip.text for clip in read_sounds(folder)] == [None, None]
    assert read_sounds(folder / "transcripts.tsv") == read_clips(folder)
    (folder / "empty").mkdir()
    with pytest.raises(CalibrationError, match="no recording under"):
        read_sounds(folder / "empty")


def test_the_digest_is_of_sound_and_text_not_of_places(folder: Path, tmp_path: Path) -> None:
    clips = read_clips(folder)
    before = digest(clips)
    (folder / "clips").rename(folder / "moved")
    listed = (folder / "transcripts.tsv").read_text(encoding="utf-8").replace("clips/", "moved/")
    (folder / "transcripts.tsv").write_text(listed, encoding="utf-8")
    assert digest(read_clips(folder)) == before
    (folder / "transcripts.tsv").write_text(listed.replace("inertia", "torque"), encoding="utf-8")
    assert digest(read_clips(folder)) != before
    with pytest.raises(CalibrationError, match="cannot be read"):
        digest(clips)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no clip"),
        ("file\ttext\n", "lists no clip"),
        ("clips/one.wav What is it?\n", "line 1"),
        ("clips/one.wav\tOne.\nclips/two.wav\t \n", "line 2"),
        ("clips/one.wav\tOne.\nclips/three.wav\tThree.\n", "line 2 .* names clips/three.wav"),
        ("clips\tA folder.\n", "names clips"),
    ],
)
def test_a_line_at_fault_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "transcripts.tsv").write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_clips(folder)


def test_a_list_that_is_no_text_is_told(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read as text"):
        read_clips(folder / "clips" / "one.wav")
    with pytest.raises(CalibrationError, match="cannot be read as text"):
        read_clips(folder / "absent.tsv")
