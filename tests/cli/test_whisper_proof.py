import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aula.core.settings import Settings
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import sealed
from aula.engine.store import Store
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import whisper_model
from aula.models.whisper_clips import read_clips
from aula.models.whisper_proof import prove
from aula.models.whisper_transcriber import Place, WhisperTranscriber
from tests.cli.running import Run
from tests.models.whisper_thin_model import hearing_of, insist_on, make_sure, sound, thin_checkpoint


class Bench:
    """A checkpoint with its bundle, and clips of one and of three seconds."""

    def __init__(self, folder: Path, insist: dict[int, float]) -> None:
        self.home = folder / "home"
        self.checkpoint = thin_checkpoint(folder / "thin")
        if insist:
            insist_on(self.checkpoint, insist)
        else:
            make_sure(self.checkpoint)
        options = BuildOptions(threads=1)
        self.bundle: Bundle = build(whisper_model(self.checkpoint, "thin"), Store(self.home / "engines"), options)
        self.sounds = {}
        for seed in range(12):
            name = f"{seed}.wav"
            self.sounds[name] = np.rint(sound(seed, 1.0 + 2 * (seed % 2)) * 0.9 * 32767).astype(np.int16)
            soundfile.write(str(folder / name), self.sounds[name], 16_000)
        self.folder = folder

    def labelled(self, texts: dict[str, str]) -> Path:
        path = self.folder / "transcripts.tsv"
        path.write_text("".join(f"{name}\t{text}\n" for name, text in texts.items()) * 4)
        return path

    def heard(self) -> dict[str, str]:
        """In the whole window."""
        hearing, texts = hearing_of(Checkpoint(self.checkpoint.folder)), {}
        for name, samples in self.sounds.items():
            mel = hearing.mel_stream()
            mel.feed(samples.astype(np.float32) / 32768)
            texts[name] = hearing.tokenizer.text(hearing.final(mel, None).tokens)
        return texts


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Says "w9" whatever it hears, in however little."""
    return Bench(tmp_path_factory.mktemp("steady"), {50_257: 25.0, 9: 24.5})


@pytest.fixture(scope="module")
def fickle(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Writes something else in every context."""
    return Bench(tmp_path_factory.mktemp("fickle"), {})


def test_a_context_that_loses_nothing_is_safe(steady: Bench) -> None:
    clips = read_clips(steady.labelled(dict.fromkeys(steady.sounds, "w9")))
    proof = prove(steady.checkpoint, steady.bundle, clips, 0.5)
    assert proof.safe == {"2": 2.0, "4": 4.0}
    assert proof.measured == {"2": {"whole": 1.0, "2": 1.0}, "4": {"whole": 1.0, "4": 1.0}}
    assert (proof.examples, proof.margin) == (48, 0.5)


def test_a_context_that_loses_words_is_not(fickle: Bench) -> None:
    texts = fickle.heard()
    assert len(set(texts.values())) > 3
    proof = prove(fickle.checkpoint, fickle.bundle, read_clips(fickle.labelled(texts)), 0.5)
    assert all(metrics["whole"] > 0.99 for metrics in proof.measured.values())
    for bucket, metrics in proof.measured.items():
        lost = {context: metrics["whole"] - metric for context, metric in metrics.items() if context != "whole"}
        assert proof.safe.get(bucket) == next((float(one) for one, drop in lost.items() if drop <= 0.01), None)
    assert any(metrics["whole"] - metrics[bucket] > 0.01 for bucket, metrics in proof.measured.items())


def test_too_few_clips_prove_nothing(steady: Bench) -> None:
    clips = read_clips(steady.labelled({"0.wav": "w9", "1.wav": "w9"}))
    proof = prove(steady.checkpoint, steady.bundle, clips, 0.5)
    assert (proof.measured, proof.safe) == ({}, {})


def test_what_is_proven_serves_from_then_on(steady: Bench) -> None:
    settings = Settings({"home": str(steady.home), "whisper.margin": 0.25})
    place = Place("thin", steady.checkpoint.folder, ("en",))
    clips = read_clips(steady.labelled(dict.fromkeys(steady.sounds, "w9")))
    proof = prove(steady.checkpoint, steady.bundle, clips, 0.5)
    for contexts, frames in ((None, 600), (proof, 200)):
        Store(steady.home / "engines").publish(sealed(replace(steady.bundle.manifest, contexts=contexts)))
        transcriber = WhisperTranscriber.open(place, settings)
        assert transcriber.hearing.contexts.final(16_000) == frames
        transcriber.close()
    assert WhisperTranscriber.open(place, settings).hearing.contexts.margin == 0.5, "the proof's"


def test_verify_proves_contexts_and_writes_them_down(run: Run, steady: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AULA_HOME", str(steady.home))
    monkeypatch.setenv("AULA_WHISPER_MARGIN", "0.5")
    listed = steady.labelled(dict.fromkeys(steady.sounds, "w9"))
    arguments = ("verify", steady.bundle.manifest.key, "--model", str(steady.checkpoint.folder))
    plain = json.loads(run(*arguments, "--json").out)
    assert (plain["passed"], plain["contexts"]) == (True, None)
    ended = run(*arguments, "--labelled", str(listed), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["contexts"]["safe"] == {"2": 2.0, "4": 4.0}
    shown = run("inspect", steady.bundle.manifest.key).out
    assert "up to 2 s: 2 s (whole 1.0000, 2 s 1.0000)" in shown
    assert json.loads(run("inspect", steady.bundle.manifest.key, "--json").out)["contexts"]["margin"] == 0.5
