from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.core.errors import CheckpointError, UnsupportedLanguageError
from aula.core.types import Float32
from aula.engine.recipe import ContextProof
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import BUCKETS, Contexts
from aula.models.whisper_decoding import Written
from aula.models.whisper_hearing import HearingOptions, WhisperHearing, compression, is_loop
from aula.models.whisper_mel import MelStream
from aula.models.whisper_seeded import made_up_tokenizer
from aula.models.whisper_tokenizer import WhisperTokenizer
from tests.models.whisper_thin_model import WINDOW, hearing_of, insist_on, sound, thin_checkpoint

TRUSTING = HearingOptions(temperatures=(0.0,))


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return thin_checkpoint(tmp_path_factory.mktemp("thin"))


@pytest.fixture(scope="module")
def hearing(thin: Checkpoint) -> WhisperHearing:
    return hearing_of(thin, options=TRUSTING)


def _mel(hearing: WhisperHearing, samples: Float32) -> MelStream:
    mel = hearing.mel_stream()
    mel.feed(samples)
    return mel


class Scripted:
    """A decoding that answers with what was written for it; remembers what it was asked."""

    def __init__(self, *texts: Written) -> None:
        self.texts = list(texts)
        self.frames: list[int] = []
        self.drafts: list[tuple[int, ...]] = []
        self.prompts: list[list[int]] = []

    def listen(self, mel: Float32) -> None:
        self.frames.append(mel.shape[1])

    def language(self, start: int) -> tuple[int, float]:
        return 50_260, 0.9

    def write(self, prompt: Sequence[int], end: int, **options: Any) -> Written:
        self.prompts.append(list(prompt))
        self.drafts.append(tuple(options["draft"]))
        return self.texts.pop(0)


def _written(tokens: Sequence[int], logprob: float = -0.2, no_speech: float = 0.0) -> Written:
    return Written(tuple(tokens), (logprob,) * (len(tokens) + 1), 0, 1, True, no_speech)


def _scripted(hearing: WhisperHearing, script: Scripted, safe: Mapping[float, float] | None = None) -> WhisperHearing:
    contexts = Contexts.of(hearing.config, 0.5, safe)
    return WhisperHearing(hearing.config, script, hearing.tokenizer, contexts)  # type: ignore[arg-type]


LOOPING = list(range(10, 13)) * 9
WORDS = [11, 12, 13, 14]


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_draft_right_or_wrong_does_not_change_the_text(hearing: WhisperHearing, timestamps: bool) -> None:
    for seed in range(4):
        mel = _mel(hearing, sound(seed))
        plain = hearing.final(mel, 50_259, timestamps=timestamps)
        assert len(plain.tokens) > 3
        for draft in (plain.tokens, (*plain.tokens[:2], 5, 6, 7), (9, 9)):
            drafted = hearing.final(mel, 50_259, timestamps=timestamps, draft=draft)
            assert drafted.tokens == plain.tokens
            assert drafted.runs <= plain.runs
        right = {"timestamps": timestamps, "draft": plain.tokens}
        assert hearing.final(mel, 50_259, **right).runs == 2
        assert hearing.final(mel, 50_259, **right, sure=len(plain.tokens)).runs == 1


def test_a_text_that_loops_in_a_short_context_is_heard_in_the_whole_window(hearing: WhisperHearing) -> None:
    script = Scripted(_written(LOOPING), _written(WORDS))
    heard = _scripted(hearing, script, safe={2.0: 2.0}).final(_mel(hearing, sound(1, 1.0)), 50_259)
    assert heard.tokens == tuple(WORDS)
    assert script.frames == [200, 600]
    assert heard.frames == 600
    assert script.drafts[1] == tuple(LOOPING), "what was right of it need not be written again"


def test_without_proof_the_whole_window_is_heard(hearing: WhisperHearing) -> None:
    script = Scripted(_written(WORDS))
    assert _scripted(hearing, script).final(_mel(hearing, sound(1, 1.0)), 50_259).frames == 600
    script = Scripted(_written(WORDS))
    assert _scripted(hearing, script).draft(_mel(hearing, sound(1, 1.0)), 50_259).frames == 200, "drafts need none"


@pytest.mark.parametrize("bad", [_written(LOOPING), _written(WORDS, -1.5), _written([15] * 60)])
def test_a_suspect_text_is_tried_again_at_higher_temperatures(hearing: WhisperHearing, bad: Written) -> None:
    script = Scripted(bad, bad, _written([21, 22]))
    heard = _scripted(hearing, script).final(_mel(hearing, sound(1)), 50_259, draft=[1])
    assert (heard.tokens, heard.temperature, heard.runs) == ((21, 22), 0.4, 3)
    assert script.drafts == [(1,), (), ()], "chance knows no draft"
    last = Scripted(*[bad] * 6)
    assert _scripted(hearing, last).final(_mel(hearing, sound(1)), 50_259).temperature == 1.0, "and then it is kept"


