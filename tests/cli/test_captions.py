import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webvtt

from aula.audio import microphone
from tests.audio.fake_sounddevice import FakeSoundDevice, Stream
from tests.audio.local_server import sending, serving
from tests.cli.running import Run
from tests.models.whisper_thin_model import sound, thin_checkpoint


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whisper-thin"
    thin_checkpoint(folder)
    return folder


@pytest.fixture
def lecture(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "lecture.wav"
    soundfile.write(str(path), sound(3, 15.0), 16_000)
    return path


def test_a_recording_becomes_webvtt_or_srt(run: Run, thin: Path, lecture: Path) -> None:
    shown = run("captions", "lecture.wav", "--model", str(thin), "--language", "en")
    assert shown.code == 0, shown.err
    captions = webvtt.from_string(shown.out).captions
    assert captions
    assert "of 15.0 s by whisper-thin, in " in shown.err
    ended = run("captions", "lecture.wav", "--model", str(thin), "--language", "en", "--out", "lecture.srt")
    assert (ended.code, ended.out) == (0, "")
    written = lecture.with_suffix(".srt").read_text()
    assert written.startswith("1\n00:00:00,")
    assert written.count("-->") == len(captions)


def test_what_cannot_be_captioned_is_told(run: Run, thin: Path, lecture: Path) -> None:
    assert run("captions").code == 2
    assert run("captions", "lecture.wav", "--mic").code == 2
    assert run("captions", "absent.wav").code == 3
    ended = run("captions", "lecture.wav")
    assert (ended.code, "aula pull openai/whisper-small" in ended.err) == (5, True)
    assert run("captions", "lecture.wav", "--model", str(thin), "--out", "no/folder/x.vtt").code == 9
    silence = lecture.with_name("silence.wav")
    soundfile.write(str(silence), np.zeros(0, np.float32), 16_000)
    assert run("captions", "silence.wav", "--model", str(thin)).code == 3


def test_a_local_stream_is_captioned_while_it_comes(run: Run, thin: Path, lecture: Path) -> None:
    with serving(sending(lecture.read_bytes())) as address:
        ended = run("captions", address, "--model", str(thin), "--language", "en")
    assert ended.code == 0, ended.err
    assert webvtt.from_string(ended.out).captions
    assert "after the words in the median" in ended.err
    assert run("captions", address, "--model", str(thin)).code == 3, "nobody sends any longer"
    shown = run("captions", "rtsp://127.0.0.1/hall", "--model", str(thin))
    assert (shown.code, "| aula captions -" in shown.err) == (3, True)


def test_what_a_microphone_hears_is_captioned(
    run: Run, thin: Path, lecture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enter begins, Enter again ends; between the two the device brings a lecture."""
    module = FakeSoundDevice()
    monkeypatch.setattr(microphone, "load_sounddevice", lambda: module)
    spoken, _ = soundfile.read(str(lecture), dtype="float32")
    reading, writing = os.pipe()
    os.write(writing, b"\n")

    def speak(stream: Stream) -> None:
        begin(stream)
        for block in np.array_split(spoken, 200):
            stream.deliver(block)
        os.write(writing, b"\n")

    begin = Stream.start
    monkeypatch.setattr(Stream, "start", speak)
    with os.fdopen(reading, encoding="utf-8") as keyboard, closing_descriptor(writing):
        monkeypatch.setattr(sys, "stdin", keyboard)
        ended = run("captions", "--mic", "--model", str(thin), "--language", "en", "--out", "said.srt")
    assert ended.code == 0, ended.err
    assert "Press Enter to begin" in ended.err
    assert "of 15.0 s by whisper-thin" in ended.err
    assert lecture.with_name("said.srt").read_text().startswith("1\n00:00:00,")
    assert module.stream.closed


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def test_what_was_heard_before_a_stream_broke_off_is_written(run: Run, thin: Path, lecture: Path) -> None:
    content = lecture.read_bytes()
    with serving(sending(content[: len(content) // 2], length=len(content))) as address:
        ended = run("captions", address, "--model", str(thin), "--language", "en")
    assert (ended.code, "broke off" in ended.err) == (3, True)
    assert webvtt.from_string(ended.out).captions[-1].end_in_seconds == 7
