"""The reader, which a GPU serves: its graph and its program against the reference, at every place and count."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aula.backends.cuda import Cuda
from aula.backends.kernel_program import Compiled, save_program
from aula.backends.kernel_session import KernelSession
from aula.backends.kernels import compile_kernels, compiler_here
from aula.backends.session import SessionOptions
from aula.core.errors import EngineError
from aula.models import whisper
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_program import GPUS, Step
from aula.models.whisper_reader import reader_example, reader_profiles, reader_recipe, reader_reference, write_reader
from aula.models.whisper_reader_program import write_reader_program
from aula.models.whisper_reference import WhisperReference
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver
from tests.models.decoder_kernels import KERNELS
from tests.models.test_whisper_program import SMALL

STEPS = [Step(1, 1, 16, 30, apart=True), Step(4, 1, 16, 30, apart=True), Step(1, 4, 16, 30, apart=True)]
PLACES = (0, 5, 11, 15)
"""The last leaves no room for four tokens, nor for an answer."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return whisper.random_checkpoint(SMALL, tmp_path_factory.mktemp("checkpoint"), 3)


@pytest.fixture(scope="module")
def config(checkpoint: Checkpoint) -> WhisperConfig:
    return WhisperConfig.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def weights(checkpoint: Checkpoint, config: WhisperConfig) -> Any:
    return load_weights(checkpoint, config.decoder_shapes())


def _inputs(config: WhisperConfig, step: Step, place: int) -> Any:
    sizes = {"rows": step.rows, "tokens": step.count, "slots": step.slots, "positions": step.positions}
    inputs = reader_example(config, sizes, np.random.default_rng(place))
    inputs["position"][0] = min(place, step.slots - step.count)
    return inputs


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_graph_answers_and_leaves_what_the_reference_does(
    step: Step, place: int, config: WhisperConfig, weights: Any
) -> None:
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    graph = onnxruntime.InferenceSession(write_reader(config, weights).SerializeToString(), quiet)
    inputs = _inputs(config, step, place)
    names = [value.name for value in graph.get_outputs()]
    made = dict(zip(names, graph.run(None, inputs), strict=True))
    wanted = reader_reference(WhisperReference(config, lambda: weights), inputs)
    for name, array in wanted.items():
        np.testing.assert_allclose(made[name], array, atol=2e-3, err_msg=name)
    _check_written(made, inputs, step)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_program_answers_and_leaves_what_the_reference_does(
    step: Step, place: int, checkpoint: Checkpoint, config: WhisperConfig, weights: Any, tmp_path: Path
) -> None:
    session = _opened(step, checkpoint, config, weights, tmp_path)
    inputs = _inputs(config, step, place)
    inputs |= {name: inputs[name].astype(np.float16) for name in ("self_kv", "cross_k", "cross_v")}
    states = [pair.input for pair in session.options.states]
    for name in states:
        session.write_state(name, inputs[name])
    made = session.run({name: array for name, array in inputs.items() if name not in states})
    made |= {f"{name}.next": session.read_state(name) for name in states}
    session.close()
    wanted = reader_reference(WhisperReference(config, lambda: weights), inputs)
    for name, array in wanted.items():
        most = 1e-2 * max(4.0, np.abs(array).max())
        np.testing.assert_allclose(made[name], array, atol=most, err_msg=name)
    _check_written(made, inputs, step)


def _check_written(made: Any, inputs: Any, step: Step) -> None:
    """Only the last answer, only where there is room; and it is one that its rule allows."""
    text = inputs["text"].copy()
    for row, position in enumerate(inputs["position"]):
        if position + step.count < step.slots:
            text[row, position + step.count] = made["next"][row, -1]
    np.testing.assert_array_equal(made["text.next"], text)
    allowed = np.take_along_axis(made["logits"], made["next"][..., None].astype(np.int64), axis=2)
    assert (allowed > -1e3).all()


def _opened(step: Step, checkpoint: Checkpoint, config: WhisperConfig, weights: Any, folder: Path) -> KernelSession:
    program = write_reader_program(config, weights, step)
    gpu = FakeCuda()
    gpu.capability = (9, 0)
    path = folder / "reader.kernels"
    save_program(Compiled(program, program.source.encode(), "9.0"), path)
    states = reader_recipe(checkpoint, "r", reader_profiles(16, 30)).states
    options = SessionOptions(states=states, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    return KernelSession(path, options, cuda=Cuda(gpu), driver=FakeDriver(gpu, KERNELS))


def test_more_lines_than_are_walked_are_refused(config: WhisperConfig, weights: Any) -> None:
    with pytest.raises(EngineError, match="at most 4 lines"):
        write_reader_program(config, weights, Step(2, 4, 16, 30, apart=True))
    with pytest.raises(EngineError, match="rows that lie apart"):
        write_reader_program(config, weights, Step(1, 1, 16, 30))
    with pytest.raises(EngineError, match="256"):
        write_reader_program(replace(config, decoder_ffn_dim=256), weights, STEPS[0])


@pytest.mark.parametrize("capability", GPUS)
def test_the_reader_compiles_for_every_target(capability: str, config: WhisperConfig, weights: Any) -> None:
    if not compiler_here():
        pytest.skip("no compiler for CUDA kernels: pip install cuda-bindings nvidia-cuda-nvrtc, or install nvcc")
    for step in STEPS:
        program = write_reader_program(config, weights, replace(step, slots=64, positions=40), capability)
        assert compile_kernels(program.source, capability)[:4] == b"\x7fELF"
