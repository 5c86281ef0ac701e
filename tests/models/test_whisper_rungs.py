"""Whisper's rungs on a machine with a GPU: built by the product's builder, found in the store, opened, and heard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.cuda import Cuda
from aula.backends.gpus import Gpu
from aula.backends.kernel_session import KernelSession
from aula.backends.session import SessionOptions
from aula.core.errors import BundleError, DeviceLostError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, TranscribeRequest
from aula.engine import gpu_proof
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.store import Store
from aula.models import whisper, whisper_engines, whisper_gpu, whisper_rungs
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_device import WhisperDevice, encoder_frames, open_device
from aula.models.whisper_engines import find_device_bundle, serves_on
from aula.models.whisper_stepper import cross_names
from aula.runtime import Runtime, open_hearing
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_driver import FakeDriver
from tests.engine.fake_gpu import FakeDeviceSession, fake_workshop
from tests.models.decoder_kernels import KERNELS
from tests.models.whisper_on_fake_gpu import FakeEncoder, wide_checkpoint
from tests.models.whisper_thin_model import make_sure, sound

CARD = Gpu(0, "GPU-1", "NVIDIA H100", "9.0", "580.1", 80 * 2**30)
FRAMES = 2 * 300


def _opened(path: Path, options: SessionOptions) -> Any:
    if path.suffix == ".plan":
        return FakeDeviceSession(path, options)
    gpu = FakeCuda()
    gpu.capability = (9, 0)
    return KernelSession(path, options, cuda=Cuda(gpu), driver=FakeDriver(gpu, KERNELS))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a Whisper and its engines for an H100."""
    home = tmp_path_factory.mktemp("home")
    checkpoint = wide_checkpoint(home / "checkpoints" / "whisper-wide")
    make_sure(checkpoint)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_proof, "TIMED_RUNS", 2)
        patched.setattr(gpu_proof, "WARM_RUNS", 1)
        build(
            whisper.whisper_model(checkpoint, "whisper-wide"),
            Store(home / "engines"),
            BuildOptions(target="sm90"),
            make_workshop=lambda _target: replace(
                fake_workshop(), open=_opened, compile=lambda text, _capability: text.encode()
            ),
        )
    return home


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[FakeCuda]:
    """The store's kernels and a fake encoder, on a fake H100: those that were opened."""
    cards: list[FakeCuda] = []

    def opened(bundle: Bundle, target: str, _device: int) -> WhisperDevice:
        gpu = FakeCuda()
        gpu.capability = (9, 0)
        cards.append(gpu)
        step, rows, read = (
            KernelSession(
                bundle.model_file("decoder", target, profile),
                bundle.options("decoder", profile, target),
                cuda=Cuda(gpu),
                driver=FakeDriver(gpu, KERNELS),
            )
            for profile in ("step", "rows", "read")
        )
        checkpoint = Checkpoint(home / "checkpoints" / "whisper-wide")
        encoders = [FakeEncoder(checkpoint, frames, gpu) for frames in encoder_frames(bundle, target)]
        return WhisperDevice(encoders, step, rows, read)

    monkeypatch.setattr(whisper_rungs, "list_gpus", lambda: (CARD,))
    monkeypatch.setattr(whisper_engines, "open_device", opened)
    return cards


def settings(home: Path, **more: str) -> Settings:
    return Settings({"home": str(home), "isolate": "never", "recogniser": "none", **more})


async def _heard(home: Path, prefer: str = "") -> tuple[str, str]:
    async with open_hearing(settings(home), last_resort=False) as runtime:
        if prefer:
            runtime.override(Capability.TRANSCRIBE, prefer)
        outcome = await runtime.submit(Capability.TRANSCRIBE, TranscribeRequest(partials=False), Context("en"))
        for piece in np.array_split(sound(2, 1.0), 2):
            await outcome.value.feed(piece)
        transcript = await outcome.value.commit()
        await outcome.value.close()
        return outcome.rung, transcript.text


async def test_the_gpu_hears_first_and_the_processor_below_it_the_same(home: Path, card: list[FakeCuda]) -> None:
    assert [rung.info.name for rung in whisper_rungs.whisper_rungs(settings(home), None, _quiet)] == [
        "whisper-wide@gpu0",
        "whisper-wide",
    ]
    best, lower = await _heard(home), await _heard(home, "whisper-wide")
    assert (best[0], lower[0]) == ("whisper-wide@gpu0", "whisper-wide")
    assert best[1] == lower[1] != ""


