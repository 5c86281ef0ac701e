import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.core.errors import (
    CheckpointError,
    NoRungError,
    ProcessAwayError,
    ProcessLostError,
    SettingsError,
    UnsupportedLanguageError,
    VerificationError,
)
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Partial, TranscribeRequest, Transcript
from aula.engine.build import BuildOptions, build
from aula.engine.store import Store
from aula.models import whisper_transcriber
from aula.models.checkpoints import Checkpoint
from aula.models.hub import MARKER
from aula.models.whisper import whisper_model
from aula.models.whisper_engines import find_bundle
from aula.models.whisper_rows import WhisperRows
from aula.models.whisper_transcriber import Place, WhisperTranscriber, find_places
from aula.runtime import LiveTranscription, Runtime, open_hearing, open_runtime
from tests.models.whisper_thin_model import sound, thin_checkpoint, write_config

ENGLISH = Context("en")


@pytest.fixture(scope="module")
def thin_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which somebody put a Whisper."""
    home = tmp_path_factory.mktemp("home")
    thin_checkpoint(home / "checkpoints" / "whisper-thin")
    return home


@pytest.fixture(scope="module")
def transcriber(thin_home: Path) -> Any:
    settings = Settings({"home": str(thin_home)})
    opened = WhisperTranscriber.open(find_places(settings)[0], settings)
    yield opened
    opened.close()


def _names(settings: Settings) -> list[str]:
    rungs = open_runtime(settings).statistics().rungs
    return [rung.name for rung in rungs if rung.capability is Capability.TRANSCRIBE]


def test_whisper_serves_where_a_folder_is_at_hand_and_nobody_said_so(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert _names(Settings({"home": str(tmp_path)})) == ["recogniser", "pocketsphinx"]
    for name, layers in (("small", 1), ("large", 4)):
        thin_checkpoint(checkpoints / name, encoder_layers=layers)
    (checkpoints / "other").mkdir()
    (checkpoints / "other" / "config.json").write_text('{"model_type": "bert"}')
    (checkpoints / "damaged").mkdir()
    (checkpoints / "damaged" / "config.json").write_text("{")
    assert _names(Settings({"home": str(tmp_path)})) == ["large", "small", "recogniser", "pocketsphinx"], (
        "the largest first"
    )
    assert _names(Settings({"home": str(tmp_path), "whisper": "none"})) == ["recogniser", "pocketsphinx"]
    one = Settings({"home": str(tmp_path), "whisper": str(checkpoints / "small")})
    assert _names(one) == ["small", "recogniser", "pocketsphinx"]


def test_a_pulled_one_is_called_as_on_the_hub_and_found_by_that_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "openai--whisper-thin@0123456789ab"
    thin_checkpoint(folder)
    files = [{"path": "config.json", "size": (folder / "config.json").stat().st_size}]
    marker = {"name": "openai/whisper-thin", "revision": "0123456789ab" + 28 * "0", "asked": ["main"], "files": files}
    (folder / MARKER).write_text(json.dumps(marker))
    settings = Settings({"home": str(tmp_path)})
    assert [place.name for place in find_places(settings)] == ["whisper-thin"]
    named = find_places(settings.replaced(whisper="openai/whisper-thin"))
    assert [(place.name, place.folder) for place in named] == [("whisper-thin", folder)]


def test_a_name_on_the_hub_is_fetched_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    places = find_places(Settings({"home": str(tmp_path), "whisper": "openai/whisper-tiny.en"}))
    assert [(place.folder, place.languages) for place in places] == [(None, ("en",))]
    assert len(find_places(Settings({"home": str(tmp_path), "whisper": "openai/whisper-tiny"}))[0].languages) == 100
    for senseless in ("whisper-tiny", "a/b/c", str(tmp_path)):
        with pytest.raises(SettingsError, match="neither a checkpoint folder"):
            find_places(Settings({"home": str(tmp_path), "whisper": senseless}))


def test_its_rung_says_what_it_hears(tmp_path: Path) -> None:
    write_config(tmp_path, vocab_size=51_864)
    info = whisper_transcriber._in_folder(tmp_path).info
    assert (set(info.languages), info.note) == ({"en"}, "Whisper, English only")
    assert info.serves("und")
    assert not info.serves("zh")
    assert info.licences[0].licence == "MIT"


async def test_a_question_is_heard_by_it(thin_home: Path, transcriber: Any) -> None:
    async with open_hearing(Settings({"home": str(thin_home)})) as runtime:
        for language in ("en", "zh", "und"):
            outcome = await runtime.submit(Capability.TRANSCRIBE, TranscribeRequest(), Context(language))
            assert outcome.rung == "whisper-thin"
            for piece in np.array_split(sound(3), 20):
                await outcome.value.feed(piece)
            transcript = await outcome.value.commit()
            assert transcript.text
            assert transcript.language == language or language == "und"
            await outcome.value.close()


async def test_students_who_speak_at_once_share_passes_and_are_each_heard_as_alone(
    thin_home: Path, transcriber: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them disappears on the way, one comes late, one was paused."""
    settings = Settings({"home": str(thin_home)})
    rows: list[int] = []
    step = WhisperRows.step

    def counted(self: WhisperRows) -> Any:
        rows.append(len(self))
        return step(self)

    monkeypatch.setattr(WhisperRows, "step", counted)

    async def heard(runtime: Runtime, seed: int, *, leaves: bool = False, pauses: bool = False) -> str:
        outcome = await runtime.submit(
            Capability.TRANSCRIBE, TranscribeRequest(), Context("en", tenant=f"class-{seed}")
        )
        live: LiveTranscription = outcome.value
        try:
            for piece in np.array_split(sound(seed, 2.0), 10):
                await live.feed(piece)
            if leaves:
                task = asyncio.ensure_future(live.commit())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                return ""
            if pauses:
                assert (await live.pause(30.0)).settled
            return str((await live.commit()).text)
        finally:
            await live.close()

    async with open_hearing(settings, last_resort=False) as runtime:
        alone = [await heard(runtime, seed) for seed in range(3)]
        assert max(rows) == 1
        rows.clear()
        together = asyncio.gather(
            *(heard(runtime, seed, pauses=seed == 1) for seed in range(3)), heard(runtime, 3, leaves=True)
        )
        assert (await together)[:3] == alone
        assert max(rows) > 1, "they wrote at once"
        statistics = runtime.statistics()
        assert statistics.in_flight == 0
        assert statistics.schedulers[0].running == 0


