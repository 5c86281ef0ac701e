"""The scripts that a GPU host runs, `tests.gpu.whisper_whole` and what it times, on a GPU of numpy."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aula.backends.cuda import Cuda
from aula.backends.kernel_session import KernelSession
from aula.engine import gpu_proof
from aula.engine.build import build
from aula.engine.bundle import Bundle
from aula.models import whisper_engines
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_device import WhisperDevice, encoder_frames
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver
from tests.engine.fake_gpu import fake_workshop
from tests.gpu import whisper_times, whisper_whole
from tests.gpu.test_whisper_whole import RAW
from tests.models.decoder_kernels import KERNELS
from tests.models.test_whisper_rungs import _opened
from tests.models.whisper_on_fake_gpu import FakeEncoder


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> whisper_whole.Whole:
    def card(_device: int = 0) -> Cuda:
        gpu = FakeCuda()
        gpu.capability = (9, 0)
        return Cuda(gpu)

    def workshop(_target: Any) -> Any:
        return replace(fake_workshop(), open=_opened, compile=lambda text, _capability: text.encode())

    def opened(bundle: Bundle, target: str, _device: int) -> WhisperDevice:
        gpu = FakeCuda()
        gpu.capability = (9, 0)
        checkpoint = Checkpoint(tmp_path / "checkpoints" / "whole-128")
        step, rows, read = (
            KernelSession(
                bundle.model_file("decoder", target, profile),
                bundle.options("decoder", profile, target),
                cuda=Cuda(gpu),
                driver=FakeDriver(gpu, KERNELS),
            )
            for profile in ("step", "rows", "read")
        )
        return WhisperDevice(
            [FakeEncoder(checkpoint, frames, gpu) for frames in encoder_frames(bundle, target)], step, rows, read
        )

    monkeypatch.setattr(gpu_proof, "TIMED_RUNS", 2)
    monkeypatch.setattr(gpu_proof, "WARM_RUNS", 1)
    monkeypatch.setattr(Cuda, "open", card)
    monkeypatch.setattr(whisper_whole, "build", partial(build, make_workshop=workshop))
    monkeypatch.setattr(whisper_engines, "open_device", opened)
    return whisper_whole.Whole(tmp_path, RAW, level=1, threads=1)


@pytest.mark.thorough
def test_a_gpu_host_s_script_compares_and_times(whole: whisper_whole.Whole) -> None:
    told: list[whisper_whole.Row] = []
    rows = whisper_whole.compare(whole, 3, told.append)
    assert rows == told
    assert [row.line() for row in rows if not row.is_explained] == []
    with whole.gpu() as side:
        works = whisper_times._works(whole, side.hearing(whisper_whole.PLAIN), side.passes)
        taken = {what: whisper_times._spread(prepare, 1) for what, prepare in list(works.items())[:1]}
        for prepare in works.values():
            prepare()()
    assert all(0 < p50 <= p95 for p50, p95 in taken.values())
