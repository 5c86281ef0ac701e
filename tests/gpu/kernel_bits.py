"""Whether neighbours, or how many tokens are read at once, change a bit of what Whisper's reader answers.

They must not: a draft would change a text, and a student's text would depend on who speaks beside him.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda
from aula.backends.kernel_program import Program
from aula.backends.kernel_session import KernelModule
from aula.backends.kernels import compile_kernels
from aula.models import whisper
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_program import Step
from aula.models.whisper_reader import reader_example
from aula.models.whisper_reader_program import write_reader_program
from tests.gpu.kernels import GUARD, READERS, SIZES, Copy

_ANSWERS = ("logits", "next", "logprob")


def same_bits(size: str, folder: Path, cuda: Cuda, driver: Any = None, compiler: Any = compile_kernels) -> list[str]:
    """A row alone, among others, and its tokens at once: the same bits, or what differs."""
    made: dict[str, dict[str, NDArray[Any]]] = {}
    with _opened(size, folder, cuda, driver, compiler) as run:
        given = run.example()
        made["rows"] = run("rows", given)
        for row in range(4):
            alone = run("step", {name: array[row : row + 1] for name, array in given.items()})
            made[f"row {row} alone"] = alone
        one = {name: array[:1] for name, array in given.items()} | {"position": np.array([5], np.int32)}
        made["four at once"] = run("read", one | {"rule": np.full((1, 4), 1, np.int32)})
        following = []
        state = one | {"rule": np.full((1, 1), 1, np.int32)}
        for place in range(4):
            after = run("step", state | {"position": np.array([5 + place], np.int32)})
            state = state | {"self_kv": after["self_kv"]}
            following.append(after)
    wrong = [
        f"row {row}: {name} depends on who is beside it"
        for row in range(4)
        for name in (*_ANSWERS, "self_kv")
        if not _bits(made["rows"][name][row], made[f"row {row} alone"][name][0])
    ]
    at_once = made["four at once"]
    wrong += [
        f"token {place}: {name} depends on how many are read at once"
        for place, after in enumerate(following)
        for name in _ANSWERS
        if not _bits(at_once[name][0, place], after[name][0, 0])
    ]
    if not _bits(at_once["self_kv"], following[-1]["self_kv"]):
        wrong.append("the caches depend on how many tokens are read at once")
    return wrong


def _bits(one: Any, two: Any) -> bool:
    return np.asarray(one).tobytes() == np.asarray(two).tobytes()


@contextmanager
def _opened(size: str, folder: Path, cuda: Cuda, driver: Any, compiler: Any) -> Iterator["_Run"]:
    checkpoint = whisper.random_checkpoint(SIZES[size], folder / f"{size}-bits", 3)
    run = _Run(WhisperConfig.from_checkpoint(checkpoint), checkpoint, cuda, driver, compiler)
    yield run
    cuda.destroy_stream(run.stream)


class _Run:
    """Programs of the reader on memory that is there for one run."""

    def __init__(self, config: WhisperConfig, checkpoint: Any, cuda: Cuda, driver: Any, compiler: Any) -> None:
        self._config, self._cuda, self._driver, self._compiler = config, cuda, driver, compiler
        self._weights = load_weights(checkpoint, config.decoder_shapes())
        self._known: dict[str, tuple[Program, KernelModule]] = {}
        self.stream = cuda.stream()

    def example(self) -> dict[str, NDArray[Any]]:
        sizes = {"rows": 4, "tokens": 1, "slots": self._config.max_target_positions}
        sizes |= {"positions": self._config.max_source_positions}
        made = reader_example(self._config, sizes, np.random.default_rng(1))
        low = {name: made[name].astype(np.float16) for name in ("self_kv", "cross_k", "cross_v")}
        return {**made, **low}

    def __call__(self, name: str, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if name not in self._known:
            shape = READERS[name]
            slots, positions = self._config.max_target_positions, self._config.max_source_positions
            step = Step(shape.rows, shape.count, slots, positions, apart=True)
            program = write_reader_program(self._config, self._weights, step, self._cuda.capability())
            image = self._compiler(program.source, self._cuda.capability())
            self._known[name] = program, KernelModule(self._cuda, image, self._driver)
        program, module = self._known[name]
        copy = Copy(program, given, self._cuda, self.stream)
        for launch in program.launches:
            module.launch(launch, tuple(map(copy.value, launch.arguments)), self.stream, early=False)
        self._cuda.synchronise(self.stream)
        made = {}
        for known in (*_ANSWERS, "self_kv"):
            dtype, shape_of = copy.kinds[known]
            made[known] = copy.on_device(known)[GUARD:-GUARD].view(dtype).reshape(shape_of).copy()
        copy.free()
        return made
