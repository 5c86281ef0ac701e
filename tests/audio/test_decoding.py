"""Every format, every rate; bad files fail with the right type, in words that help."""

import errno
import os
import struct
import tracemalloc
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import soundfile

from aula.audio.decoding import available_formats, open_audio, read_audio
from aula.core.errors import (
    AudioError,
    AudioTooLongError,
    AulaError,
    EmptyAudioError,
    NotAudioError,
    StorageError,
    TruncatedAudioError,
)
from aula.core.types import SPEECH_RATE, Float32

FORMATS = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "OGG Vorbis": ("OGG", "VORBIS"),
    "OGG Opus": ("OGG", "OPUS"),
    "AIFF": ("AIFF", "PCM_16"),
}


def tone(rate: int, seconds: float, channels: int = 1) -> Float32:
    moments = np.arange(int(rate * seconds)) / rate
    # The noise fills pages and frames as speech does; a bare tone is packed to almost nothing.
    noise = np.random.default_rng(0).normal(0, 0.05, len(moments))
    wave = (0.3 * np.sin(2 * np.pi * 300 * moments) + noise).astype(np.float32)
    return np.repeat(wave[:, None], channels, axis=1)


def save(folder: Path, name: str, *, rate: int = 16_000, seconds: float = 1.0, channels: int = 1) -> Path:
    kind, subtype = FORMATS[name]
    path = folder / "question.audio"
    soundfile.write(path, tone(rate, seconds, channels), rate, format=kind, subtype=subtype)
    return path


def collect(path: Path) -> tuple[Float32, AulaError | None]:
    """All that can be read, and the error that came after it."""
    frames: list[Float32] = []
    with open_audio(path) as file:
        try:
            frames.extend(file.frames())
        except AulaError as error:
            return np.concatenate([np.zeros(0, np.float32), *frames]), error
    return np.concatenate([np.zeros(0, np.float32), *frames]), None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (8_000, 1)])
def test_reads_every_format(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    path = save(tmp_path, name, rate=rate, channels=channels)
    with open_audio(path) as file:
        assert (file.rate, file.channels, file.format) == (rate, channels, name)
        assert file.seconds == pytest.approx(1.0, abs=0.01)
    samples, error = collect(path)
    assert error is None
    assert len(samples) == pytest.approx(SPEECH_RATE, abs=2)
    middle = slice(4_000, 12_000)
    loudness = np.sqrt(np.mean(samples[middle] ** 2))
    assert loudness == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "ULAW"])
def test_reads_every_kind_of_wav(tmp_path: Path, rate: int, subtype: str) -> None:
    path = tmp_path / "question.wav"
    soundfile.write(path, tone(rate, 0.5, 3), rate, subtype=subtype)
    assert len(read_audio(path, 10).samples) == pytest.approx(8_000, abs=1)


def test_frames_are_320_samples_and_the_last_may_be_shorter(tmp_path: Path) -> None:
    with open_audio(save(tmp_path, "WAV", seconds=0.05)) as file:
        assert [len(frame) for frame in file.frames()] == [320, 320, 160]
        assert [len(frame) for frame in file.frames(40)] == [640, 160]


def test_each_call_starts_at_the_beginning(tmp_path: Path) -> None:
    with open_audio(save(tmp_path, "FLAC", rate=44_100)) as file:
        first = np.concatenate(list(file.frames()))
        np.testing.assert_array_equal(np.concatenate(list(file.frames())), first)


def test_a_float_file_may_hold_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    soundfile.write(path, np.full(1_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path, 1).samples, np.zeros(1_000, np.float32))


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = save(tmp_path, "FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36 bits of "total samples"
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with open_audio(path) as file:
        assert file.seconds is None
    assert len(read_audio(path, 5).samples) == SPEECH_RATE
    with pytest.raises(AudioTooLongError, match=r"more than 0\.5 s"):
        read_audio(path, 0.5)


@pytest.mark.parametrize("length", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 0x7FFF_F000])
def test_a_wav_from_a_pipe_is_whole(tmp_path: Path, length: int) -> None:
    path = save(tmp_path, "WAV")
    content = bytearray(path.read_bytes())
    place = content.index(b"data")
    content[place + 4 : place + 8] = struct.pack("<I", length)
    path.write_bytes(content)
    assert len(read_audio(path, 5).samples) == SPEECH_RATE


