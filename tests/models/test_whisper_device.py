"""Whisper whole on a GPU of numpy: texts, languages, drafts, rows and streams are those of the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.core.clock import FakeClock, SystemClock
from aula.core.errors import BackendError, EngineError
from aula.models.whisper_choice import HostChoice
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_device import LISTEN, LOOK, STEP, WhisperDevice
from aula.models.whisper_device_rows import AHEAD, DeviceEngine, DeviceRows
from aula.models.whisper_hearing import HearingOptions, WhisperHearing
from aula.models.whisper_passes import WhisperPasses
from aula.models.whisper_reader import ROWS
from aula.models.whisper_stream import StreamOptions, WhisperStream
from aula.models.whisper_text import Text, Written
from aula.models.whisper_tokenizer import WhisperTokenizer
from tests.backends.fake_cuda import FakeCuda
from tests.models.whisper_on_fake_gpu import FRAMES, device_of, noise, wide_checkpoint
from tests.models.whisper_thin_model import insist_on, make_sure, sessions_of, sound

LIMIT = 12
START, END, ENGLISH, TRANSCRIBE, PLAIN = 50_258, 50_257, 50_259, 50_359, 50_363
PROMPT = (START, ENGLISH, TRANSCRIBE, PLAIN)


class Both:
    """The same Whisper on a CPU and on the fake GPU."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = wide_checkpoint(folder)
        make_sure(self.checkpoint)
        self.config = WhisperConfig.from_checkpoint(self.checkpoint)
        self.gpu = FakeCuda()
        self.device = device_of(self.checkpoint, self.gpu)
        self.engine = DeviceEngine(self.config, self.device)
        self.decoding = WhisperDecoding(self.config, *sessions_of(self.checkpoint))
        self.mels = [noise(seed, FRAMES[seed % 2]) for seed in range(5)]
        self._free: dict[int, Written] = {}

    def alone(self, place: int, end: int = -1, **options: Any) -> Written:
        """On the CPU."""
        self.decoding.listen(self.mels[place])
        return self.decoding.write(PROMPT, end, limit=LIMIT, **options)

    def free(self, place: int) -> Written:
        if place not in self._free:
            self._free[place] = self.alone(place)
        return self._free[place]

    def on_gpu(self, place: int, prompt: tuple[int, ...] = PROMPT, end: int = -1, **options: Any) -> Written:
        rows, text = self.engine.rows(), Text(self.config, prompt, end, limit=LIMIT, **options)
        rows.join(self.engine.listen(self.mels[place]), text)
        finish(rows)
        return text.written()


def finish(rows: DeviceRows) -> None:
    while len(rows):
        rows.step()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    made = Both(tmp_path_factory.mktemp("both"))
    yield made
    made.device.close()
    assert made.gpu.held() == {}


@pytest.mark.parametrize("place", range(3))
def test_a_text_is_the_cpu_s(both: Both, place: int) -> None:
    wanted, got = both.free(place), both.on_gpu(place)
    assert got.tokens == wanted.tokens
    np.testing.assert_allclose(got.logprobs, wanted.logprobs, atol=0.1)
    assert got.no_speech == pytest.approx(wanted.no_speech, abs=1e-3)
    assert got.runs == wanted.runs, "a step that was started ahead counts as one"


def test_a_text_ends_where_it_ends_and_what_was_started_behind_it_is_forgotten(both: Both) -> None:
    free = both.free(0)
    for place in range(2, 2 + AHEAD):
        if free.tokens[place] not in free.tokens[:place]:
            got = both.on_gpu(0, end=free.tokens[place])
            assert (got.tokens, got.finished) == (free.tokens[:place], True)


def test_a_language_is_found(both: Both) -> None:
    rows = both.engine.rows()
    for place in range(2):
        both.decoding.listen(both.mels[place])
        language, share = both.decoding.language(START)
        found, likely = rows.language(both.engine.listen(both.mels[place]), START)
        assert found == language
        assert likely == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("wrong", [(), (0,), (5,), (3, 7)], ids=str)
def test_a_draft_saves_runs_and_changes_nothing(both: Both, wrong: tuple[int, ...]) -> None:
    free = both.free(1)
    draft = tuple(9 if place in wrong else token for place, token in enumerate(free.tokens))
    got, wanted = both.on_gpu(1, draft=draft, sure=2), both.alone(1, draft=draft, sure=2)
    assert (got.tokens, got.accepted, got.runs) == (free.tokens, wanted.accepted, wanted.runs)


