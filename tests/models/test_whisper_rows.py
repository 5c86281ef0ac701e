from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.backends.session import Session
from aula.core.errors import EngineError
from aula.models.whisper import random_checkpoint
from aula.models.whisper_choice import HostChoice
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_rows import Sound, WhisperRows
from aula.models.whisper_text import Text, Written
from tests.models.whisper_small_model import PROMPT, SEED, SMALL
from tests.models.whisper_thin_model import sessions_of

LIMIT = 60
LENGTHS = (60, 100, 32, 84, 100, 46)
"""Frames of the six sounds: contexts differ."""


class Small:
    def __init__(self, config: WhisperConfig, sessions: tuple[Session, Session]) -> None:
        self.config = config
        self.encoder, self.decoder = sessions
        self.decoding = WhisperDecoding(config, *sessions)
        generator = np.random.default_rng(5)
        self.mels = [generator.uniform(-1, 1, (20, frames)).astype(np.float32) for frames in LENGTHS]
        self.encoded = [Sound(self.encoder.run({"mel": mel[None]})) for mel in self.mels]
        # A token that each of these texts says sooner or later ends it.
        self.free = [self.alone(sound, -1) for sound in range(len(LENGTHS))]
        self.ends = [_new_after(text.tokens, 3 + 4 * sound) for sound, text in enumerate(self.free)]

    def alone(self, sound: int, end: int, **options: Any) -> Written:
        self.decoding.listen(self.mels[sound])
        return self.decoding.write(PROMPT, end, limit=LIMIT, **options)

    def text(self, sound: int, end: int, **options: Any) -> Text:
        return Text(self.config, PROMPT, end, limit=LIMIT, **options)


def _new_after(tokens: Sequence[int], place: int) -> int:
    """The first token from there on that did not come before; -1 where there is none."""
    return next((token for at, token in enumerate(tokens) if at >= place and token not in tokens[:at]), -1)


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    checkpoint = random_checkpoint(SMALL, tmp_path_factory.mktemp("small"), SEED)
    return Small(WhisperConfig.from_checkpoint(checkpoint), sessions_of(checkpoint, request.param))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_writes_what_it_writes_alone_whoever_comes_and_goes(small: Small, data: st.DataObject) -> None:
    """Rows join at any moment, with drafts or without, in any number of rows."""
    order = data.draw(st.lists(st.integers(0, len(LENGTHS) - 1), min_size=2, max_size=8))
    rows = WhisperRows(small.config, small.decoder, most=data.draw(st.integers(1, 4)))
    texts: list[tuple[int, Text]] = []
    for sound in order:
        draft = small.free[sound].tokens[: data.draw(st.integers(0, 12))]
        draft = (*draft, 5) if data.draw(st.booleans()) else draft
        text = small.text(sound, small.ends[sound], draft=draft)
        texts.append((sound, text))
        while rows.is_full:
            rows.step()
        rows.join(small.encoded[sound], text)
        for _ in range(data.draw(st.integers(0, 9))):
            rows.step()
    while len(rows):
        rows.step()
    for sound, text in texts:
        wanted = small.alone(sound, small.ends[sound])
        assert text.written().tokens == wanted.tokens
        assert text.written().finished == wanted.finished
        np.testing.assert_allclose(text.written().logprobs, wanted.logprobs, atol=1e-4)


def test_a_row_leaves_at_its_end_and_the_others_go_on(small: Small) -> None:
    rows = WhisperRows(small.config, small.decoder, most=3)
    texts = [small.text(sound, small.ends[sound]) for sound in range(3)]
    assert [rows.join(small.encoded[sound], text) for sound, text in enumerate(texts)] == [True] * 3
    ended = []
    while len(rows):
        left = rows.step()
        ended += left
        assert all(text.done for text in left)
        assert len(rows) + len(ended) == 3
    assert sorted(map(id, ended)) == sorted(map(id, texts))


def test_choices_outside_the_graph_work_in_rows_too(small: Small) -> None:
    rows = WhisperRows(small.config, small.decoder, most=2)
    texts = [
        small.text(0, -1, choose=HostChoice(small.config)),
        small.text(1, -1, choose=HostChoice(small.config, temperature=0.7, seed=4)),
    ]
    rows.write_all(zip(small.encoded, texts, strict=False))
    assert texts[0].written().tokens == small.free[0].tokens
    drawn = small.alone(1, -1, choose=HostChoice(small.config, temperature=0.7, seed=4))
    assert texts[1].written().tokens == drawn.tokens != small.free[1].tokens


def test_a_text_that_its_prompt_ends_needs_no_row(small: Small) -> None:
    rows = WhisperRows(small.config, small.decoder, most=1)
    first = small.free[0].tokens[0]
    text = small.text(0, first)
    assert not rows.join(small.encoded[0], text)
    assert (text.written().tokens, text.written().finished, len(rows)) == ((), True, 0)
    assert rows.step() == []


def test_more_rows_than_there_are_is_told(small: Small) -> None:
    rows = WhisperRows(small.config, small.decoder, most=1)
    rows.join(small.encoded[0], small.text(0, -1))
    with pytest.raises(EngineError, match="all 1 rows are taken"):
        rows.join(small.encoded[1], small.text(1, -1))


def test_rows_grow_past_the_slots_that_they_began_with(small: Small, tmp_path: Path) -> None:
    rows = WhisperRows(small.config, small.decoder, most=2)
    texts = [Text(small.config, PROMPT, -1, limit=1000) for _ in range(2)]
    rows.write_all(zip(small.encoded, texts, strict=False))
    for sound, text in enumerate(texts):
        small.decoding.listen(small.mels[sound])
        assert text.written().tokens == small.decoding.write(PROMPT, -1, limit=1000).tokens
        assert len(text.written().tokens) == SMALL["max_target_positions"] - len(PROMPT)
