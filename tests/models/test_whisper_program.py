"""Whisper's step as a program of our own kernels: run whole with the kernels' arithmetic in numpy, without a GPU."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.cuda import Cuda
from aula.backends.kernel_program import Compiled, Program, load_program, save_program
from aula.backends.kernel_session import KernelSession
from aula.backends.kernels import compile_kernels, compiler_here
from aula.backends.session import SessionOptions
from aula.core.errors import BundleError, EngineError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.preflight import Card, check_plan
from aula.engine.recipe import Model
from aula.engine.store import Store
from aula.models import whisper, whisper_gpu, whisper_step_proof
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_program import GPUS, Step, kernels_serve, write_program
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_step_proof import StepReference
from aula.models.whisper_stepper import stepper_states
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver
from tests.engine.fake_gpu import fake_workshop
from tests.models.decoder_kernels import KERNELS

SMALL: dict[str, Any] = {
    **whisper.architecture("whisper-tiny"),
    "d_model": 128,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "vocab_size": 500,
    "max_source_positions": 40,
    "max_target_positions": 96,
}
FORM = whisper_gpu.MANY
STEPS = [Step(1, 1, 16, 30), Step(1, 4, 16, 30), Step(2, 2, 16, 9), Step(5, 1, 16, 30), Step(70, 1, 8, 5)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WhisperConfig:
    checkpoint = whisper.random_checkpoint(SMALL, tmp_path_factory.mktemp("checkpoint"), 3)
    return WhisperConfig.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, config: WhisperConfig) -> Any:
    checkpoint = whisper.random_checkpoint(SMALL, tmp_path_factory.mktemp("checkpoint"), 3)
    return load_weights(checkpoint, config.decoder_shapes())


def opened(
    program: Program, folder: Path, config: WhisperConfig, capability: str = "9.0"
) -> tuple[KernelSession, FakeDriver]:
    gpu = FakeCuda()
    gpu.capability = (int(capability[0]), int(capability[2]))
    driver = FakeDriver(gpu, KERNELS)
    path = folder / "step.kernels"
    save_program(Compiled(program, program.source.encode(), capability), path)
    options = SessionOptions(states=stepper_states(config, FORM), digest=hashlib.sha256(path.read_bytes()).hexdigest())
    return KernelSession(path, options, cuda=Cuda(gpu), driver=driver), driver


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_step_leaves_what_the_reference_leaves(
    step: Step, config: WhisperConfig, weights: Any, tmp_path: Path
) -> None:
    session, _ = opened(write_program(config, weights, step), tmp_path, config)
    sizes = {"rows": step.rows, "slots": step.slots, "positions": step.positions}
    inputs = whisper_step_proof.example(config, FORM, sizes, np.random.default_rng(1), step.count)
    inputs |= {name: inputs[name].astype(np.float16) for name in ("self_kv", "cross_k", "cross_v")}
    states = [pair.input for pair in session.options.states]
    for name in states:
        session.write_state(name, inputs[name])
    session.run({name: array for name, array in inputs.items() if name not in states})
    exact = {n: a.astype(np.float64) if a.dtype == np.float16 else a for n, a in inputs.items()}
    wanted = StepReference(config, FORM, WhisperReference(config, lambda: weights), step.count).outputs(exact)
    few = min(step.rows, 4)
    np.testing.assert_array_equal(session.read_state("position"), wanted["position.next"])
    np.testing.assert_allclose(session.read_state("likely"), wanted["likely.next"], atol=2e-2)
    np.testing.assert_allclose(session.read_state("self_kv")[:, :few], wanted["self_kv.next"][:, :few], atol=3e-2)
    session.close()


def test_tokens_are_written_behind_the_prompt_alone(config: WhisperConfig, weights: Any, tmp_path: Path) -> None:
    step = Step(2, 1, 8, 9)
    session, _ = opened(write_program(config, weights, step), tmp_path, config)
    session.reset()
    text = np.full((2, 8), 7, np.int32)
    session.write_state("text", text)
    cross = np.zeros((2, 2, 2, 9, 64), np.float16)
    given = {"prompt": np.array([3, 1], np.int32), "heard": np.array([9, 9], np.int32)}
    for _ in range(10):
        session.run({**given, "cross_k": cross, "cross_v": cross})
    left = session.read_state("text")
    assert (left[0, :3] == 7).all()
    assert (left[1, :1] == 7).all()
    assert (session.read_state("position") == 7).all(), "in the last slot it stays"
    assert (session.read_state("likely")[:, 1:] < 0).all()
    session.close()


def test_one_row_begins_early_and_many_do_not(config: WhisperConfig, weights: Any, tmp_path: Path) -> None:
    assert write_program(config, weights, Step(1, 1, 16, 30)).early
    assert not write_program(config, weights, Step(8, 1, 16, 30)).early


@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("rows", [1, 8, 64, 320])
def test_no_block_asks_for_more_shared_memory_than_its_gpu_has(
    capability: str, rows: int, config: WhisperConfig, weights: Any
) -> None:
    for count in (1, 4):
        program = write_program(config, weights, Step(rows, count, 32, 30), capability)
        assert max(launch.shared for launch in program.launches) <= GPUS[capability].most_shared
        assert all(launch.block <= 1024 for launch in program.launches)


def test_other_architectures_are_refused_by_name(config: WhisperConfig, weights: Any) -> None:
    narrow = replace(config, decoder_ffn_dim=256)
    assert kernels_serve(config)
    assert not kernels_serve(narrow)
    with pytest.raises(EngineError, match="256"):
        write_program(narrow, weights, STEPS[0])
    with pytest.raises(EngineError, match=r"not 6\.1"):
        write_program(config, weights, STEPS[0], "6.1")


@pytest.mark.parametrize("capability", GPUS)
def test_the_kernels_compile_for_every_target(capability: str, config: WhisperConfig, weights: Any) -> None:
    if not compiler_here():
        pytest.skip("no compiler for CUDA kernels: pip install cuda-bindings nvidia-cuda-nvrtc, or install nvcc")
    for step in (Step(1, 1, 16, 30), Step(70, 1, 16, 30)):
        program = write_program(config, weights, step, capability)
        assert compile_kernels(program.source, capability)[:4] == b"\x7fELF"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The decoder, built by the product's builder: the kernels are compiled, proven and shipped."""
    folder = tmp_path_factory.mktemp("built")
    checkpoint = whisper.random_checkpoint(SMALL, folder / "checkpoint", 3)
    profiles = [whisper_gpu.stepping(name, 2, 9, 16) for name in ("step", "prompt")]
    recipe = whisper_gpu.stepper_recipe(checkpoint, "decoder", FORM, profiles, seeded=True)

    def opened(path: Path, options: SessionOptions) -> KernelSession:
        gpu = FakeCuda()
        gpu.capability = (9, 0)
        return KernelSession(path, options, cuda=Cuda(gpu), driver=FakeDriver(gpu, KERNELS))

    workshop = replace(fake_workshop(None), open=opened, compile=lambda text, _capability: text.encode())
    options = BuildOptions(("fp16",), target="sm90")
    return build(Model.of(recipe), Store(folder / "store"), options, make_workshop=lambda _target: workshop)


def test_the_builder_proves_and_ships_the_kernels(bundle: Bundle) -> None:
    engine = bundle.engine(target="sm90")
    assert (engine.backend, engine.precision, engine.backend_version) == ("kernels", "fp16", "1")
    assert engine.chosen.relative_error is not None
    assert engine.chosen.relative_error < 5e-2
    assert engine.inspection["step"].precisions == {"fp16": 13}, "six products a layer, and the vocabulary"
    assert set(engine.plans) == {"step", "prompt"}
    assert engine.graph.weight_bytes < engine.written.weight_bytes
    for profile in engine.plans:
        path = bundle.model_file(target="sm90", profile=profile)
        assert load_program(path, bundle.options("model", profile, "sm90").digest).capability == "9.0"


def test_kernels_ask_for_their_gpu_and_for_no_release_of_tensorrt(bundle: Bundle) -> None:
    engine = bundle.engine(target="sm90")
    assert engine.device is not None
    here = Card(engine.device.name, "9.0", engine.device.driver)
    check_plan(bundle.manifest, engine, engine.device, "99.1", here, "sm90")
    with pytest.raises(BundleError, match=r"8\.9"):
        check_plan(bundle.manifest, engine, engine.device, "99.1", replace(here, capability="8.9"), "sm90")
