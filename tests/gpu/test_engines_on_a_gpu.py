"""Whole engines on a real GPU: TensorRT builds them, sessions run them, the reference judges them.

    python -m pytest -m gpu tests/gpu

Skipped, saying so, where there is no GPU or no TensorRT.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.device_session import DeviceSession
from aula.backends.tensorrt import TensorRtSession
from aula.core.errors import AulaError, BackendError, BundleError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.plans import PlanOptions
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.engine.targets import TARGETS
from aula.models import bert, whisper, whisper_gpu
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_stepper import StepForm

pytestmark = pytest.mark.gpu

BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
}
WHISPER: dict[str, Any] = {
    **whisper.architecture("whisper-tiny"),
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "vocab_size": 500,
    "max_source_positions": 40,
    "max_target_positions": 96,
}
PROMPT, TOKENS, POSITIONS, SLOTS = (3, 4, 5, 6, 7), 20, 30, 32


@pytest.fixture(scope="module")
def target() -> str:
    """The target that this machine's first GPU is."""
    try:
        import tensorrt  # noqa: F401

        from aula.backends.cuda import Cuda

        capability = Cuda.open().capability()
    except (ImportError, AulaError) as reason:
        pytest.skip(f"no GPU with TensorRT here: {reason}")
    return next(name for name, known in TARGETS.items() if known.capability == capability)


def _built(model: Model, folder: Path, target: str) -> Bundle:
    return build(model, Store(folder), BuildOptions(target=target, plans=PlanOptions(level=2)))


@pytest.fixture(scope="module")
def sentences(target: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bert")
    checkpoint = bert.random_checkpoint(BERT, folder / "checkpoint", 0)
    return _built(Model.of(bert.bert_recipe(checkpoint, "small", seeded=True)), folder / "store", target)


def test_fp16_is_proven_at_every_profile(sentences: Bundle, target: str) -> None:
    engine = sentences.engine(target=target)
    assert engine.precision == "fp16"
    assert engine.chosen.rejected is None
    assert engine.chosen.relative_error is not None
    assert engine.chosen.relative_error < 2e-2
    assert set(engine.plans) == set(engine.profiles) == set(engine.inspection)
    assert all(told.layers > 0 and told.operators > 0 for told in engine.inspection.values())
    assert all(milliseconds > 0 for milliseconds in engine.chosen.milliseconds.values())


def test_each_run_goes_to_the_profile_that_holds_it_and_sizes_may_change(sentences: Bundle, target: str) -> None:
    generator = np.random.default_rng(0)
    seen: dict[tuple[int, int], np.ndarray[Any, Any]] = {}
    with sentences.open(target=target) as session:
        for shape in ((1, 5), (3, 40), (1, 9), (2, 100), (1, 5), (3, 40), (1, 5)):
            tokens = np.random.default_rng(sum(shape)).integers(0, 500, shape)
            made = session.run(
                {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
            )["hidden"]
            assert made.shape == (*shape, 64)
            np.testing.assert_allclose(made, seen.setdefault(shape, made), atol=1e-2)
        beyond = generator.integers(0, 500, (1, 127))
        with pytest.raises(BackendError, match="no profile"):
            session.run({"input_ids": beyond[:, :0], "attention_mask": beyond[:, :0], "token_type_ids": beyond[:, :0]})


def test_a_fixed_size_is_replayed_from_one_graph(sentences: Bundle, target: str) -> None:
    tokens = np.full((1, 32), 7)
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    with sentences.open(profile="question", target=target) as session:
        assert isinstance(session, TensorRtSession)
        first = session.run(inputs)["hidden"]
        again = [session.run(inputs)["hidden"] for _ in range(5)]
        told = session.statistics()
    assert all((one == first).all() for one in again)
    assert (told.captured, told.refusals) == (1, ())
    assert told.replayed >= 4


def test_a_plan_for_another_gpu_is_refused_before_it_is_read(sentences: Bundle, target: str) -> None:
    engine = sentences.engine(target=target)
    assert engine.device is not None
    foreign = replace(engine, device=replace(engine.device, capability="7.5", name="Tesla T4"))
    with pytest.raises(BundleError, match="Tesla T4"):
        sentences.preflight(foreign, target)


@pytest.fixture(
    params=[
        pytest.param((StepForm(), 1, 256), id="one row"),
        pytest.param((StepForm(split=4, split_small=2), 2, 256), id="summed in pieces"),
        pytest.param((StepForm(stacked=True, low_caches=True), 4, 256), id="many rows"),
        *(pytest.param((whisper_gpu.MANY, rows, 512), id=f"our own kernels, {rows}") for rows in (1, 3, 20, 70)),
    ]
)
def recogniser(
    request: pytest.FixtureRequest, target: str, tmp_path: Path
) -> Iterator[tuple[whisper_gpu.WhisperStepping, WhisperReference, WhisperConfig]]:
    form, rows, wide = request.param
    checkpoint = whisper.random_checkpoint({**WHISPER, "decoder_ffn_dim": wide}, tmp_path / "checkpoint", 0)
    config = WhisperConfig.from_checkpoint(checkpoint)
    base = whisper.encoder_recipe(checkpoint, "encoder", seeded=True)
    encoder = replace(
        whisper_gpu.listener_recipe(base, checkpoint, form),
        profiles=(whisper_gpu.listening("question", rows, POSITIONS),),
    )
    steps = [whisper_gpu.stepping(name, rows, POSITIONS, SLOTS) for name in ("step", "prompt")]
    decoder = whisper_gpu.stepper_recipe(checkpoint, "decoder", form, steps, seeded=True)
    bundle = _built(Model("small", {"encoder": encoder, "decoder": decoder}), tmp_path / "store", target)
    sessions = [bundle.open(part, profile, target=target) for part, profile in _SERVED]
    assert all(isinstance(session, DeviceSession) for session in sessions)
    assert bundle.engine("decoder", target).backend == ("kernels" if wide == 512 else "tensorrt")
    stepping = whisper_gpu.WhisperStepping(*sessions)  # type: ignore[arg-type]
    shapes = config.encoder_shapes() | config.decoder_shapes()
    yield stepping, WhisperReference(config, lambda: load_weights(checkpoint, shapes)), config
    stepping.close()


_SERVED = (("encoder", "question"), ("decoder", "prompt"), ("decoder", "step"))


def test_the_loop_writes_what_the_reference_writes(
    recogniser: tuple[whisper_gpu.WhisperStepping, WhisperReference, WhisperConfig],
) -> None:
    stepping, reference, config = recogniser
    shape = (stepping.rows, config.num_mel_bins, 2 * POSITIONS)
    mel = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    texts = [stepping.write(mel, PROMPT, TOKENS) for _ in range(3)]
    stepping.keep_mel(stepping.mel())
    texts.append(stepping.write(None, PROMPT, TOKENS))
    assert texts[0] == texts[1] == texts[2] == texts[3]
    nothing = np.zeros(config.vocab_size, dtype=np.bool_)
    right = [reference.greedy(row, PROMPT, lambda _step: nothing, TOKENS) for row in mel]
    # Rounded arithmetic decides ties its own way, and a text goes on from there.
    equal = [
        next((n for n, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), TOKENS)
        for x, y in zip(texts[0], right, strict=True)
    ]
    assert max(equal) == TOKENS or sum(equal) >= TOKENS * len(equal) // 2, equal