def test_where_nobody_speaks_there_is_no_text(hearing: WhisperHearing) -> None:
    script = Scripted(_written(WORDS, -1.5, no_speech=0.8))
    heard = _scripted(hearing, script).final(_mel(hearing, sound(1)), 50_259)
    assert (heard.tokens, heard.temperature) == ((), 0.0)
    sure = Scripted(_written(WORDS, -0.5, no_speech=0.8))
    assert _scripted(hearing, sure).final(_mel(hearing, sound(1)), 50_259).tokens == tuple(WORDS), "a sure text stays"


def test_noise_says_nothing_where_the_model_knows_that_nobody_speaks(tmp_path: Path) -> None:
    checkpoint = thin_checkpoint(tmp_path)
    insist_on(checkpoint, {50_362: 25.0})
    hearing = hearing_of(checkpoint)
    noise = np.random.default_rng(1).normal(0, 0.3, WINDOW).astype(np.float32)
    heard = hearing.final(_mel(hearing, noise), 50_259)
    assert heard.no_speech > 0.9
    assert heard.tokens == ()


def test_the_language_is_found_where_none_is_told(tmp_path: Path, hearing: WhisperHearing) -> None:
    script = Scripted(_written(WORDS), _written(WORDS))
    scripted = _scripted(hearing, script)
    assert scripted.final(_mel(hearing, sound(1)), None).language == 50_260
    assert scripted.final(_mel(hearing, sound(1)), 50_265).language == 50_265
    assert [prompt[1] for prompt in script.prompts] == [50_260, 50_265]
    checkpoint = thin_checkpoint(tmp_path)
    insist_on(checkpoint, {50_270: 25.0})
    true = hearing_of(checkpoint, options=TRUSTING)
    assert true.tokenizer.language_of(true.final(_mel(true, sound(2)), None).language) == "ca"


def test_an_english_only_model_is_told_no_language(tmp_path: Path) -> None:
    hearing = hearing_of(thin_checkpoint(tmp_path, vocab_size=51_864), options=TRUSTING)
    heard = hearing.final(_mel(hearing, sound(1)), None)
    assert heard.language is None
    assert hearing.tokenizer.language_of(None) == "en"
    assert hearing.tokenizer.language_token("en-GB") is None
    with pytest.raises(UnsupportedLanguageError, match="English alone"):
        hearing.tokenizer.language_token("zh")


def test_words_that_are_likely_stand_before_the_text(hearing: WhisperHearing) -> None:
    script = Scripted(_written(WORDS))
    _scripted(hearing, script).final(_mel(hearing, sound(1)), 50_259, before=range(100, 150))
    room = hearing.config.max_target_positions // 2 - 1
    assert script.prompts == [[50_361, *range(150 - room, 150), 50_258, 50_259, 50_359, 50_363]]


def test_languages_are_tags(hearing: WhisperHearing) -> None:
    tokenizer = hearing.tokenizer
    assert tokenizer.language_token("zh-CN") == 50_260
    assert tokenizer.language_token("und") is None
    with pytest.raises(UnsupportedLanguageError, match="99 languages"):
        tokenizer.language_token("tlh")


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    checkpoint = thin_checkpoint(tmp_path)
    config = WhisperConfig.from_checkpoint(checkpoint)
    made_up_tokenizer(tmp_path, 51_864)
    with pytest.raises(CheckpointError, match=r"copy tokenizer\.json"):
        WhisperTokenizer.open(checkpoint, config)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        WhisperTokenizer.open(checkpoint, config)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        WhisperTokenizer.open(checkpoint, config)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_a_loop_is_one_piece_said_again_and_again(before: list[int], piece: list[int]) -> None:
    assert is_loop([*before, *piece * 24])
    assert not is_loop([*before, *piece][:8]), "a few words are none"


def test_what_is_repeated_in_earnest_is_no_loop() -> None:
    assert not is_loop([5, 6] * 4)
    assert not is_loop([5] * 23)
    assert is_loop([5] * 24)
    assert not is_loop([*range(12), *range(12)]), "twice is not three times"
    assert not is_loop([])
    assert compression("abc " * 100) > 10 > 2.4 > compression("What is terminal velocity?")


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, 2), (1.5, 2), (1.6, 4), (9.5, 10), (20, 30), (30, 30)])
def test_the_smallest_context_with_room_for_sound_and_margin(seconds: float, wanted: int) -> None:
    contexts = Contexts(3000, 0.5, {bucket: bucket for bucket in BUCKETS})
    assert contexts.final(int(seconds * 16_000)) == 100 * wanted
    assert contexts.draft(int(seconds * 16_000)) == 100 * wanted
    assert Contexts(3000, 0.5).final(int(seconds * 16_000)) == 3000
    wider = Contexts(3000, 0.5, {2.0: 6.0})
    assert wider.final(int(seconds * 16_000)) == (600 if wanted == 2 else 3000), "what was proven, and nothing else"


def test_a_proof_holds_for_its_margin_and_for_more(hearing: WhisperHearing) -> None:
    proof = ContextProof("m", 30, "0" * 64, 0.01, 0.8, {}, {"2": 4.0})
    assert Contexts.proven_by(None, hearing.config, 0.5) == Contexts(600, 0.5)
    assert Contexts.proven_by(proof, hearing.config, 0.5) == Contexts(600, 0.8, {2.0: 4.0})
    assert Contexts.proven_by(proof, hearing.config, 1.5).margin == 1.5
