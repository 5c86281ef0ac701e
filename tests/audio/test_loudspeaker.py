"""Playing to a device that the test pulls by hand: nothing is lost, nothing hangs, silence is real."""

import asyncio

import numpy as np
import pytest

from aula.audio.loudspeaker import Loudspeaker, LoudspeakerStatistics
from aula.core.clock import FakeClock
from aula.core.errors import DeviceError
from aula.core.types import Int16
from tests.audio.fake_sounddevice import FakeSoundDevice


def ramp(start: int, stop: int) -> Int16:
    return np.arange(start, stop, dtype=np.int16)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_chunks_are_heard_in_order_with_silence_around() -> None:
    module = FakeSoundDevice(least_channels=2)
    async with Loudspeaker(16_000, module=module) as loudspeaker:
        assert module.stream.pull(3).tolist() == [0, 0, 0]
        buffer = ramp(1, 5)
        await loudspeaker.play(buffer)
        buffer[:] = -1
        await loudspeaker.play(ramp(5, 7))
        assert module.stream.pull(3).tolist() == [1, 2, 3]
        assert module.stream.pull(5).tolist() == [4, 5, 6, 0, 0]
        assert loudspeaker.statistics() == LoudspeakerStatistics(6, 6, 0, 0, 0, 0)
    assert module.stream.closed


async def test_drained_waits_for_the_last_sample_to_leave_the_device() -> None:
    module, clock = FakeSoundDevice(), FakeClock()
    async with Loudspeaker(16_000, module=module, clock=clock) as loudspeaker:
        await loudspeaker.play(ramp(1, 5))
        task = asyncio.create_task(loudspeaker.drained())
        await settle()
        module.stream.pull(2)
        await settle()
        module.stream.pull(2)
        await settle()
        clock.advance(0.24)
        await settle()
        assert not task.done()
        clock.advance(0.02)
        await task
        await loudspeaker.drained()  # nothing was played since: no wait


async def test_a_full_queue_makes_play_wait_and_loses_nothing() -> None:
    module = FakeSoundDevice()
    async with Loudspeaker(16_000, module=module, capacity_seconds=10 / 16_000) as loudspeaker:
        await loudspeaker.play(ramp(0, 8))
        task = asyncio.create_task(loudspeaker.play(ramp(8, 30)))
        await settle()
        heard = [module.stream.pull(4)]
        await settle()
        assert not task.done()
        heard.append(await asyncio.to_thread(module.stream.pull, 4))
        await settle()
        assert task.done()  # above the capacity, but the queue was empty
        heard.append(module.stream.pull(22))
        assert np.concatenate(heard).tolist() == list(range(30))


async def test_stop_is_silence_at_once_and_lets_waiters_go() -> None:
    module = FakeSoundDevice()
    async with Loudspeaker(16_000, module=module, capacity_seconds=10 / 16_000) as loudspeaker:
        await loudspeaker.play(ramp(1, 9))
        playing = asyncio.create_task(loudspeaker.play(ramp(9, 19)))
        draining = asyncio.create_task(loudspeaker.drained())
        await settle()
        loudspeaker.stop()
        await asyncio.gather(playing, draining)
        assert module.stream.pull(2).tolist() == [0, 0]
        assert loudspeaker.statistics() == LoudspeakerStatistics(8, 0, 8, 0, 0, 0)
        await loudspeaker.play(ramp(1, 3))
        assert module.stream.pull(2).tolist() == [1, 2]


async def test_gaps_inside_an_answer_are_counted_and_pauses_between_answers_are_not() -> None:
    module, clock = FakeSoundDevice(), FakeClock()
    async with Loudspeaker(16_000, module=module, clock=clock) as loudspeaker:
        module.stream.pull(4)
        await loudspeaker.play(ramp(0, 4))
        module.stream.pull(8, underflow=True)
        module.stream.pull(8)
        await loudspeaker.play(ramp(0, 4))
        module.stream.pull(4)
        task = asyncio.create_task(loudspeaker.drained())
        await settle()
        clock.advance(1.0)
        await task
        module.stream.pull(8)
        await loudspeaker.play(ramp(0, 4))
        statistics = loudspeaker.statistics()
        assert (statistics.gaps, statistics.underflows) == (1, 1)


async def test_another_rate_is_resampled_to_its_last_sample() -> None:
    module, clock = FakeSoundDevice(rates=(48_000,)), FakeClock()
    async with Loudspeaker(16_000, module=module, clock=clock) as loudspeaker:
        for _ in range(10):
            await loudspeaker.play(np.full(320, -32_768, np.int16))
        task = asyncio.create_task(loudspeaker.drained())
        await settle()
        heard = module.stream.pull(20_000)
        await settle()
        clock.advance(1.0)
        await task
        assert loudspeaker.statistics().played == 9_600
        assert heard[4_800] == -32_768
        assert not heard[9_600:].any()


async def test_an_unplugged_device_raises_instead_of_hanging() -> None:
    module = FakeSoundDevice()
    async with Loudspeaker(16_000, module=module) as loudspeaker:
        await loudspeaker.play(ramp(0, 8))
        task = asyncio.create_task(loudspeaker.drained())
        await settle()
        module.stream.unplug()
        with pytest.raises(DeviceError, match="loudspeaker went away"):
            await task
        with pytest.raises(DeviceError, match="loudspeaker went away"):
            await loudspeaker.play(ramp(0, 8))


async def test_misuse_and_bad_devices() -> None:
    with pytest.raises(DeviceError, match="no loudspeaker"):
        await Loudspeaker(16_000, module=FakeSoundDevice(kinds=())).__aenter__()
    module = FakeSoundDevice(breaks=True)
    with pytest.raises(DeviceError, match="Device unavailable"):
        await Loudspeaker(16_000, module=module).__aenter__()
    assert module.stream.closed
    loudspeaker = Loudspeaker(16_000, module=FakeSoundDevice())
    loudspeaker.stop()
    with pytest.raises(RuntimeError, match="with-block"):
        await loudspeaker.play(ramp(0, 1))
    with pytest.raises(TypeError, match="float32"):
        await loudspeaker.play(np.zeros(3, np.float32))
