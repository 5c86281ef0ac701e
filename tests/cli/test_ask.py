"""`aula ask` on the real components: eSpeak NG asks, PocketSphinx hears, the mechanics course answers."""

import json
import os
import shutil
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aula.audio.encoding import write_wav
from aula.core.settings import Settings
from aula.core.types import Context, Float32, SpeakRequest
from aula.models.espeak import EspeakSpeaker
from tests.cli.running import Run
from tests.models.whisper_thin_model import thin_checkpoint

pytestmark = pytest.mark.usefixtures("models")

TIMINGS = {"transcribe", "understand", "retrieve", "answer", "speak_first_byte", "commit_to_first_audio"}


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "What is friction?" as a WAV file."""
    speaker = EspeakSpeaker(Settings())
    path = tmp_path_factory.mktemp("question") / "question.wav"
    write_wav(path, speaker.speak(SpeakRequest("What is friction?", words_per_minute=150), Context()), speaker.rate)
    return path


def _write(path: Path, samples: Float32, rate: int = 16_000) -> Path:
    write_wav(path, [(samples * 32767).astype(np.int16)], rate)
    return path


def test_a_spoken_question_is_answered_from_the_course(run: Run, question: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.wav"
    ended = run("ask", str(question), "--fast", "--json", "--out", str(out))
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert "friction" in answer["transcript"]
    assert answer["citations"][0]["course"] == "mechanics-en"
    assert "riction" in answer["citations"][0]["passage"]
    assert not answer["refused"]
    assert (answer["language"], answer["intent"]) == ("en", "content")
    assert set(answer["timings_ms"]) == TIMINGS
    assert answer["rungs"]["transcribe"] == "recogniser"
    with wave.open(str(out)) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(answer["audio_seconds"], abs=1e-3)


def test_a_whisper_folder_at_hand_hears_with_no_further_setting(
    run: Run, question: Path, home: Path, tmp_path: Path
) -> None:
    """As the Hugging Face hub lays it out."""
    checkpoint = thin_checkpoint(home / "checkpoints" / "whisper-thin")
    steering = {"suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 50_257], "no_timestamps_token_id": 50_363}
    beside = {
        "generation_config.json": steering,
        "preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80},
        "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer"},
        "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
    }
    for name, content in beside.items():
        (checkpoint.folder / name).write_text(json.dumps(content))
    try:
        ended = run("ask", str(question), "--fast", "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["rungs"]["transcribe"] == "whisper-thin"
    finally:
        shutil.rmtree(checkpoint.folder)


def test_a_typed_question_is_answered_for_people(run: Run) -> None:
    ended = run("ask", "--text", "What is inertia?", "--mute")
    assert ended.code == 0, ended.err
    assert "Inertia is the tendency" in ended.out
    assert "05-newton.md" in ended.out
    assert "first audio" in ended.out


def test_a_chinese_question_to_the_chinese_course(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AULA_SPEECH_CACHE_MB", "0")  # another test of the session may have asked the same
    out = tmp_path / "answer.wav"
    ended = run("ask", "--course", "mechanics-zh", "--text", "什么是惯性？", "--out", str(out), "--json")
    answer = json.loads(ended.out)
    assert answer["answer"].startswith("惯性是")
    assert answer["rungs"]["speak"] == "espeak-ng"
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize("text", ["Who won the football match yesterday?", "How do I bake a chocolate cake?"])
def test_a_question_outside_the_course_is_refused_honestly_with_code_0(run: Run, text: str) -> None:
    ended = run("ask", "--text", text, "--json")
    assert ended.code == 0
    answer = json.loads(ended.out)
    assert answer["refused"]
    assert answer["citations"] == []


def test_a_language_that_no_rung_reads_or_hears(run: Run, question: Path) -> None:
    assert run("ask", "--text", "Что такое инерция?", "--json").code == 8
    ended = run("ask", str(question), "--course", "mechanics-zh")
    assert ended.code == 8
    assert "--text" in ended.err


def _bad_files(folder: Path) -> Iterator[tuple[str, Path, int]]:
    yield "not audio", _bytes(folder / "letter.wav", b"Dear teacher, " * 100), 3
    yield "0 bytes", _bytes(folder / "empty.wav", b""), 3
    yield "absent", folder / "absent.wav", 3
    yield "a folder", folder, 3
    yield "silence", _write(folder / "silence.wav", np.zeros(32_000, np.float32)), 7
    noise = np.random.default_rng(1).normal(0, 0.1, 32_000).astype(np.float32)
    yield "noise", _write(folder / "noise.wav", np.clip(noise, -1, 1)), 7
    whole = _write(folder / "whole.wav", np.zeros(32_000, np.float32)).read_bytes()
    yield "truncated", _bytes(folder / "truncated.wav", whole[: len(whole) // 2]), 3


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_unusable_sound_ends_with_a_message_and_the_documented_code(run: Run, tmp_path: Path) -> None:
    for what, path, code in _bad_files(tmp_path):
        ended = run("ask", str(path), "--fast")
        assert ended.code == code, (what, ended)
        assert "Next:" in ended.err, what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_sound_without_permission(run: Run, question: Path, tmp_path: Path) -> None:
    path = _bytes(tmp_path / "secret.wav", question.read_bytes())
    path.chmod(0)
    assert run("ask", str(path)).code == 9


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 2), (96_000, 1), (44_100, 2)])
def test_other_rates_and_channels_are_heard_too(
    run: Run, question: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    import soundfile
    import soxr

    samples, original = soundfile.read(question, dtype="float32")
    converted = np.repeat(soxr.resample(samples, original, rate)[:, None], channels, axis=1)
    path = tmp_path / "question.flac"
    soundfile.write(path, converted, rate)
    ended = run("ask", str(path), "--fast", "--json")
    if rate == 8_000:
        # A telephone's bandwidth: the recogniser was trained on more, so that any honest answer will do.
        assert ended.code in (0, 7)
    else:
        assert "friction" in json.loads(ended.out)["transcript"]


def test_a_file_longer_than_a_question_is_refused_without_waiting_for_it(
    run: Run, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    monkeypatch.setenv("AULA_QUESTION_MAX_SECONDS", "3")
    samples, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 5), rate)
    ended = run("ask", str(tmp_path / "long.wav"))
    assert ended.code == 3
    assert "longer than 3 seconds" in ended.err


def test_an_unknown_course_and_an_unknown_place_for_the_answer(run: Run) -> None:
    ended = run("ask", "--course", "alchemy", "--text", "What is gold?")
    assert ended.code == 4
    assert "mechanics-en" in ended.err
    assert run("ask", "--text", "What is inertia?", "--out", "no/such/folder/answer.wav").code == 9


def test_no_microphone_is_told_with_the_next_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from aula.audio import microphone
    from aula.core.errors import DeviceError

    def absent() -> None:
        raise DeviceError("there is no microphone", next_step='ask like this: aula ask --text "..."')

    monkeypatch.setattr(microphone, "load_sounddevice", absent)
    ended = run("ask", "--mic")
    assert ended.code == 6
    assert "Next:" in ended.err


def test_errors_are_json_too_when_asked_for(run: Run, tmp_path: Path) -> None:
    ended = run("ask", str(tmp_path / "absent.wav"), "--json")
    error = json.loads(ended.out)["error"]
    assert error["type"] == "AudioError"
    assert error["next_step"]


def test_nothing_keeps_running_afterwards(run: Run) -> None:
    run("ask", "--text", "What is inertia?", "--json")
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("aula-")]
    assert [name for name in names if "espeak" in name] == []
