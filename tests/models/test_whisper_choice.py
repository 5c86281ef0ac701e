import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import architecture
from aula.models.whisper_choice import HostChoice, keep_time
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import NEVER, SpecialTokens, suppression

VOCABULARY = 51_865
NAMED = SpecialTokens.of(VOCABULARY)
assert NAMED is not None
TIME = NAMED.timestamps


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WhisperConfig:
    folder = tmp_path_factory.mktemp("choice")
    raw = {**architecture("whisper-tiny"), "suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 50257]}
    (folder / "config.json").write_text(json.dumps(raw))
    return WhisperConfig.from_checkpoint(Checkpoint(folder))


def _logits(**likely: float) -> Float32:
    """Token by its number (t5) or time by its steps (s5), with its logit; all others are -5."""
    logits = np.full(VOCABULARY, -5, dtype=np.float32)
    for name, value in likely.items():
        logits[int(name[1:]) + (TIME if name[0] == "s" else 0)] = value
    return logits


def test_without_timestamps_the_choice_is_that_of_the_table(config: WhisperConfig) -> None:
    choose = HostChoice(config)
    token, likelihood = choose(_logits(t220=9, t5=8, t1=10), [])
    assert token == 5, "220 may not come first, 1 never"
    assert choose(_logits(t220=9, t5=8, t1=10), [5])[0] == 220
    scores = _logits(t220=9, t5=8, t1=10) + suppression(config)[2]
    assert likelihood == pytest.approx(float(8 - np.log(np.exp(scores.astype(np.float64)).sum())), abs=1e-4)


def test_chance_is_seeded_and_follows_the_temperature(config: WhisperConfig) -> None:
    logits = _logits(t10=6, t11=5.5, t12=5)

    def drawn(temperature: float, seed: int = 3) -> list[int]:
        choose = HostChoice(config, temperature=temperature, seed=seed)
        return [choose(logits, [5])[0] for _ in range(40)]

    assert drawn(1.0) == drawn(1.0) != drawn(1.0, seed=4)
    assert set(drawn(0.0)) == {10}
    assert len(set(drawn(0.01))) == 1
    assert {10, 11, 12} <= set(drawn(0.5))


def test_a_text_with_times_begins_with_one_of_the_first_second(config: WhisperConfig) -> None:
    choose = HostChoice(config, timestamps=True)
    assert choose(_logits(t5=9, s7=3, s400=8), [])[0] == TIME + 7
    assert choose(_logits(t5=9, s7=3, s50=8, s51=9), [])[0] == TIME + 50


def test_times_come_in_pairs_and_rise(config: WhisperConfig) -> None:
    choose = HostChoice(config, timestamps=True)
    assert choose(_logits(t5=1, s9=9), [TIME])[0] == 5, "a segment that has begun has a text"
    assert choose(_logits(t5=9, s3=1), [TIME, 5, TIME + 3])[0] == TIME + 3, "one that has ended is followed by a time"
    assert choose(_logits(t50257=6, t5=9, s3=1), [TIME, 5, TIME + 3])[0] == 50_257, "or by nothing"
    assert choose(_logits(t5=1, s2=9, s4=2), [TIME + 3, 5])[0] == TIME + 4, "never back"


def test_all_times_together_may_be_likelier_than_any_word(config: WhisperConfig) -> None:
    choose = HostChoice(config, timestamps=True)
    spread = _logits(t5=3.0)
    spread[TIME + 4 : TIME + 40] = 1.0
    assert choose(spread, [TIME, 6])[0] == TIME + 4
    assert choose(_logits(t5=9.0, s4=1.0), [TIME, 6])[0] == 5


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is absent: pip install aula[export]")
@pytest.mark.filterwarnings("default")
def test_the_rules_of_times_are_those_of_transformers() -> None:
    import torch
    from transformers import GenerationConfig
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    named: Any = NAMED
    steering = GenerationConfig(eos_token_id=named.end, no_timestamps_token_id=named.no_timestamps)
    steering.max_initial_timestamp_index = 50
    prompt = named.prompt(named.languages[0], timestamps=True)
    theirs = WhisperTimeStampLogitsProcessor(steering, begin_index=len(prompt))
    generator = np.random.default_rng(0)
    for _ in range(60):
        logits = generator.normal(0, 2, VOCABULARY).astype(np.float32)
        text = [int(token) for token in generator.integers(0, named.end, generator.integers(0, 5))]
        if generator.random() < 0.8:
            text = [TIME + int(generator.integers(0, 20)), *text]
        if generator.random() < 0.5:
            text.append(TIME + int(generator.integers(20, 40)))
        if generator.random() < 0.3:
            text.append(TIME + int(generator.integers(40, 60)))
        logits[TIME:] += generator.choice([-6.0, 0.0])
        wanted = theirs(torch.tensor([[*prompt, *text]]), torch.from_numpy(logits[None]))[0].numpy()
        ours = logits.copy()
        keep_time(ours, text, named)
        np.testing.assert_array_equal(ours <= NEVER, np.isneginf(wanted))


def test_languages_and_prompts_of_the_vocabularies() -> None:
    english, multilingual, third = (SpecialTokens.of(size) for size in (51_864, 51_865, 51_866))
    assert english is not None
    assert multilingual is not None
    assert third is not None
    assert english.codes == ("en",)
    assert (multilingual.codes[:3], len(multilingual.codes), third.codes[-1]) == (("en", "zh", "de"), 99, "yue")
    assert (multilingual.timestamps, multilingual.timestamps + 1501) == (50_364, 51_865)
    assert english.prompt(None) == [50_257, 50_362]
    assert multilingual.prompt(50_260) == [50_258, 50_260, 50_359, 50_363]
    assert multilingual.prompt(50_260, translate=True) == [50_258, 50_260, 50_358, 50_363]
    assert english.prompt(None, translate=True) == english.prompt(None), "it has no tasks, and writes English"
    assert multilingual.prompt(50_260, timestamps=True, before=[7]) == [50_361, 7, 50_258, 50_260, 50_359]
