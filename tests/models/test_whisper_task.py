import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import SessionOptions, open_session
from aula.core.errors import AudioTooLongError, CalibrationError, CheckpointError
from aula.engine.recipe import Recipe
from aula.models import whisper_task
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import random_checkpoint, whisper_model
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_mel import HOP
from aula.models.whisper_task import frames_for
from tests.models.whisper_small_model import SMALL

THIN: dict[str, Any] = {**SMALL, "vocab_size": 51_865, "d_model": 16, "max_source_positions": 1500}
"""Whisper's own vocabulary and window, and little else."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    made = random_checkpoint({**THIN, "max_target_positions": 16}, tmp_path_factory.mktemp("thin"), 3)
    vocabulary = {f"w{place}": place for place in range(50_257)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.save(str(made.folder / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import soundfile

    folder = tmp_path_factory.mktemp("clips")
    for seconds in (1, 3):
        noise = np.random.default_rng(seconds).uniform(-0.5, 0.5, seconds * 16_000).astype(np.float32)
        soundfile.write(str(folder / f"{seconds}.wav"), noise, 16_000)
    texts = " ".join(["one", "two"] * 25), " ".join(["three"] * 50)
    (folder / "transcripts.tsv").write_text(f"1.wav\t{texts[0]}\n3.wav\t{texts[1]}\n")
    return folder


def _metric(recipe: Recipe, folder: Path) -> float:
    import onnx

    assert recipe.task is not None
    path = folder / f"{recipe.name}.onnx"
    onnx.save(recipe.write_graph(), str(path))
    with open_session("onnxruntime", path, SessionOptions(threads=1)) as session:
        return recipe.task().evaluate(session)


def test_either_part_is_judged_together_with_the_other(checkpoint: Checkpoint, clips: Path, tmp_path: Path) -> None:
    model = whisper_model(checkpoint, "thin", clips=clips)
    for recipe in model.parts.values():
        assert _metric(recipe, tmp_path) == 0.0, "made-up weights write nothing that was said"
    # Now the list says what the model writes.
    heard = _heard(checkpoint, clips, tmp_path)
    right = tmp_path / "right.tsv"
    right.write_text("".join(f"{clips / name}\t{text}\n" for name, text in heard.items()) * 10)
    model = whisper_model(checkpoint, "thin", clips=right)
    for recipe in model.parts.values():
        assert _metric(recipe, tmp_path) == 1.0
        assert recipe.task is not None
        assert recipe.task().examples == 20
        assert recipe.task().chance is None


def test_worse_than_nothing_is_told_from_nothing(
    checkpoint: Checkpoint, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_task, "word_error_rate", lambda _: 1.5)
    assert _metric(whisper_model(checkpoint, "thin", clips=clips).recipe("decoder"), tmp_path) == -0.5


def test_few_clips_that_say_little_judge_nothing(checkpoint: Checkpoint, clips: Path, tmp_path: Path) -> None:
    line = f"{clips / '1.wav'}\tone two\n"
    (tmp_path / "few.tsv").write_text(line * 19)
    with pytest.raises(CalibrationError, match=r"few\.tsv has 19 clips with 38 words"):
        whisper_model(checkpoint, "thin", clips=tmp_path / "few.tsv")
    (tmp_path / "few.tsv").write_text(line * 20)
    assert whisper_model(checkpoint, "thin", clips=tmp_path / "few.tsv").recipe("encoder").task is not None


def test_another_tokeniser_is_other_evidence(checkpoint: Checkpoint, clips: Path, tmp_path: Path) -> None:
    copied = Checkpoint(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint.folder / name).read_bytes())
    (tmp_path / "model.safetensors").symlink_to(checkpoint.weights_file)
    task = whisper_model(copied, "thin", clips=clips).recipe("encoder").task
    assert task is not None
    before = task().digest
    assert task().digest == before
    told = (tmp_path / "tokenizer.json").read_text().replace('"w7"', '"v7"')
    (tmp_path / "tokenizer.json").write_text(told)
    assert task().digest != before


def _heard(checkpoint: Checkpoint, clips: Path, folder: Path) -> dict[str, str]:
    """What the model writes, caught where texts are compared."""
    caught: list[tuple[str, str]] = []

    def catch(pairs: list[tuple[str, str]]) -> float:
        caught.extend(pairs)
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisper_task, "word_error_rate", catch)
        _metric(whisper_model(checkpoint, "thin", clips=clips).recipe("encoder"), folder)
    texts = [heard for _, heard in caught]
    assert all(texts)
    return {f"{seconds}.wav": text for seconds, text in zip((1, 3), texts, strict=True)}


def test_ranges_are_found_on_the_clips_as_they_are_served(checkpoint: Checkpoint, clips: Path) -> None:
    recipe = whisper_model(checkpoint, "thin", calibrate=clips).recipe("encoder")
    assert recipe.calibration is not None
    assert recipe.task is None
    calibration = recipe.calibration()
    assert [example["mel"].shape for example in calibration.inputs] == [(1, 20, 500)] * 2
    assert not calibration.random
    assert calibration.source == clips.name
    labelled = whisper_model(checkpoint, "thin", clips=clips).recipe("encoder")
    assert labelled.calibration is not None
    assert labelled.calibration().digest != calibration.digest, "the texts are part of it"


def test_a_clip_beyond_the_window_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(str(tmp_path / "long.wav"), np.zeros(31 * 8000, dtype=np.float32), 8000)
    recipe = whisper_model(checkpoint, "thin", calibrate=tmp_path).recipe("encoder")
    assert recipe.calibration is not None
    with pytest.raises(AudioTooLongError):
        recipe.calibration()


def test_a_checkpoint_whose_texts_cannot_be_read_is_told(tmp_path: Path, clips: Path, checkpoint: Checkpoint) -> None:
    bare = Checkpoint(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(checkpoint.weights_file)
    for raw, message in ((THIN, "tokenizer.json"), ({**THIN, "vocab_size": 310}, "vocabulary of 310")):
        (tmp_path / "config.json").write_text(json.dumps(raw))
        task = whisper_model(bare, "thin", clips=clips).recipe("decoder").task
        assert task is not None
        with pytest.raises(CheckpointError, match=message):
            task()


def test_sound_is_padded_to_whole_stretches_and_never_past_the_window(checkpoint: Checkpoint) -> None:
    config = WhisperConfig.from_checkpoint(checkpoint)
    seconds = {0.5: 500, 3.9: 500, 4.5: 1000, 29.5: 3000, 30.0: 3000}
    for length, frames in seconds.items():
        assert frames_for(int(length * 100) * HOP, config) == frames
