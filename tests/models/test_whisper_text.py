"""A draft never changes a text, costs nothing worth naming where it is wrong, and saves runs wherever it is right."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_text import PROBE, TRIES, Text, Written
from tests.models.whisper_thin_model import write_config

PROMPT = [50, 51, 52]
END = 50_257
MOST = 40
LOGITS = np.zeros((64, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WhisperConfig:
    folder: Path = tmp_path_factory.mktemp("config")
    write_config(folder, max_target_positions=MOST + len(PROMPT), suppress_tokens=[])
    return WhisperConfig.from_checkpoint(Checkpoint(folder))


class Decoder:
    """Says the tokens of `says` and the end, whatever the draft: where what was read is not what it says, anything."""

    def __init__(self, config: WhisperConfig, says: list[int]) -> None:
        self.config, self.says = config, [*says, END]
        self.columns: list[int] = []

    def write(self, draft: list[int], sure: int = 0, limit: int = MOST) -> Written:
        text = Text(self.config, PROMPT, END, limit=limit, draft=draft, sure=sure)
        slots: list[int] = []
        while not text.done:
            slots = [*slots[: text.position], *text.read]
            assert len(slots) <= len(PROMPT) + limit - 1
            told = [self._after(slots[: text.position + place + 1]) for place in text.places]
            self.columns.append(len(text.read))
            text.take(np.array(told), np.zeros(len(told), np.float32), LOGITS)
        return text.written()

    def _after(self, slots: list[int]) -> int:
        written = slots[len(PROMPT) :]
        right = slots[: len(PROMPT)] == PROMPT and written == self.says[: len(written)]
        return self.says[len(written)] if right and len(written) < len(self.says) else 1 + sum(slots) % 30


words = st.lists(st.integers(0, 6), max_size=30)


@given(says=words, draft=words, sure=st.integers(0, 40), limit=st.integers(1, MOST))
def test_no_draft_changes_the_text_or_takes_more_runs(
    config: WhisperConfig, says: list[int], draft: list[int], sure: int, limit: int
) -> None:
    plain, drafted = Decoder(config, says), Decoder(config, says)
    wanted = plain.write([], limit=limit)
    made = drafted.write(draft, sure, limit)
    assert (made.tokens, made.finished) == (wanted.tokens, wanted.finished)
    assert made.runs == len(drafted.columns) == wanted.runs - made.accepted


def test_a_wrong_draft_adds_few_columns_to_one_run(config: WhisperConfig) -> None:
    decoder = Decoder(config, list(range(20)))
    made = decoder.write([30 - token for token in range(20)])
    assert decoder.columns == [len(PROMPT) + PROBE, *[1] * 20]
    assert made.accepted == 0


def test_a_right_draft_is_checked_in_two_runs_and_a_sure_one_in_one(config: WhisperConfig) -> None:
    says = list(range(20))
    assert Decoder(config, says).write(says).runs == 2
    assert Decoder(config, says).write(says, sure=20).runs == 1
    assert Decoder(config, says).write(says[:12], sure=12).runs == 9, "the end of it and eight more"


@pytest.mark.parametrize(
    "draft",
    [
        [*range(8), 30, *range(9, 20)],
        [*range(8), *range(9, 20)],
        [*range(8), 30, 31, *range(8, 20)],
        [30, *range(20)],
    ],
    ids=["another word", "a word less", "two words more", "another beginning"],
)
def test_only_the_part_that_differs_is_written_anew(config: WhisperConfig, draft: list[int]) -> None:
    says = list(range(20))
    made = Decoder(config, says).write(draft)
    assert made.tokens == tuple(says)
    assert made.runs <= 8


def test_a_draft_of_no_use_is_left_alone(config: WhisperConfig) -> None:
    """It seems to come together again and again, and never does."""
    says = [0, 1, 2, 0, 1, 3, 0, 1, 4, 0, 1, 5, 0, 1, 6, 0, 1, 7]
    decoder = Decoder(config, says)
    decoder.write([20, 0, 1, 21, 0, 1, 22, 0, 1, 23, 0, 1, 24, 0, 1, 25, 0, 1, 26])
    assert sum(columns > 1 for columns in decoder.columns) == TRIES
