"""A stand-in for the sounddevice module: one device each way, and callbacks that a test calls by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aula.core.types import Float32, Int16


class PortAudioError(Exception):
    pass


@dataclass
class Flags:
    input_overflow: bool = False
    output_underflow: bool = False


@dataclass
class Stream:
    options: dict[str, Any]
    running: bool = False
    closed: bool = False
    broken: bool = False
    latency: float = 0.25

    def start(self) -> None:
        if self.broken:
            raise PortAudioError("Device unavailable")
        self.running = True

    def stop(self) -> None:
        if self.running:
            self.running = False
            self.options["finished_callback"]()

    def close(self) -> None:
        self.stop()
        self.closed = True

    def unplug(self) -> None:
        self.stop()

    def deliver(self, block: Float32, *, overflow: bool = False) -> None:
        """What PortAudio's thread does with an input buffer, which it overwrites afterwards."""
        assert self.running
        buffer = np.repeat(block[:, None], self.options["channels"], axis=1)
        self.options["callback"](buffer, len(buffer), None, Flags(input_overflow=overflow))
        buffer[:] = np.nan

    def pull(self, size: int, *, underflow: bool = False) -> Int16:
        """What PortAudio's thread hears next; every channel must be the same."""
        assert self.running
        buffer = np.full((size, self.options["channels"]), 9_999, np.int16)
        self.options["callback"](buffer, size, None, Flags(output_underflow=underflow))
        assert (buffer == buffer[:, :1]).all()
        return buffer[:, 0]


@dataclass
class FakeSoundDevice:
    """`rates` that the devices accept; `least_channels` that they insist on; `kinds` that exist."""

    rates: tuple[int, ...] = (16_000, 22_050, 48_000)
    least_channels: int = 1
    kinds: tuple[str, ...] = ("input", "output")
    breaks: bool = False
    streams: list[Stream] = field(default_factory=list)
    PortAudioError: type[Exception] = PortAudioError

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        facts = {"default_samplerate": float(self.rates[-1]), "max_input_channels": 0, "max_output_channels": 0}
        devices = [facts | {"name": f"Fake {known}", f"max_{known}_channels": 2} for known in self.kinds]
        if kind is None:
            return devices
        if device not in (None, f"Fake {kind}"):
            raise ValueError(f"No {kind} device matching {device!r}")
        if kind not in self.kinds:
            raise PortAudioError("Error querying device -1")
        return devices[self.kinds.index(kind)]

    def check_input_settings(self, *, device: Any, channels: int, dtype: str, samplerate: int) -> None:
        if samplerate not in self.rates or channels < self.least_channels:
            raise PortAudioError(f"Invalid sample rate or channels: {samplerate}, {channels}")

    check_output_settings = check_input_settings

    def InputStream(self, **options: Any) -> Stream:  # noqa: N802 - the name is sounddevice's
        self.streams.append(Stream(options, broken=self.breaks))
        return self.streams[-1]

    OutputStream = InputStream

    @property
    def stream(self) -> Stream:
        return self.streams[-1]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail
