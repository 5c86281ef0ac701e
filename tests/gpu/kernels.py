"""Each kernel of Whisper's programs beside its arithmetic in numpy, launch by launch: a script for a GPU host.

    python -m tests.gpu.kernels [--size small|tiny|whisper-small] [--json FILE]

A program is launched kernel by kernel on the device; after each the same is done in numpy on a copy of what the device
had before, and all memory that programs write is compared: a kernel that errs is named, with its place, its numbers
and the first values that differ, and what comes behind it is judged on its own. Around everything and in all that was
not written yet lies what is no number, so that reading it is seen; and it must still be there afterwards. Then the
program runs as it is served, each kernel beginning early, and from a graph, and must leave the very same bits.
"""

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda
from aula.backends.kernel_program import At, Launch, Program
from aula.backends.kernel_session import KernelModule
from aula.backends.kernels import compile_kernels
from aula.core.errors import AulaError
from aula.models import whisper
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_program import Step
from aula.models.whisper_reader import reader_example
from aula.models.whisper_reader_program import write_reader_program
from aula.models.whisper_stepper import NEXT
from tests.models.decoder_kernels import BEST, KERNELS

GUARD = 4096
"""Bytes before and behind each piece of memory; all ones are no number in any precision."""
MOST = 5e-3
"""Relative to the largest value of what was written."""
SCRATCH: Mapping[str, Any] = {"x": "f4", "query": "f2", "mixed": "f2", "inner": "f2", "best": BEST}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {
        **whisper.architecture("whisper-tiny"),
        "d_model": 128,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 512,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 512,
        "vocab_size": 500,
        "max_source_positions": 600,
        "max_target_positions": 96,
    },
    "tiny": {**whisper.architecture("whisper-tiny"), "decoder_layers": 1, "encoder_layers": 1},
    "whisper-small": {**whisper.architecture("whisper-small"), "decoder_layers": 1, "encoder_layers": 1},
}
READERS = {"step": Step(1, 1, 0, 0), "rows": Step(4, 1, 0, 0), "read": Step(1, 4, 0, 0)}


@dataclass(slots=True)
class Told:
    """Of one kernel: how often it was launched, its largest difference, and what was wrong."""

    kernel: str
    launches: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        state = "ok" if not self.wrong else "WRONG"
        first = f"{self.kernel:<14} {self.launches:>5} launches  {self.worst:8.1e}  {state}"
        return "\n".join([first, *self.wrong[:4]])


