"""Sound from a local server, whatever that server does."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aula.audio.streams import AudioStream, is_stream
from aula.core.errors import AudioError, EmptyAudioError, InputError, NotAudioError
from aula.core.types import Float32
from tests.audio.local_server import sending, serving


def _tone(seconds: float, rate: int = 44_100) -> Float32:
    time = np.arange(round(seconds * rate)) / rate
    return np.asarray(0.3 * np.sin(2 * np.pi * 440 * time), dtype=np.float32)


def _encoded(kind: str, subtype: str, seconds: float = 3.0, rate: int = 48_000) -> bytes:
    file = io.BytesIO()
    tone = _tone(seconds, rate)
    soundfile.write(file, np.stack([tone, tone], axis=1), rate, format=kind, subtype=subtype)
    return file.getvalue()


async def _heard(stream: AudioStream) -> Float32:
    return np.concatenate([np.zeros(0, np.float32), *[frame async for frame in stream.frames()]])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")],
)
async def test_what_a_server_sends_is_heard(kind: str, subtype: str) -> None:
    with serving(sending(_encoded(kind, subtype))) as address, AudioStream(address) as stream:
        heard = await _heard(stream)
    assert len(heard) / 16_000 == pytest.approx(3.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard[8_000:40_000]))
    assert int(spectrum.argmax()) * 16_000 / 32_000 == pytest.approx(440, abs=1)


async def test_it_is_heard_while_it_comes_and_nobody_need_wait_for_its_end() -> None:
    """The server says the rest only once the first frame was heard."""
    content, first_heard = _encoded("WAV", "PCM_16", 20.0), threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        half = len(content) // 2
        request.wfile.write(content[:half])
        assert first_heard.wait(30)
        request.wfile.write(content[half:])

    with serving(answer) as address, AudioStream(address) as stream:
        count = 0
        async for frame in stream.frames():
            count += len(frame)
            first_heard.set()
    assert count / 16_000 == pytest.approx(20.0, abs=0.1)


async def test_what_nobody_takes_stays_with_the_sender() -> None:
    sent: list[int] = []
    content = _encoded("WAV", "PCM_16", 100.0)  # 19 MB

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for place in range(0, len(content), 65_536):
            request.wfile.write(content[place : place + 65_536])
            sent.append(place)

    with serving(answer) as address, AudioStream(address) as stream:
        frames = stream.frames()
        await anext(frames)
        assert 65_536 * len(sent) < len(content) // 2, "pipe and sockets hold a few MB at the most"


async def test_an_endless_stream_may_be_left_at_any_moment() -> None:
    gone = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            request.wfile.write(_encoded("WAV", "PCM_16", 1.0))
            while True:
                request.wfile.write(bytes(65_536))
        except OSError:
            gone.set()

    with serving(answer) as address:
        with AudioStream(address) as stream:
            await anext(stream.frames())
        assert gone.wait(30), "the server hears of it"


async def test_a_server_that_moved_is_followed_and_one_that_turns_in_circles_is_not() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/there":
            sending(_encoded("WAV", "PCM_16"))(request)
            return
        request.send_response(302)
        request.send_header("Location", "/live" if request.path == "/live" else "/there")
        request.end_headers()

    with serving(answer) as address:
        with AudioStream(address.replace("/live", "/here")) as stream:
            assert len(await _heard(stream)) > 16_000
        with pytest.raises(AudioError, match="302"), AudioStream(address):
            pass


async def test_what_cannot_be_heard_is_told() -> None:
    with (
        serving(lambda request: request.send_error(404)) as address,
        pytest.raises(AudioError, match="404 Not Found"),
        AudioStream(address),
    ):
        pass
    with pytest.raises(AudioError, match="cannot be heard"), AudioStream(address):  # nobody is there any longer
        pass


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"<html>no sound</html>" * 1000, NotAudioError),
        (b"", NotAudioError),
        (_encoded("FLAC", "PCM_16"), NotAudioError),
        (_encoded("WAV", "PCM_16", 0.0), EmptyAudioError),
    ],
    ids=["a page", "nothing", "flac", "no samples"],
)
async def test_what_is_no_sound_is_told(content: bytes, error: type[AudioError]) -> None:
    with serving(sending(content)) as address, AudioStream(address) as stream, pytest.raises(error) as caught:
        await _heard(stream)
    assert error is EmptyAudioError or "aula captions -" in caught.value.next_step


async def test_a_stream_that_breaks_off_gives_what_came_and_says_so() -> None:
    content = _encoded("WAV", "PCM_16", 3.0)
    frames: list[Float32] = []

    async def take(stream: AudioStream) -> None:
        async for frame in stream.frames():
            frames.append(frame)  # noqa: PERF401 - what came before the error counts

    answer = sending(content[: len(content) // 2], length=len(content))
    with serving(answer) as address, AudioStream(address) as stream, pytest.raises(AudioError, match="broke off"):
        await take(stream)
    assert sum(map(len, frames)) / 16_000 == pytest.approx(1.5, abs=0.1)


async def test_a_stream_that_falls_silent_is_given_up() -> None:
    silent = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(_encoded("WAV", "PCM_16", 1.0)[:100_000])
        silent.wait(30)

    with serving(answer) as address, AudioStream(address, patience_s=0.2) as stream:
        with pytest.raises(AudioError, match="nothing came"):
            await _heard(stream)
        silent.set()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("rtsp://127.0.0.1/hall", "rtsp"),
        ("ftp://127.0.0.1/a.mp3", "ftp"),
        ("http://", "names no host"),
        ("http://[::1", "no address"),
        ("http://host:99999/", "no address"),
    ],
)
def test_what_is_no_address_is_told_before_anything_is_tried(address: str, told: str) -> None:
    assert is_stream(address)
    with pytest.raises(InputError, match=told):
        AudioStream(address)


def test_files_are_no_streams() -> None:
    assert not is_stream("lecture.mp3")
    assert not is_stream("/tmp/a:b.wav")
    assert is_stream("-")


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "in.wav").write_bytes(_encoded("WAV", "PCM_16"))
    with (tmp_path / "in.wav").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield


@pytest.mark.usefixtures("piped")
async def test_standard_input_is_heard() -> None:
    with AudioStream("-") as stream:
        assert len(await _heard(stream)) / 16_000 == pytest.approx(3.0, abs=0.1)


def test_where_nothing_is_piped_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(InputError, match="nothing is piped"), AudioStream("-"):
            pass
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="no standard input"), AudioStream("-"):
        pass