async def test_where_it_cannot_be_loaded_the_next_rung_serves(tmp_path: Path, home: Path) -> None:
    """A checkpoint without weights, another architecture, a tokenizer that is absent."""
    for name in ("no-weights", "no-tokenizer"):
        thin_checkpoint(tmp_path / name)
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    (tmp_path / "no-tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name, reason in (("no-weights", "safetensors"), ("no-tokenizer", "tokenizer"), ("bert", "bert")):
        settings = Settings({"home": str(home), "whisper": str(tmp_path / name)})
        async with open_hearing(settings) as runtime:
            outcome = await runtime.submit(Capability.TRANSCRIBE, TranscribeRequest(), ENGLISH)
            assert outcome.rung == "recogniser"
            assert reason in str(runtime.statistics().rungs[0].unavailable)
            await outcome.value.close()
        async with open_hearing(settings, last_resort=False) as runtime:
            with pytest.raises(NoRungError, match=reason):
                await runtime.submit(Capability.TRANSCRIBE, TranscribeRequest(), ENGLISH)


def test_missing_files_are_told(tmp_path: Path) -> None:
    settings = Settings({"home": str(tmp_path / "home")})
    thin_checkpoint(tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        WhisperTranscriber.open(Place("w", tmp_path / "w", ("en",)), settings)
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        WhisperTranscriber.open(Place("w", tmp_path / "w", ("en",)), settings)


def test_isolated_it_hears_the_same_and_comes_back_from_the_death_of_either_process(
    thin_home: Path, transcriber: WhisperTranscriber
) -> None:
    """As `isolate` asks for; each of its engines has a process of its own."""

    def commits(by: WhisperTranscriber, seeds: Sequence[int]) -> list[Any]:
        """At one moment, each beside one of the same sound with times."""
        told: list[Any] = []
        for seed in seeds:
            for timestamps in (False, True):
                stream = by.start(TranscribeRequest(timestamps=timestamps, partials=False), ENGLISH)
                for work in (stream.feeding(sound(seed, 2.0)), stream.committing()):
                    by.passes.begin(stream, work, lambda value, _took: told.append(value))
        while by.passes.advance():
            pass
        return [one for one in told if not isinstance(one, Partial)]

    def heard(by: WhisperTranscriber, seeds: Sequence[int]) -> list[tuple[str, int]]:
        return [(one.text, len(one.segments)) for one in commits(by, seeds)]

    settings = Settings({"home": str(thin_home), "isolate": "always"})
    hosted = WhisperTranscriber.open(find_places(settings)[0], settings)
    try:
        assert all(isinstance(session, HostedSession) for session in hosted.sessions)
        assert heard(hosted, [1]) == heard(transcriber, [1])
        assert heard(hosted, [1, 2, 3]) == heard(transcriber, [1, 2, 3])
        for session in hosted.sessions:
            assert isinstance(session, HostedSession)
            os.kill(session.health().pid, signal.SIGKILL)
            # Whoever comes in between is told so, or finds it there again.
            told = commits(hosted, [1])
            assert len(told) == 2
            assert all(isinstance(one, (ProcessLostError, ProcessAwayError, Transcript)) for one in told)
            assert session.wait_ready(60)
            assert session.statistics().deaths == 1
            assert heard(hosted, [1]) == heard(transcriber, [1])
    finally:
        hosted.close()
    assert not any(isinstance(session, HostedSession) for session in transcriber.sessions)


def test_a_language_that_it_does_not_hear_is_refused(transcriber: WhisperTranscriber) -> None:
    with pytest.raises(UnsupportedLanguageError, match="99 languages"):
        transcriber.start(TranscribeRequest(), Context("tlh"))


def test_a_courses_terms_are_read_once(transcriber: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def terms(sentences: Any, tokenizer: Any, most: int) -> tuple[int, ...]:
        calls.append(most)
        return (9, 8)

    monkeypatch.setattr(whisper_transcriber, "bias_tokens", terms)
    request = TranscribeRequest(("momentum",), "mechanics-1")
    for _ in range(3):
        assert transcriber.start(request, ENGLISH)._options.before == (9, 8)
    assert calls == [24]
    assert transcriber.start(TranscribeRequest(), ENGLISH)._options.before == ()
    for course in range(whisper_transcriber.KEPT_COURSES):
        transcriber.start(TranscribeRequest(("word",), f"course-{course}"), ENGLISH)
    transcriber.start(request, ENGLISH)
    assert len(calls) == 2 + whisper_transcriber.KEPT_COURSES


def test_engines_that_are_there_are_used_and_damaged_ones_made_again(thin_home: Path, transcriber: Any) -> None:
    settings = Settings({"home": str(thin_home)})
    checkpoint = Checkpoint(thin_home / "checkpoints" / "whisper-thin")
    said: list[str] = []
    found = find_bundle(checkpoint, settings, lambda what, share: said.append(what))
    assert said == [], "nothing was built"
    # A seeded one is measured only, and never served.
    build(
        replace(whisper_model(checkpoint, "whisper-thin", seeded=True)),
        Store(thin_home / "engines"),
        BuildOptions(threads=1),
    )
    assert find_bundle(checkpoint, settings).manifest.key == found.manifest.key
    file = found.files / found.engine("decoder").files[0].name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(VerificationError):
        found.check()
    again = find_bundle(checkpoint, settings, lambda what, share: said.append(what))
    again.check()
    assert said, "it was built anew"