def test_an_odd_chunk_before_the_sound_is_padded(tmp_path: Path) -> None:
    path = save(tmp_path, "WAV")
    content = path.read_bytes()
    place = content.index(b"data")
    path.write_bytes(content[:place] + b"note" + struct.pack("<I", 3) + b"abc\0" + content[place:])
    assert len(read_audio(path, 5).samples) == SPEECH_RATE


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_behind_the_sound_do_no_harm(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert len(read_audio(path, 5).samples) == pytest.approx(SPEECH_RATE, abs=2)


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_gives_what_can_be_read_and_then_says_so(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name, seconds=4.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    samples, error = collect(path)
    assert isinstance(error, TruncatedAudioError)
    seconds = len(samples) / SPEECH_RATE
    # An OGG page holds about a second, and only whole ones are decoded.
    assert 0.9 < seconds < 2.8
    assert f"{seconds:.1f} s" in str(error)
    with pytest.raises(TruncatedAudioError):
        read_audio(path, 60)


@pytest.mark.parametrize("name", ["WAV", "FLAC", "AIFF", "OGG Vorbis", "OGG Opus"])
def test_one_missing_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedAudioError):
        read_audio(path, 60)


@pytest.mark.parametrize("name", ["WAV", "FLAC", "AIFF", "OGG Vorbis", "OGG Opus"])
def test_a_file_that_ends_in_its_header_is_truncated(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, name)
    path.write_bytes(path.read_bytes()[: 44 if name != "AIFF" else 54])
    with pytest.raises(TruncatedAudioError, match=r"0\.0 s"):
        read_audio(path, 60)


def test_a_flac_with_a_hole_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path, "FLAC", seconds=4.0)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2_000] = np.random.default_rng(1).bytes(2_000)
    path.write_bytes(content)
    samples, error = collect(path)
    assert isinstance(error, TruncatedAudioError)
    assert "of 4.0 s" in str(error)
    assert len(samples) > SPEECH_RATE


def test_missing_paths_name_similar_files(tmp_path: Path) -> None:
    (tmp_path / "question.wav").touch()
    with pytest.raises(AudioError, match=r"Available: question\.wav"):
        open_audio(tmp_path / "questoin.wav")
    with pytest.raises(AudioError, match="no file"):
        open_audio(tmp_path / "question.wav" / "deeper")
    with pytest.raises(AudioError, match="no file"):
        open_audio(tmp_path / "nul\0.wav")


def test_folders_and_pipes_are_no_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is a folder"):
        open_audio(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AudioError, match="pipe or a device"):
        open_audio(tmp_path / "pipe")


def test_no_permission_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "WAV")

    def refuse(*_: object, **__: object) -> NoReturn:  # the suite may run as root, whom no mode stops
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            open_audio(path)
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(StorageError, match="its folder"):
            open_audio(path)


@pytest.mark.parametrize("name", ["WAV", "AIFF", "OGG Vorbis"])
def test_files_without_samples_are_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / "zero.wav").touch()
    with pytest.raises(EmptyAudioError, match="0 bytes"):
        open_audio(tmp_path / "zero.wav")
    with pytest.raises(EmptyAudioError, match="no samples"):
        open_audio(save(tmp_path, name, seconds=0.0))


@pytest.mark.parametrize("suffix", ["wav", "mp3", "raw", "ogg", "flac"])
@pytest.mark.parametrize("content", [b"This is a text.\n" * 99, bytes(5_000)])
def test_other_bytes_are_not_audio(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"question.{suffix}"
    path.write_bytes(content)
    with pytest.raises(NotAudioError, match=r"Available: WAV, FLAC.*ffmpeg"):
        open_audio(path)


def test_too_long_is_refused_by_the_header_already(tmp_path: Path) -> None:
    path = save(tmp_path, "WAV", seconds=3.0)
    with pytest.raises(AudioTooLongError, match=r"3\.0 s, above the limit of 2 s"):
        read_audio(path, 2)
    assert read_audio(path, 3).seconds == 3.0


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
def test_a_file_just_as_long_as_allowed_is_read(tmp_path: Path, rate: int) -> None:
    assert read_audio(save(tmp_path, "WAV", rate=rate, seconds=2.0), 2).seconds == pytest.approx(2.0, abs=1e-3)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lecture.wav"
    minute = np.zeros(8_000 * 60, np.int16)
    with soundfile.SoundFile(path, "w", samplerate=8_000, channels=1, subtype="PCM_U8") as file:
        for _ in range(5):
            file.write(minute)
    with open_audio(path) as audio:
        tracemalloc.start()
        try:
            samples = sum(len(frame) for frame in audio.frames(500))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert samples == 5 * 60 * SPEECH_RATE
    # The whole would be 19 MB as float32; some 2 MB may be a table of the interpreter's that happens to grow.
    assert peak < 4_000_000


def test_all_promised_formats_are_available() -> None:
    assert available_formats() == list(FORMATS)


@pytest.mark.parametrize("kept", [20, 60, 500, 5000])
def test_a_flac_cut_before_its_first_frame_ends_is_truncated(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path, "FLAC", rate=48_000, channels=2)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TruncatedAudioError):
        read_audio(path, 60)


def test_bytes_that_only_begin_like_flac_are_not_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC" + b"words " * 100)
    with pytest.raises(NotAudioError):
        open_audio(path)
