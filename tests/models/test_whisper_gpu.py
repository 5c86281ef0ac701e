"""Whisper's step and its loop, on a device made of ONNX Runtime: what is written, by whom, and what is refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aula.core.errors import EngineError
from aula.core.types import Float32
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models import whisper, whisper_gpu
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_stepper import NEXT, StepForm, stepper_states, write_stepper
from aula.models.whisper_tokens import suppression
from tests.engine.fake_gpu import FakeDeviceSession, fake_workshop
from tests.models.whisper_small_model import SMALL

FORMS = {
    "one row": (whisper_gpu.FEW, 1),
    "summed in pieces": (StepForm(split=3, split_small=2), 2),
    "many rows": (whisper_gpu.MANY, 4),
}
POSITIONS, SLOTS, TOKENS = 30, 32, 12
PROMPT = (308, 17, 42, 5)
END = 309


@cache
def _small(folder: Path) -> tuple[Checkpoint, WhisperConfig, WhisperReference]:
    checkpoint = whisper.random_checkpoint(SMALL, folder / "checkpoint", 11)
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.encoder_shapes() | config.decoder_shapes()
    return checkpoint, config, WhisperReference(config, lambda: load_weights(checkpoint, shapes))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, WhisperConfig, WhisperReference]:
    return _small(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def bundles(
    small: tuple[Checkpoint, WhisperConfig, WhisperReference], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    @cache
    def built(name: str) -> Bundle:
        form, rows = FORMS[name]
        checkpoint = small[0]
        base = whisper.encoder_recipe(checkpoint, "encoder", seeded=True)
        encoder = replace(
            whisper_gpu.listener_recipe(base, checkpoint, form),
            profiles=(whisper_gpu.listening("question", rows, POSITIONS),),
        )
        steps = [whisper_gpu.stepping(kind, rows, POSITIONS, SLOTS) for kind in ("step", "prompt")]
        decoder = whisper_gpu.stepper_recipe(checkpoint, "decoder", form, steps, seeded=True)
        return build(
            Model("small", {"encoder": encoder, "decoder": decoder}),
            Store(tmp_path_factory.mktemp("store")),
            BuildOptions(target="sm90"),
            make_workshop=lambda _target: fake_workshop(),
        )

    return built


def _opened(bundle: Bundle) -> whisper_gpu.WhisperStepping:
    def session(part: str, profile: str) -> Any:
        return FakeDeviceSession(bundle.model_file(part, "sm90", profile), bundle.options(part, profile, "sm90"))

    return whisper_gpu.WhisperStepping(
        session("encoder", "question"), session("decoder", "prompt"), session("decoder", "step")
    )


@pytest.fixture(params=FORMS)
def stepping(request: pytest.FixtureRequest, bundles: Callable[[str], Bundle]) -> Iterator[whisper_gpu.WhisperStepping]:
    opened = _opened(bundles(request.param))
    yield opened
    opened.close()


def _mel(rows: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).uniform(-1, 1, (rows, 20, 2 * POSITIONS)).astype(np.float32)


def _rules(config: WhisperConfig) -> Callable[[int], Any]:
    table = suppression(config) < 0
    return lambda step: table[2 if step == 0 else 1]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_proven_against_the_reference(bundles: Callable[[str], Bundle], name: str) -> None:
    for part in ("encoder", "decoder"):
        engine = bundles(name).engine(part, "sm90")
        assert engine.chosen.rejected is None
        assert engine.chosen.relative_error is not None
        assert engine.chosen.relative_error < 2e-2


@pytest.mark.parametrize("name", FORMS)
def test_in_full_precision_the_loop_writes_the_reference_s_tokens(
    small: tuple[Checkpoint, WhisperConfig, WhisperReference], name: str
) -> None:
    """The graphs alone, in fp32, with states handed on by the test: rounding decides nothing here."""
    (form, rows), (checkpoint, config, reference) = FORMS[name], small
    weights = load_weights(checkpoint, config.decoder_shapes())
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    prompt, step = (
        onnxruntime.InferenceSession(
            write_stepper(config, weights, form, prompt_tokens=count).SerializeToString(), settings
        )
        for count in (whisper_gpu.PROMPT, 1)
    )
    mel = _mel(rows)
    made = reference.encode({"mel": mel})
    cross = {key: array.astype(np.float32) for key, array in made.items() if key.startswith("cross")}
    if form.stacked:
        layers = range(config.decoder_layers)
        cross = {key: np.stack([cross[f"{key}.{layer}"] for layer in layers]) for key in ("cross_k", "cross_v")}
    sizes = {"rows": rows, "slots": SLOTS}
    given = {"prompt": np.full(rows, 4, np.int32), "heard": np.full(rows, POSITIONS, np.int32), **cross}
    state = {
        value.name: np.zeros(
            [size if isinstance(size, int) else sizes[size] for size in value.shape],
            np.int32 if "int" in value.type else np.float32,
        )
        for value in step.get_inputs()
        if value.name not in given
    }
    state["text"][:, :4] = PROMPT
    names = [pair.output for pair in stepper_states(config, form)]
    for session in (prompt, *[step] * (TOKENS - 1)):
        made_next = dict(zip(names, session.run(names, {**given, **state}), strict=True))
        state = {key.removesuffix(NEXT): array for key, array in made_next.items()}
    right = [reference.greedy(row, PROMPT, _rules(config), TOKENS) for row in mel]
    assert state["text"][:, 4 : 4 + TOKENS].tolist() == right


def test_the_loop_writes_the_same_each_time_and_from_the_device(stepping: whisper_gpu.WhisperStepping) -> None:
    mel = _mel(stepping.rows)
    texts = [stepping.write(mel, PROMPT, TOKENS) for _ in range(2)]
    stepping.keep_mel(stepping.mel())
    texts.append(stepping.write(None, PROMPT, TOKENS))
    assert texts[0] == texts[1] == texts[2]
    assert [len(text) for text in texts[0]] == [TOKENS] * stepping.rows
    with pytest.raises(EngineError, match="on the device already"):
        stepping.write(mel, PROMPT, TOKENS)


def test_a_longer_prompt_is_read_on_token_by_token(
    stepping: whisper_gpu.WhisperStepping, small: tuple[Checkpoint, WhisperConfig, WhisperReference]
) -> None:
    mel, prompt = _mel(stepping.rows, seed=2), (*PROMPT, 9, 10, 11)
    right = small[2].greedy(mel[0], prompt, _rules(small[1]), 4)
    assert stepping.write(mel, prompt, 4)[0] == right


def test_what_a_row_writes_does_not_depend_on_the_others(bundles: Callable[[str], Bundle]) -> None:
    stepping = _opened(bundles("many rows"))
    mel = _mel(4, seed=3)
    together = stepping.write(mel, PROMPT, TOKENS)
    turned = stepping.write(mel[::-1].copy(), PROMPT, TOKENS)
    alone = [stepping.write(mel[row : row + 1], PROMPT, TOKENS)[0] for row in range(4)]
    assert together == turned[::-1] == alone
    stepping.close()


def test_texts_stop_at_the_end_token(stepping: whisper_gpu.WhisperStepping) -> None:
    mel = _mel(stepping.rows, seed=4)
    whole = stepping.write(mel, PROMPT, TOKENS)
    end = whole[0][3]
    cut = stepping.write(mel, PROMPT, TOKENS, end=end, look=2)
    assert cut == [text[: text.index(end)] if end in text else text for text in whole]


@pytest.mark.parametrize(
    ("rows", "prompt", "tokens", "said"),
    [
        (9, PROMPT, 4, "utterances for engines of"),
        (0, PROMPT, 4, "utterances for engines of"),
        (1, PROMPT[:2], 4, "shorter than 4"),
        (1, PROMPT, SLOTS, "do not fit into"),
        (1, PROMPT, 0, "do not fit into"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    stepping: whisper_gpu.WhisperStepping, rows: int, prompt: tuple[int, ...], tokens: int, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        stepping.write(_mel(rows), prompt, tokens)


def test_no_sound_is_no_sound(stepping: whisper_gpu.WhisperStepping) -> None:
    with pytest.raises(EngineError, match="no sound was given"):
        stepping.write(None, PROMPT, TOKENS)
