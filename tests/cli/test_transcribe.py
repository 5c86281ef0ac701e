import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.cli.running import Run
from tests.models.whisper_thin_model import insist_on, sound, thin_checkpoint

KEYS = ["file", "text", "language", "segments", "rung", "timings_ms"]


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whisper-thin"
    thin_checkpoint(folder)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    for seed, seconds in ((1, 2.0), (2, 3.0), (3, 14.0)):
        soundfile.write(str(folder / f"{seed}.wav"), sound(seed, seconds), 16_000)
    return folder


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_object_a_line_and_file(run: Run, thin: Path, clips: Path) -> None:
    ended = run("transcribe", "1.wav", "2.wav", "--model", str(thin), "--language", "en", "--json")
    assert ended.code == 0, ended.err
    made = _lines(ended.out)
    assert [list(one) for one in made] == [KEYS, KEYS]
    assert [(one["file"], one["rung"], one["language"]) for one in made] == [
        ("1.wav", "whisper-thin", "en"),
        ("2.wav", "whisper-thin", "en"),
    ]
    assert made[0]["text"] != made[1]["text"] != ""
    assert made[0]["timings_ms"]["audio"] == 2000
    assert made[0]["segments"] == []


def test_a_long_file_has_segments_and_its_language_is_found(run: Run, thin: Path, clips: Path) -> None:
    made = _lines(run("transcribe", "3.wav", "--model", str(thin), "--json").out)[0]
    assert made["language"] != "und"
    assert made["segments"]
    assert all(0 <= one["start"] <= one["end"] <= 14 for one in made["segments"])
    assert made["text"] == " ".join(one["text"] for one in made["segments"])
    shown = run("transcribe", "1.wav", "3.wav", "--timestamps", "--model", str(thin))
    assert "0:00 – 0:0" in shown.out
    assert "heard by whisper-thin" in shown.err


def test_progress_is_told_on_a_long_file(run: Run, thin: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []

    @contextmanager
    def bar(*, quiet: bool) -> Iterator[Any]:
        assert not quiet
        yield lambda what, share: told.append((what, share))

    monkeypatch.setattr(importlib.import_module("aula.cli.transcribe"), "progress_bar", bar)
    ended = run(
        "transcribe", "3.wav", "--model", str(thin), "--language", "zh", "--translate", "--out", "english.jsonl"
    )
    assert ended.code == 0, ended.err
    of_file = [(what, share) for what, share in told if what.startswith("3.wav")]
    assert of_file[4][0] == "3.wav: 0:05 of 0:14"
    assert of_file[4][1] == pytest.approx(5 / 14)
    assert [share for _, share in of_file] == sorted(share for _, share in of_file)
    assert of_file[-1] == ("3.wav", 1.0)
    (made,) = _lines((clips / "english.jsonl").read_text())
    assert made["language"] == "en", "it was translated"


def test_a_batch_goes_on_where_it_was_cut_off(run: Run, thin: Path, clips: Path) -> None:
    out = clips / "texts.jsonl"
    arguments = ("transcribe", "1.wav", "2.wav", "--model", str(thin), "--language", "en", "--out", "texts.jsonl")
    assert run(*arguments).code == 0
    whole = out.read_text()
    first = whole.splitlines(keepends=True)[0]
    out.write_text(first + '{"file": "2.wav", "te')
    assert run(*arguments).code == 0
    again = _lines(out.read_text())
    assert [one["file"] for one in again] == ["1.wav", "2.wav"]
    assert out.read_text().startswith(first), "what was there was not made again"
    assert run(*arguments, "--json").out == "", "and a whole batch is done with"
    out.write_text("something else\n")
    ended = run(*arguments)
    assert (ended.code, out.read_text()) == (9, "something else\n")
    assert "line 1" in ended.err
    assert run("transcribe", "1.wav", "--out", "no/such/folder.jsonl").code == 9


def test_a_bad_file_does_not_keep_the_others(run: Run, thin: Path, clips: Path) -> None:
    (clips / "empty.wav").write_bytes(b"")
    (clips / "text.wav").write_text("no sound")
    soundfile.write(str(clips / "none.wav"), np.zeros(0, np.float32), 16_000)
    cut = (clips / "2.wav").read_bytes()
    (clips / "cut.wav").write_bytes(cut[: len(cut) // 2])
    files = ("empty.wav", "absent.wav", "text.wav", "none.wav", "cut.wav", "1.wav")
    ended = run("transcribe", *files, "--model", str(thin), "--language", "en", "--json")
    assert ended.code == 3
    made = _lines(ended.out)
    assert [one.get("error", {}).get("type") for one in made] == [
        "EmptyAudioError",
        "AudioError",
        "NotAudioError",
        "EmptyAudioError",
        "TruncatedAudioError",
        None,
    ]
    assert made[-1]["text"]


def test_noise_has_no_text(run: Run, tmp_path: Path, clips: Path) -> None:
    quiet = thin_checkpoint(tmp_path / "quiet")
    insist_on(quiet, {50_362: 25.0})
    noise = np.random.default_rng(1).normal(0, 0.2, 16_000 * 8).astype(np.float32)
    soundfile.write(str(clips / "noise.wav"), noise, 16_000)
    ended = run("transcribe", "noise.wav", "--model", str(quiet.folder), "--language", "en", "--json")
    made = _lines(ended.out)[0]
    assert (ended.code, made["text"], made["segments"], made["language"]) == (0, "", [], "en")
    assert "nobody speaks" in run("transcribe", "noise.wav", "--model", str(quiet.folder)).out


def test_without_whisper_the_packaged_recogniser_is_named(run: Run, clips: Path) -> None:
    made = _lines(run("transcribe", "1.wav", "--json").out)[0]
    assert made["rung"] == "recogniser"


def test_a_model_that_was_asked_for_is_never_replaced(run: Run, thin: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    ended = run("transcribe", "1.wav", "--model", str(tmp_path / "bert"))
    assert ended.code == 5
    assert "bert" in ended.err
    ended = run("transcribe", "1.wav", "--model", "nowhere")
    assert (ended.code, "neither a checkpoint folder" in ended.err) == (2, True)
    assert run("transcribe", "1.wav", "--model", "none").code == 2
    assert run("transcribe").code == 2
    ended = run("transcribe", "1.wav", "--model", str(thin), "--language", "tlh")
    assert ended.code == 8
    assert "tlh" in ended.err