async def test_a_gpu_that_is_lost_fails_who_is_on_it_and_the_processor_hears_the_next(
    home: Path, card: list[FakeCuda]
) -> None:
    async def heard(runtime: Runtime) -> tuple[str, str]:
        outcome = await runtime.submit(Capability.TRANSCRIBE, TranscribeRequest(partials=False), Context("en"))
        try:
            await outcome.value.feed(sound(2, 1.0))
            return outcome.rung, (await outcome.value.commit()).text
        finally:
            await outcome.value.close()

    async with open_hearing(settings(home), last_resort=False) as runtime:
        rung, text = await heard(runtime)
        assert rung == "whisper-wide@gpu0"
        card[-1].lost = 700
        with pytest.raises(DeviceLostError, match="GPU 0 is lost"):
            await heard(runtime)
        assert await heard(runtime) == ("whisper-wide", text)


def _quiet(_what: str, _share: float) -> None:
    """Nobody is told."""


def test_a_rung_on_a_gpu_says_where_it_lies_and_what_it_needs(home: Path, card: list[FakeCuda]) -> None:
    first = next(iter(whisper_rungs.whisper_rungs(settings(home), None, _quiet)))
    assert (first.device, first.worker, first.info.note[-10:]) == ("gpu0", "transcribe@gpu0", ", on a GPU")
    assert first.needs is not None
    assert first.needs() > 3 * 2 * 51_865 * 128, "three programs, each with its vocabulary"


def test_no_engine_no_rung(home: Path, card: list[FakeCuda], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_checkpoint(tmp_path / "checkpoints" / "whisper-wide")
    assert [rung.device for rung in whisper_rungs.whisper_rungs(settings(tmp_path), None, _quiet)] == ["host"]
    monkeypatch.setattr(whisper_rungs, "list_gpus", lambda: (replace(CARD, capability="8.9"),))
    assert [rung.device for rung in whisper_rungs.whisper_rungs(settings(home), None, _quiet)] == ["host"]


def test_engines_of_another_checkpoint_are_refused_with_the_command_that_builds(home: Path, tmp_path: Path) -> None:
    other = wide_checkpoint(tmp_path / "whisper-wide", seed=9)
    with pytest.raises(BundleError, match="no engines of whisper-wide for sm90") as refused:
        find_device_bundle(other, settings(home), "sm90")
    assert "--targets sm90,cpu" in (refused.value.next_step or "")


def test_what_the_builder_proved_is_what_serves(home: Path) -> None:
    bundle = find_device_bundle(Checkpoint(home / "checkpoints" / "whisper-wide"), settings(home), "sm90")
    assert serves_on(bundle, "sm90")
    assert not serves_on(bundle, "sm89")
    engine = bundle.engine("decoder", "sm90")
    decoder = bundle.manifest.parts["decoder"]
    by_tensorrt = replace(decoder, engines={"sm90": replace(engine, backend="tensorrt")})
    manifest = replace(bundle.manifest, parts={**bundle.manifest.parts, "decoder": by_tensorrt})
    assert not serves_on(replace(bundle, manifest=manifest), "sm90")
    assert (engine.backend, engine.precision, set(engine.plans)) == ("kernels", "fp16", {"step", "rows", "read"})
    assert engine.chosen.relative_error is not None
    assert engine.chosen.relative_error < 5e-2
    assert encoder_frames(bundle, "sm90") == {FRAMES: "window"}, "the thin one's window is no longer than six seconds"


def test_greedy_steps_alone_are_no_rung(tmp_path: Path) -> None:
    """An architecture that our own kernels do not serve has other parts."""
    checkpoint = wide_checkpoint(tmp_path, decoder_ffn_dim=256)
    recipe = whisper.whisper_model(checkpoint, "narrow", seeded=True).parts_for(True)["decoder"]
    assert {profile.name for profile in recipe.profiles} == {"step", "prompt", "window-step", "window-prompt"}
    config = WhisperConfig.from_checkpoint(checkpoint)
    assert set(cross_names(config, whisper_gpu.FEW)) <= set(recipe.handed_over)


def test_opening_asks_for_engines_that_are_on_a_gpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = find_device_bundle(Checkpoint(home / "checkpoints" / "whisper-wide"), settings(home), "sm90")

    class Elsewhere:
        closed = 0

        def close(self) -> None:
            type(self).closed += 1

    monkeypatch.setattr(Bundle, "open", lambda *_args, **_options: Elsewhere())
    with pytest.raises(BundleError, match="no engine for a GPU"):
        open_device(bundle, "sm90", 0)
    assert Elsewhere.closed == 1