def test_long_prompts_are_read_in_pieces(both: Both) -> None:
    prompt = (START + 103, *range(300, 317), *PROMPT)  # START + 103 is the start of what was said before
    both.decoding.listen(both.mels[0])
    wanted = both.decoding.write(prompt, -1, limit=5)
    got = both.on_gpu(0, prompt=prompt)
    assert got.tokens[:5] == wanted.tokens
    assert got.no_speech == pytest.approx(wanted.no_speech, abs=1e-3)


def test_rows_join_and_leave_and_harm_nobody(both: Both) -> None:
    """More texts than rows, with and without drafts, one with chance; each says what it says alone."""
    rows = both.engine.rows()
    texts: list[tuple[int, Text]] = []
    for place in (0, 1, 2, 3, 0, 4):
        draft = both.free(place).tokens[:6] if place % 2 else ()
        text = Text(both.config, PROMPT, -1, limit=LIMIT - place, draft=(*draft, 8))
        while rows.is_full:
            rows.step()
        assert rows.join(both.engine.listen(both.mels[place]), text)
        texts.append((place, text))
    drawn = Text(both.config, PROMPT, -1, limit=6, choose=HostChoice(both.config, temperature=0.7, seed=4))
    while rows.is_full:
        rows.step()
    rows.join(both.engine.listen(both.mels[1]), drawn)
    finish(rows)
    for place, text in texts:
        assert text.written().tokens == both.free(place).tokens[: LIMIT - place]
    assert drawn.written().tokens == both.alone(1, choose=HostChoice(both.config, temperature=0.7, seed=4)).tokens[:6]


def test_sounds_that_nobody_has_make_room(both: Both) -> None:
    engine = DeviceEngine(both.config, both.device)
    first = engine.listen(both.mels[0])
    second = engine.listen(both.mels[1])
    numbers = {first.number, second.number}
    del first
    assert engine.listen(both.mels[2]).number in numbers


def test_all_rows_taken_and_a_text_that_needs_none(both: Both) -> None:
    rows, heard = both.engine.rows(), both.engine.listen(both.mels[0])
    assert not rows.join(heard, Text(both.config, PROMPT, both.free(0).tokens[0], limit=4))
    texts = [Text(both.config, PROMPT, -1, limit=4) for _ in range(ROWS)]
    for text in texts:
        rows.join(heard, text)
    with pytest.raises(EngineError, match="all 4 rows are taken"):
        rows.join(heard, Text(both.config, PROMPT, -1, limit=4))
    rows.leave(texts[2])
    assert len(rows) == ROWS - 1
    finish(rows)


def test_what_would_read_elsewhere_is_refused(both: Both) -> None:
    nothing = np.zeros((80, 1), np.float32)

    def run(ask: list[int], line: list[int], mel: Any = nothing) -> Any:
        return both.device.run({"ask": np.array(ask, np.int32), "lines": np.array([line], np.int32), "mel": mel})

    run([LISTEN, 77, 0, 0], [0, 0, 0, 0], both.mels[0])
    for ask, line in (
        ([LOOK, 77, 5, 0], [3, 1, 0, 0]),
        ([LOOK, 77, 0, 48], [3, 1, 0, 0]),
        ([LOOK, 77, 0, 0], [60_000, 1, 0, 0]),
        ([STEP, 1, 0, 0], [4, 3, 0, 0]),
        ([STEP, 1, 0, 0], [0, -1, 0, 0]),
        ([STEP, 1, 0, 0], [0, 3, 48, 0]),
    ):
        with pytest.raises(EngineError, match="there are 4 rows of 48 places"):
            run(ask, line)
    with pytest.raises(EngineError, match="was not listened to"):
        run([LOOK, 78, 0, 0], [3, 1, 0, 0])
    with pytest.raises(EngineError, match="no encoder is for 100 frames"):
        run([LISTEN, 77, 0, 0], [0, 0, 0, 0], nothing.repeat(100, axis=1))


def _hearing(both: Both, *, on_gpu: bool) -> tuple[WhisperHearing, WhisperPasses | None]:
    tokenizer = WhisperTokenizer.open(both.checkpoint, both.config)
    options = HearingOptions(most_tokens=8, temperatures=(0.0, 0.4))
    contexts = Contexts(600, 0.5, offered=FRAMES)
    hearing = WhisperHearing(both.config, None if on_gpu else both.decoding, tokenizer, contexts, options)
    if not on_gpu:
        return hearing, None
    passes = WhisperPasses(both.config, both.engine, FakeClock())
    hearing.share(passes)
    hearing.warm()
    return hearing, passes


@pytest.mark.parametrize("timestamps", [False, True])
def test_streams_say_on_a_gpu_what_they_say_on_a_cpu(both: Both, timestamps: bool) -> None:
    (cpu, _), (gpu, passes) = (_hearing(both, on_gpu=on_gpu) for on_gpu in (False, True))
    assert passes is not None

    def said(hearing: WhisperHearing, seed: int) -> Any:
        stream = WhisperStream(hearing, FakeClock(), StreamOptions(timestamps=timestamps))
        for piece in np.array_split(sound(seed, 1.6), 2):
            stream.feed(piece)
        made = stream.commit()
        return made.text, made.language, made.segments

    for seed in range(2):
        assert said(gpu, seed) == said(cpu, seed)


def test_a_hypothesis_takes_the_next_length_there_is_and_a_text_the_proven_one_or_the_window() -> None:
    contexts = Contexts(3000, 1.0, {2.0: 4.0, 6.0: 6.0}, offered=(600, 3000))
    second = 16_000
    assert [contexts.draft(n * second) for n in (0, 1, 3, 5, 6)] == [600, 600, 600, 600, 3000]
    assert contexts.final(second // 2) == 3000, "4 s were proven, and are not offered"
    assert contexts.final(4 * second) == 600


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[tuple[WhisperDevice, FakeCuda, DeviceEngine]]:
    checkpoint = wide_checkpoint(tmp_path)
    gpu = FakeCuda()
    device = device_of(checkpoint, gpu)
    yield device, gpu, DeviceEngine(WhisperConfig.from_checkpoint(checkpoint), device)
    device.close()


def test_a_device_that_fails_fails_whoever_waits_and_no_more(
    lost: tuple[WhisperDevice, FakeCuda, DeviceEngine],
) -> None:
    _, gpu, engine = lost
    heard = engine.listen(noise(0, FRAMES[0]))
    gpu.fail("cudaMemcpyAsync", 1)
    rows = engine.rows()
    with pytest.raises(BackendError):
        rows.language(heard, START)
    assert rows.language(heard, START)[0] in range(START + 1, START + 100)


def test_a_row_that_began_in_another_process_does_not_go_on(
    lost: tuple[WhisperDevice, FakeCuda, DeviceEngine],
) -> None:
    """Its caches are empty here, and what it would say is made up."""
    device, _, engine = lost
    rows, text = engine.rows(), Text(engine._config, PROMPT, -1, limit=8)
    rows.join(engine.listen(noise(0, FRAMES[0])), text)
    device._hears.clear()
    with pytest.raises(EngineError, match=r"rows \[0\] hear nothing here"):
        rows.step()


def open_in_child(folder: str) -> WhisperDevice:
    from aula.models.checkpoints import Checkpoint

    return device_of(Checkpoint(Path(folder)))


def test_it_lives_in_a_process_of_its_own(both: Both) -> None:
    from functools import partial

    with HostedSession(partial(open_in_child, str(both.checkpoint.folder)), clock=SystemClock()) as session:
        engine = DeviceEngine(both.config, session)
        text = Text(both.config, PROMPT, -1, limit=6)
        rows = engine.rows()
        rows.join(engine.listen(both.mels[0]), text)
        finish(rows)
    assert text.written().tokens == both.free(0).tokens[:6]


def test_nobody_speaks_and_nothing_is_said(tmp_path: Path) -> None:
    checkpoint = wide_checkpoint(tmp_path)
    # Nothing is likely but that nobody speaks: what is written is made up.
    make_sure(checkpoint, 0.1)
    insist_on(checkpoint, {50_362: 12.0})
    config = WhisperConfig.from_checkpoint(checkpoint)
    device = device_of(checkpoint)
    hearing = WhisperHearing(
        config,
        None,
        WhisperTokenizer.open(checkpoint, config),
        Contexts(600, 0.5, offered=FRAMES),
        HearingOptions(most_tokens=6),
    )
    hearing.share(WhisperPasses(config, DeviceEngine(config, device), FakeClock()))
    mel = hearing.mel_stream()
    mel.feed(sound(1, 1.0))
    heard = hearing.final(mel, ENGLISH)
    assert heard.no_speech > 0.6
    assert heard.tokens == ()
    device.close()
