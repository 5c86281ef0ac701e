"""Tokens of true shapes, alone, with drafts and in rows, against the plain float64 reference; and, with a folder in
AULA_TEST_WHISPER, of a real checkpoint with and without drafts."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import architecture, random_checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_rows import Sound, WhisperRows
from aula.models.whisper_stream import StreamOptions, WhisperStream
from aula.models.whisper_text import Text
from aula.models.whisper_tokens import suppression
from tests.models.whisper_thin_model import hearing_of, sessions_of, sound

CASES = (("tiny", 1, 5), ("tiny.en", 2, 3), ("base", 3, 4), ("base.en", 4, 3), ("small", 5, 5))
"""Size, seed and number of sounds: twenty checkpoints-and-sounds, which `make thorough` runs."""

QUICK = ("tiny", 1, 2)
"""For every run of the tests."""

STEERING = {"suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 50_257]}
FRAMES = 100
TOKENS = 10
END = -1


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="quick"),
        *(pytest.param(case, id=case[0], marks=pytest.mark.thorough) for case in CASES),
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkpoint, int]]:
    name, seed, count = request.param
    folder = tmp_path_factory.mktemp(name)
    yield random_checkpoint({**architecture(f"whisper-{name}"), **STEERING}, folder, seed), count
    for file in folder.iterdir():
        file.unlink()
    gc.collect()


def test_tokens_equal_the_references_alone_with_drafts_and_in_rows(case: tuple[Checkpoint, int]) -> None:
    checkpoint, count = case
    config = WhisperConfig.from_checkpoint(checkpoint)
    encoder, decoder = sessions_of(checkpoint, "openvino")
    decoding = WhisperDecoding(config, encoder, decoder)
    generator = np.random.default_rng(1)
    mels = [generator.uniform(-1, 1, (config.num_mel_bins, FRAMES)).astype(np.float32) for _ in range(count)]
    prompt = [config.vocab_size - 1607 + place for place in range(4)]
    # 1. Alone, and with drafts that are right and wrong.
    alone = []
    for mel in mels:
        decoding.listen(mel)
        alone.append(decoding.write(prompt, END, limit=TOKENS).tokens)
        for draft in (alone[-1], (*alone[-1][:4], 9, 9)):
            assert decoding.write(prompt, END, limit=TOKENS, draft=draft).tokens == alone[-1]
    # 2. In rows.
    rows = WhisperRows(config, decoder, most=4)
    texts = [Text(config, prompt, END, limit=TOKENS) for _ in mels]
    rows.write_all((Sound(encoder.run({"mel": mel[None]})), text) for mel, text in zip(mels, texts, strict=True))
    assert [text.written().tokens for text in texts] == alone
    encoder.close()
    decoder.close()
    # 3. The reference reads each text whole, and must want every one of its tokens.
    encode = WhisperReference(config, lambda: load_weights(checkpoint, config.encoder_shapes())).encode
    heard = [encode({"mel": mel[None]}) for mel in mels]
    decode = WhisperReference(config, lambda: load_weights(checkpoint, config.decoder_shapes())).decode
    heads, size = config.decoder_attention_heads, config.head_size
    empty = {
        f"past_{part}.{layer}": np.zeros((1, heads, 0, size)) for part in "kv" for layer in range(config.decoder_layers)
    }
    for made, tokens in zip(heard, alone, strict=True):
        cross = {name: array for name, array in made.items() if name.startswith("cross")}
        wanted = decode(
            {
                "tokens": np.array([[*prompt, *tokens[:-1]]]),
                "position": np.zeros(1, np.int64),
                "heard": np.array([FRAMES // 2]),
                "places": np.arange(3, 3 + TOKENS)[None],
                "rule": np.array([[2] + [1] * (TOKENS - 1)]),
                **empty,
                **cross,
            }
        )
        assert wanted["next"][0].tolist() == list(tokens)
    assert len(set(alone)) > 1, "what is heard decides what is written"
    assert suppression(config)[2, 220] < 0


def test_twenty_are_twenty() -> None:
    assert sum(count for *_, count in CASES) == 20
    assert {name.partition(".")[0] for name, *_ in CASES} == {"tiny", "base", "small"}


@pytest.mark.skipif(
    "AULA_TEST_WHISPER" not in os.environ, reason="no real checkpoint: name its folder in AULA_TEST_WHISPER"
)
@pytest.mark.shared_data
def test_a_real_checkpoint_writes_the_same_with_drafts_and_without(shared_data: Path, tmp_path: Path) -> None:
    from aula.audio.decoding import read_audio

    link = tmp_path / "real"
    link.mkdir()
    for file in Path(os.environ["AULA_TEST_WHISPER"]).iterdir():
        (link / file.name).symlink_to(file.resolve())
    hearing = hearing_of(Checkpoint(link))
    clips = sorted((shared_data / "speech_en_speechocean762" / "wav").glob("*.wav"))[:5]
    for samples in [*(read_audio(clip, 30).samples for clip in clips), sound(1)]:
        texts = []
        for pieces, partials in ((1, False), (100, True)):
            stream = WhisperStream(hearing, FakeClock(), StreamOptions(partials=partials))
            for piece in np.array_split(samples, pieces):
                stream.feed(piece)
            texts.append(stream.commit().text)
        assert texts[0] == texts[1]
