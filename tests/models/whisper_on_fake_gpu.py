"""A Whisper whole on a GPU that is made of numpy: kernels by their arithmetic, the encoder by ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.cuda import Cuda
from aula.backends.device_session import DeviceSession
from aula.backends.device_tensor import Shape
from aula.backends.kernel_program import Compiled, save_program
from aula.backends.kernel_session import KernelSession
from aula.backends.session import SessionOptions, open_session
from aula.core.types import TensorSpec
from aula.models import whisper, whisper_gpu, whisper_reader
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_device import WhisperDevice
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver, Memory
from tests.models.decoder_kernels import KERNELS
from tests.models.whisper_thin_model import thin_checkpoint

WIDE = {
    "d_model": 128,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "num_mel_bins": 80,
}
"""What the kernels ask of an architecture."""
FRAMES = (200, 600)
"""Two seconds, and the whole window."""


def wide_checkpoint(folder: Path, seed: int = 3, **changes: Any) -> Checkpoint:
    return thin_checkpoint(folder, seed, **{**WIDE, **changes})


class FakeEncoder(DeviceSession):
    """One length of the encoder, on memory of the fake GPU."""

    backend = "tensorrt"

    def __init__(self, checkpoint: Checkpoint, frames: int, gpu: FakeCuda) -> None:
        import onnx

        config = WhisperConfig.from_checkpoint(checkpoint)
        base = whisper.encoder_recipe(checkpoint, "e", seeded=True)
        path = checkpoint.folder / "stacked.onnx"
        if not path.exists():
            onnx.save(whisper_gpu.listener_recipe(base, checkpoint, whisper_gpu.MANY).write_graph(), str(path))
        self._inner = open_session("onnxruntime", path, SessionOptions(threads=1))
        self._numpy = Memory(gpu)
        self._gpu, self._frames = gpu, frames
        self._open(SessionOptions(), Cuda(gpu))
        self._open_stream()
        cross = (config.decoder_layers, 1, config.decoder_attention_heads, frames // 2, config.head_size)
        self._shapes_made: dict[str, Shape] = {"hidden": (1, frames // 2, config.d_model)}
        self._shapes_made |= {"cross_k": cross, "cross_v": cross}
        mel = (1, config.num_mel_bins, frames)
        made = [
            TensorSpec(name, "float32" if name == "hidden" else "float16", shape)
            for name, shape in self._shapes_made.items()
        ]
        self._begin([TensorSpec("mel", "float32", mel)], made, {"mel": mel}, SessionOptions())

    def _resize(self, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
        return dict(self._shapes_made)

    def _execute(self) -> None:
        addresses = {name: self._address(name) for name in ("mel", *self._shapes_made)}

        def work() -> None:
            mel = self._numpy(addresses["mel"], "f4", *self._greatest["mel"])
            made = self._inner.run({"mel": mel.copy()})
            for name, shape in self._shapes_made.items():
                dtype = "f4" if name == "hidden" else "f2"
                self._numpy(addresses[name], dtype, *shape)[...] = made[name].astype(dtype)

        self._gpu.submit(self._stream, work)

    def _release(self) -> None:
        self._inner.close()


def reader_session(checkpoint: Checkpoint, profile: Any, gpu: FakeCuda) -> KernelSession:
    recipe = whisper_reader.reader_recipe(checkpoint, "reader", (profile,), seeded=True)
    assert recipe.program is not None
    path = checkpoint.folder / f"{profile.name}.kernels"
    if not path.exists():
        program = recipe.program(profile, "9.0")
        save_program(Compiled(program, program.source.encode(), "9.0"), path)
    options = SessionOptions(states=recipe.states, digest=hashlib.sha256(path.read_bytes()).hexdigest())
    return KernelSession(path, options, cuda=Cuda(gpu), driver=FakeDriver(gpu, KERNELS))


def device_of(checkpoint: Checkpoint, gpu: FakeCuda | None = None) -> WhisperDevice:
    gpu = gpu or FakeCuda()
    gpu.capability = (9, 0)
    config = WhisperConfig.from_checkpoint(checkpoint)
    encoders = [FakeEncoder(checkpoint, frames, gpu) for frames in FRAMES]
    profiles = whisper_reader.reader_profiles(config.max_target_positions, config.max_source_positions)
    step, rows, read = (reader_session(checkpoint, profile, gpu) for profile in profiles)
    return WhisperDevice(encoders, step, rows, read)


def noise(seed: int, frames: int, bins: int = 80) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (bins, frames)).astype(np.float32)
