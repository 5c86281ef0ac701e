"""A WAV file is there as a whole or not at all, whatever happens on the way."""

import errno
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from aula.audio.encoding import WavWriter, write_wav
from aula.core.errors import StorageError
from aula.core.types import Int16


def ramp(size: int, start: int = 0) -> Int16:
    return np.arange(start, start + size, dtype=np.int16)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_chunks_become_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answer.wav"
    assert write_wav(path, [ramp(3), ramp(0), ramp(4, 3)], 22_050) == 7
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22_050)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(10), "<i2"), ramp(7))
    assert names(tmp_path) == ["answer.wav"]


def test_no_chunks_become_an_empty_wav(tmp_path: Path) -> None:
    assert write_wav(tmp_path / "answer.wav", [], 16_000) == 0
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert file.getnframes() == 0


def test_nothing_has_the_name_before_the_end(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "answer.wav", 16_000) as writer:
        writer.write(ramp(5))
        assert "answer.wav" not in names(tmp_path)
    assert names(tmp_path) == ["answer.wav"]


def test_the_file_gets_usual_permissions(tmp_path: Path) -> None:
    write_wav(tmp_path / "answer.wav", [ramp(1)], 16_000)
    (tmp_path / "other").touch()
    assert (tmp_path / "answer.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, failure: type[BaseException]) -> None:
    def chunks() -> Iterator[Int16]:
        yield ramp(100)
        raise failure

    with pytest.raises(failure):
        write_wav(tmp_path / "answer.wav", chunks(), 16_000)
    assert names(tmp_path) == []


def test_an_error_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "answer.wav"
    path.write_bytes(b"earlier")
    with pytest.raises(TypeError, match="float32"), WavWriter(path, 16_000) as writer:
        writer.write(np.zeros(3, np.float32))
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == ["answer.wav"]
    write_wav(path, [ramp(2)], 16_000)
    assert path.stat().st_size == 48


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"earlier")
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    write_wav(tmp_path / "link.wav", [ramp(2)], 16_000)
    assert (tmp_path / "link.wav").is_symlink()
    assert (tmp_path / "real.wav").stat().st_size == 48


def test_bad_places_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"):
        write_wav(tmp_path / "missing" / "answer.wav", [], 16_000)
    with pytest.raises(StorageError, match="folder or a device"):
        write_wav(tmp_path, [], 16_000)
    with pytest.raises(StorageError, match="folder or a device"):
        write_wav(Path(os.devnull), [], 16_000)
    with pytest.raises(StorageError, match="null"):
        write_wav(tmp_path / "nul\0.wav", [], 16_000)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="cannot be written"):
        write_wav(tmp_path / "loop", [], 16_000)
    assert Path(os.devnull).is_char_device()


def test_an_unwritable_folder_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:  # the suite may run as root, whom no mode stops
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*another folder"):
        write_wav(tmp_path / "answer.wav", [ramp(1)], 16_000)


def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer.wav").write_bytes(b"earlier")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="write-protected"):
        write_wav(tmp_path / "answer.wav", [ramp(1)], 16_000)
    assert (tmp_path / "answer.wav").read_bytes() == b"earlier"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("samples", [10, 100_000])
def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """A small answer fails when it is finished, a large one while it is written."""
    writer = WavWriter(tmp_path / "answer.wav", 16_000)
    usual_open = Path.open

    def open_full(path: Path, mode: str) -> object:
        usual_open(path, mode).close()
        return usual_open(Path("/dev/full"), "wb")

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(StorageError, match="No space left"), writer:
        writer.write(np.zeros(samples, np.int16))
    assert names(tmp_path) == []


def test_more_than_a_wav_can_hold_is_refused(tmp_path: Path) -> None:
    writer = WavWriter(tmp_path / "answer.wav", 16_000)
    writer.samples = 2**31
    with pytest.raises(StorageError, match="4 GiB"), writer:
        writer.write(ramp(1))
    assert names(tmp_path) == []


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate of 0"):
        WavWriter(tmp_path / "answer.wav", 0)
    with pytest.raises(ValueError, match="with-block"):
        WavWriter(tmp_path / "answer.wav", 16_000).write(ramp(1))
    with pytest.raises(TypeError, match=r"\[1, 2\]"), WavWriter(tmp_path / "answer.wav", 16_000) as writer:
        writer.write(np.zeros((1, 2), np.int16))