class Copy:
    """All memory of a program on the device, and what it should hold, here."""

    def __init__(self, program: Program, given: Mapping[str, NDArray[Any]], cuda: Cuda, stream: int) -> None:
        self._cuda, self.stream = cuda, stream
        self.kinds: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._at: dict[str, int] = {}
        self._here: dict[str, NDArray[np.uint8]] = {}
        for spec in (*program.inputs, *program.outputs):
            shape = tuple(int(size) for size in spec.shape)
            if not spec.name.endswith(NEXT):
                self._place(spec.name, np.dtype(spec.dtype), shape, given.get(spec.name))
        for name, count in program.scratch.items():
            dtype = np.dtype(SCRATCH[name])
            self._place(name, dtype, (count // dtype.itemsize,), None)
        self.written = list(self._at)
        for name, array in program.weights.items():
            self._place(name, array.dtype, array.shape, array)
        self.begin()

    def _place(self, name: str, dtype: Any, shape: tuple[int, ...], array: NDArray[Any] | None) -> None:
        count = math.prod(shape) * dtype.itemsize
        here = np.full(count + 2 * GUARD, 0xFF, dtype=np.uint8)
        if array is not None:
            here[GUARD : GUARD + count] = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
        self.kinds[name], self._here[name] = (dtype, shape), here
        self._at[name] = self._cuda.allocate(len(here))
        self._cuda.upload(self._at[name], here.ctypes.data, len(here), self.stream)
        self._cuda.synchronise(self.stream)

    def begin(self) -> None:
        """What was given is what there is."""
        self._first = {name: self._here[name].copy() for name in self.written}

    def again(self) -> None:
        for name, first in self._first.items():
            self._cuda.upload(self._at[name], first.ctypes.data, len(first), self.stream)
        self._cuda.synchronise(self.stream)

    def value(self, argument: At | int | None) -> int:
        if isinstance(argument, At):
            return self._at[argument.name] + GUARD + argument.offset
        return argument or 0

    def __call__(self, address: int, dtype: Any, *shape: int) -> NDArray[Any]:
        """As `Memory`: an array over the copy, by the device's address."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        for name, base in self._at.items():
            if base + GUARD <= address and address + count <= base + len(self._here[name]) - GUARD:
                raw = self._here[name][address - base : address - base + count]
                array: NDArray[Any] = raw.view(np.dtype(dtype)).reshape(shape)
                return array
        raise AssertionError(f"{count} bytes at {address:#x} lie in nothing that the program has")

    def on_device(self, name: str) -> NDArray[np.uint8]:
        there = np.empty_like(self._here[name])
        self._cuda.download(there.ctypes.data, self._at[name], len(there), self.stream)
        self._cuda.synchronise(self.stream)
        return there

    def differences(self) -> Iterator[tuple[str, float, str]]:
        """Of each piece that is not the same on the device: its name, how much, and where. The device's is kept."""
        for name in self.written:
            there, here = self.on_device(name), self._here[name]
            self._here[name] = there
            outside = np.flatnonzero(there != here)
            outside = outside[(outside < GUARD) | (outside >= len(here) - GUARD)] - GUARD
            if len(outside):
                yield name, math.inf, f"written outside of {name}: {len(outside)} bytes from {outside[0]} on"
            if (there != here).any():
                dtype, shape = self.kinds[name]
                inner = slice(GUARD, len(there) - GUARD)
                yield from _difference(name, there[inner].view(dtype), here[inner].view(dtype), shape)

    def free(self) -> None:
        for address in self._at.values():
            self._cuda.free(address)


def _difference(
    name: str, got: NDArray[Any], wanted: NDArray[Any], shape: tuple[int, ...]
) -> Iterator[tuple[str, float, str]]:
    if got.dtype.names:
        for part in ("highest", "sum"):
            yield from _difference(f"{name}.{part}", got[part], wanted[part], shape)
        return
    a, b = got.astype("f8"), wanted.astype("f8")
    known = np.isfinite(b)
    gap = np.where(known & np.isfinite(a), np.abs(a - b), np.where(known == np.isfinite(a), 0.0, np.inf))
    scale = max(float(np.abs(b[known]).max(initial=0.0)), 1e-2)  # a sure token's logarithm is next to nothing
    relative = np.asarray(gap / scale)
    bad = np.flatnonzero(relative > MOST)
    if len(bad):
        first = ", ".join(
            f"[{', '.join(map(str, map(int, np.unravel_index(place, shape))))}] {got[place]!s} for {wanted[place]!s}"
            for place in bad[:6]
        )
        last = tuple(map(int, np.unravel_index(bad[-1], shape)))
        yield name, float(relative.max()), f"{name}{list(shape)}: {len(bad)} differ, to {last}: {first}"
    else:
        yield name, float(relative.max(initial=0.0)), ""


def compare(
    program: Program,
    given: Mapping[str, NDArray[Any]],
    image: bytes,
    cuda: Cuda,
    driver: Any = None,
    turns: int = 20,
) -> list[Told]:
    """`turns` runs as it is served. Raises AulaError with a note that names the kernel where a launch fails: the device
    may be lost then."""
    made = dict(_instances(program.source))
    stream = cuda.stream()
    module, copy = KernelModule(cuda, image, driver), Copy(program, given, cuda, stream)
    told: dict[str, Told] = {}
    for place, launch in enumerate(program.launches):
        one = told.setdefault(launch.kernel, Told(launch.kernel))
        one.launches += 1
        macro, numbers = made[launch.kernel]
        values = tuple(copy.value(argument) for argument in launch.arguments)
        try:
            module.launch(launch, values, stream, early=False)
            cuda.synchronise(stream)
        except AulaError as error:
            error.add_note(f"launch {place}: {_words(launch, macro, numbers)}")
            raise
        KERNELS[macro](copy, numbers, values, launch.grid)  # type: ignore[arg-type]
        for _name, relative, wrong in copy.differences():
            one.worst = max(one.worst, relative)
            if wrong:
                one.wrong.append(f"    launch {place}: {wrong}\n      {_words(launch, macro, numbers)}")
    told["(as served)"] = _as_served(program, module, copy, cuda, turns)
    copy.free()
    module.close()
    cuda.destroy_stream(stream)
    return list(told.values())


def _as_served(program: Program, module: KernelModule, copy: Copy, cuda: Cuda, turns: int) -> Told:
    """Early, and from a graph: the bits that were left kernel by kernel."""
    one, wanted = Told("(as served)"), {name: copy.on_device(name) for name in copy.written}

    def launch_all() -> None:
        for place, launch in enumerate(program.launches):
            values = tuple(copy.value(argument) for argument in launch.arguments)
            module.launch(launch, values, copy.stream, early=program.early and place > 0)

    def check(how: str) -> None:
        for name, bits in wanted.items():
            differ = np.flatnonzero(copy.on_device(name) != bits)
            if len(differ):
                one.wrong.append(f"    {how}: {len(differ)} bytes of {name} differ, first byte {differ[0] - GUARD}")

    for turn in range(turns):
        copy.again()
        launch_all()
        cuda.synchronise(copy.stream)
        one.launches += len(program.launches)
        check(f"early, run {turn}")
    cuda.begin_capture(copy.stream)
    launch_all()
    graph = cuda.end_capture(copy.stream)
    for turn in range(turns):
        copy.again()
        cuda.launch(graph, copy.stream)
        cuda.synchronise(copy.stream)
        check(f"from a graph, run {turn}")
    cuda.destroy_graph(graph)
    return one


def _instances(source: str) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    for macro, name, rest in re.findall(r"^(\w+)\((\w+), (.*)\)$", source, re.MULTILINE):
        yield name, (macro, rest.split(", "))


def _words(launch: Launch, macro: str, numbers: list[str]) -> str:
    taken = [f"{one.name}+{one.offset}" if isinstance(one, At) else str(one) for one in launch.arguments]
    sizes = f"grid {launch.grid}, block {launch.block}, shared {launch.shared}"
    return f"{macro}({launch.kernel}: {', '.join(numbers)}) {sizes}; {', '.join(taken)}"


def programs(size: str, folder: Path, capability: str) -> Iterator[tuple[str, Program, dict[str, NDArray[Any]]]]:
    """The reader's three, each in the middle, at the last place with room, and behind it; and what they are given."""
    checkpoint = whisper.random_checkpoint(SIZES[size], folder / size, 3)
    config = WhisperConfig.from_checkpoint(checkpoint)
    weights = load_weights(checkpoint, config.decoder_shapes())
    slots, positions = config.max_target_positions, config.max_source_positions
    for name, shape in READERS.items():
        step = Step(shape.rows, shape.count, slots, positions, apart=True)
        program = write_reader_program(config, weights, step, capability)
        sizes = {"rows": step.rows, "tokens": step.count, "slots": slots, "positions": positions}
        for place in dict.fromkeys((slots // 3, slots - step.count, slots - 1)):
            given = reader_example(config, sizes, np.random.default_rng(place))
            given["position"][0] = place
            low = {known: given[known].astype(np.float16) for known in ("self_kv", "cross_k", "cross_v")}
            yield f"{size} {name} at {place}", program, {**given, **low}


def main() -> None:
    from tests.gpu.kernel_bits import same_bits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cuda, record, failed = Cuda.open(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size or ["small"]:
            for what, program, given in programs(size, Path(folder), cuda.capability()):
                began = time.perf_counter()
                image = compile_kernels(program.source, cuda.capability())
                told = compare(program, given, image, cuda)
                took = time.perf_counter() - began
                print(f"{what}: {took:.1f} s", *(one.line() for one in told), sep="\n", flush=True)
                record[what] = {one.kernel: [one.launches, one.worst, one.wrong] for one in told}
                failed += [f"{what}: {one.kernel}" for one in told if one.wrong]
            differ = same_bits(size, Path(folder), cuda)
            print(f"{size}: neighbours and pieces change {len(differ) or 'no'} bits", *differ, sep="\n", flush=True)
            failed += differ
    if options.json:
        options.json.write_text(json.dumps(record))
    if failed:
        raise SystemExit(f"WRONG: {'; '.join(failed)}")
    print("every kernel is right")


if __name__ == "__main__":
    main()
