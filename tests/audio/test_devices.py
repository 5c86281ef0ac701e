"""Finding and opening devices; on machines without any, the reason and the way out are told."""

import builtins
from typing import Any

import pytest

from aula.audio.devices import DeviceFormat, agree_on_format, describe_devices, load_sounddevice, opening
from aula.core.errors import DeviceError
from tests.audio.fake_sounddevice import FakeSoundDevice, PortAudioError, raising


def refuse_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    usual = builtins.__import__

    def imported(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "sounddevice":
            raise error
        return usual(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", imported)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (OSError("PortAudio library not found"), "apt install libportaudio2"),
        (PortAudioError("Error initializing PortAudio"), "--out"),
        (ImportError("No module named 'sounddevice'"), "pip install sounddevice"),
    ],
)
def test_an_absent_portaudio_names_the_way_out(monkeypatch: pytest.MonkeyPatch, error: Exception, way_out: str) -> None:
    refuse_import(monkeypatch, error)
    with pytest.raises(DeviceError, match=way_out):
        load_sounddevice()
    lines = describe_devices()
    assert len(lines) == 1
    assert way_out in lines[0]


@pytest.mark.parametrize(
    ("module", "agreed"),
    [
        (FakeSoundDevice(), DeviceFormat(16_000, 1)),
        (FakeSoundDevice(rates=(44_100, 48_000)), DeviceFormat(48_000, 1)),
        (FakeSoundDevice(least_channels=2), DeviceFormat(16_000, 2)),
        (FakeSoundDevice(rates=(48_000,), least_channels=2), DeviceFormat(48_000, 2)),
    ],
)
def test_the_nearest_format_is_agreed_on(module: FakeSoundDevice, agreed: DeviceFormat) -> None:
    assert agree_on_format(module, "input", None, "float32", 16_000) == agreed
    assert agree_on_format(module, "output", "Fake output", "int16", 16_000) == agreed


def test_no_device_is_told_with_those_there_are() -> None:
    with pytest.raises(DeviceError, match=r"no microphone\. Next: .*--text"):
        agree_on_format(FakeSoundDevice(kinds=("output",)), "input", None, "float32", 16_000)
    with pytest.raises(DeviceError, match=r"no loudspeaker 'Hall'\. Available: Fake output"):
        agree_on_format(FakeSoundDevice(), "output", "Hall", "int16", 16_000)


def test_a_device_that_refuses_everything() -> None:
    with pytest.raises(DeviceError, match="Fake input refuses every format"):
        agree_on_format(FakeSoundDevice(least_channels=9), "input", None, "float32", 16_000)


def test_opening_translates_what_portaudio_raises() -> None:
    module = FakeSoundDevice()
    assert opening(module, "output", lambda: 7) == 7
    with pytest.raises(DeviceError, match=r"loudspeaker cannot be used \(busy\)"):
        opening(module, "output", raising(PortAudioError("busy")))


def test_describing_names_defaults_and_devices() -> None:
    assert describe_devices(FakeSoundDevice(kinds=("output",))) == [
        "no microphone: plug one in, or ask with --text or a sound file",
        "loudspeaker: Fake output (48000 Hz)",
        "device 0: Fake output (0 in, 2 out)",
    ]


def test_describing_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSoundDevice, "query_devices", raising(RuntimeError("driver")))
    assert describe_devices(FakeSoundDevice()) == [
        "the sound devices cannot be listed: RuntimeError: driver",
    ]
    assert describe_devices()  # whatever this machine has
