"""Recording with a device that the test plays by hand: order, bounds, and every way to end."""

import asyncio

import numpy as np
import pytest

from aula.audio.microphone import Microphone, MicrophoneStatistics
from aula.core.errors import DeviceError
from aula.core.types import Float32
from tests.audio.fake_sounddevice import FakeSoundDevice


def block(value: float, size: int = 320) -> Float32:
    return np.full(size, value, np.float32)


def levels(frames: list[Float32]) -> list[float]:
    return [round(float(frame[len(frame) // 2]), 3) for frame in frames]


async def collect(microphone: Microphone, into: list[Float32]) -> None:
    async for frame in microphone.record():
        into.append(frame)  # noqa: PERF401 - what came before an error counts too


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_frames_come_in_order_until_the_button_is_released() -> None:
    module = FakeSoundDevice()
    frames: list[Float32] = []
    async with Microphone(module=module) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        module.stream.deliver(block(0.1))
        module.stream.deliver(block(0.2))
        await settle()
        assert levels(frames) == [0.1, 0.2]
        module.stream.deliver(block(0.3))
        microphone.stop()
        assert not module.stream.running
        await task
        assert microphone.statistics() == MicrophoneStatistics(3, 3, 0, 0, 0, 0)
    assert levels(frames) == [0.1, 0.2, 0.3]
    assert all(frame.dtype == np.float32 and frame.shape == (320,) for frame in frames)
    assert module.stream.closed
    assert module.stream.options["blocksize"] == 320


async def test_blocks_may_come_from_another_thread() -> None:
    module = FakeSoundDevice()
    frames: list[Float32] = []
    async with Microphone(module=module) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        for number in range(50):
            await asyncio.to_thread(module.stream.deliver, block(number / 100))
        microphone.stop()
        await task
    assert levels(frames) == [number / 100 for number in range(50)]


@pytest.mark.parametrize("channels", [1, 2])
async def test_another_rate_is_resampled(channels: int) -> None:
    module = FakeSoundDevice(rates=(48_000,), least_channels=channels)
    frames: list[Float32] = []
    async with Microphone(module=module) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        for _ in range(10):
            module.stream.deliver(block(0.5, 960))
        microphone.stop()
        await task
    assert sum(len(frame) for frame in frames) == 3_200
    assert levels(frames)[4] == 0.5
    assert all(len(frame) == 320 for frame in frames[:-1])


async def test_when_nobody_listens_the_oldest_go_first_and_are_counted() -> None:
    module = FakeSoundDevice()
    frames: list[Float32] = []
    async with Microphone(module=module, capacity_seconds=0.06) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        for number in range(1, 6):
            module.stream.deliver(block(number / 10), overflow=number == 2)
        assert microphone.statistics() == MicrophoneStatistics(5, 0, 2, 3, 0, 1)
        microphone.stop()
        await task
    assert levels(frames) == [0.3, 0.4, 0.5]


async def test_an_open_device_records_again_and_again() -> None:
    module = FakeSoundDevice()
    async with Microphone(module=module) as microphone:
        for turn in (0.1, 0.2):
            frames: list[Float32] = []
            task = asyncio.create_task(collect(microphone, frames))
            await settle()
            module.stream.deliver(block(turn))
            microphone.stop()
            microphone.stop()
            await task
            assert levels(frames) == [turn]
    assert len(module.streams) == 1


async def test_a_recording_given_up_does_not_leak_into_the_next() -> None:
    module = FakeSoundDevice()
    async with Microphone(module=module) as microphone:
        recording = microphone.record()
        first = asyncio.ensure_future(anext(recording))
        await settle()
        module.stream.deliver(block(0.1))
        module.stream.deliver(block(0.2))
        await first
        await recording.aclose()  # type: ignore[attr-defined]
        assert not module.stream.running
        frames: list[Float32] = []
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        module.stream.deliver(block(0.3))
        microphone.stop()
        await task
        assert levels(frames) == [0.3]
        assert microphone.statistics() == MicrophoneStatistics(3, 2, 0, 0, 1, 0)


async def test_an_unplugged_device_gives_what_it_heard_and_then_says_so() -> None:
    module = FakeSoundDevice()
    frames: list[Float32] = []
    async with Microphone(module=module) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
        module.stream.deliver(block(0.1))
        module.stream.unplug()
        with pytest.raises(DeviceError, match="microphone went away"):
            await task
    assert levels(frames) == [0.1]


async def test_leaving_the_block_ends_a_recording() -> None:
    module = FakeSoundDevice()
    frames: list[Float32] = []
    async with Microphone(module=module) as microphone:
        task = asyncio.create_task(collect(microphone, frames))
        await settle()
    await task
    assert frames == []


async def test_misuse_and_bad_devices() -> None:
    with pytest.raises(DeviceError, match="no microphone"):
        await Microphone(module=FakeSoundDevice(kinds=())).__aenter__()
    with pytest.raises(RuntimeError, match="open microphone"):
        await anext(Microphone(module=FakeSoundDevice()).record())
    async with Microphone(module=FakeSoundDevice(breaks=True)) as microphone:
        for _ in range(2):
            with pytest.raises(DeviceError, match="Device unavailable"):
                await anext(microphone.record())
