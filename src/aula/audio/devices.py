"""What sound devices there are, and how to open one: PortAudio through sounddevice, imported on first use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aula.core.errors import DeviceError

Device = int | str | None
"""A number or a part of a name from `describe_devices`; None is the system's choice."""

Kind = Literal["input", "output"]

_NOUNS: dict[Kind, str] = {"input": "microphone", "output": "loudspeaker"}
_WITHOUT: dict[Kind, str] = {
    "input": "plug one in, or ask with --text or a sound file",
    "output": "plug one in, or write the answer to a file with --out",
}


@dataclass(frozen=True, slots=True)
class DeviceFormat:
    """What a device agreed to: samples a second, and channels."""

    rate: int
    channels: int


def load_sounddevice() -> Any:
    """The sounddevice module. Raises DeviceError where it or the PortAudio library is absent."""
    try:
        import sounddevice
    except ImportError as error:
        raise DeviceError(
            "the package sounddevice is absent, so there is no microphone and no loudspeaker",
            next_step="pip install sounddevice, or use --text, a sound file and --out",
        ) from error
    except Exception as error:  # importing it starts PortAudio: OSError without it, its own types otherwise
        raise DeviceError(
            f"PortAudio cannot be used ({error}), so there is no microphone and no loudspeaker",
            next_step="apt install libportaudio2 (or your system's like), or use --text, a sound file and --out",
        ) from error
    return sounddevice


def agree_on_format(module: Any, kind: Kind, device: Device, dtype: str, rate: int) -> DeviceFormat:
    """The wished `rate` in mono, or the nearest that the device can do. Raises DeviceError where there is none."""
    check = module.check_input_settings if kind == "input" else module.check_output_settings
    try:
        facts = module.query_devices(device, kind)
    except (module.PortAudioError, ValueError) as error:
        raise DeviceError(
            f"there is no {_NOUNS[kind]}" + ("" if device is None else f" {device!r}"),
            available=_names(module, kind),
            next_step=_WITHOUT[kind],
        ) from error
    own_rate = int(facts["default_samplerate"])
    # Some drivers of stereo devices refuse to open one channel.
    stereo = max(1, min(2, facts[f"max_{kind}_channels"]))
    wishes = [DeviceFormat(r, channels) for r in (rate, own_rate) for channels in (1, stereo)]
    for wish in dict.fromkeys(wishes):
        try:
            check(device=device, channels=wish.channels, dtype=dtype, samplerate=wish.rate)
        except (module.PortAudioError, ValueError) as error:
            reason = error
        else:
            return wish
    raise DeviceError(
        f"the {_NOUNS[kind]} {facts['name']} refuses every format tried ({reason})",
        available=_names(module, kind),
        next_step="close other programs that use it, or choose another device",
    )


def opening(module: Any, kind: Kind, operate: Callable[[], Any]) -> Any:
    """Run a call that opens or starts a stream; what PortAudio raises becomes a DeviceError."""
    try:
        return operate()
    except (module.PortAudioError, ValueError) as error:
        raise DeviceError(f"the {_NOUNS[kind]} cannot be used ({error})", next_step=_WITHOUT[kind]) from error


def lost(kind: Kind) -> DeviceError:
    return DeviceError(f"the {_NOUNS[kind]} went away while it was in use", next_step=_WITHOUT[kind])


def describe_devices(module: Any = None) -> list[str]:
    """Lines for people: the defaults, then every device. Never raises; what is wrong is a line too."""
    try:
        module = module or load_sounddevice()
        return [*(_default_line(module, kind) for kind in _NOUNS), *_device_lines(module)]
    except DeviceError as error:
        return [str(error)]
    except Exception as error:  # a diagnosis must survive whatever a driver does
        return [f"the sound devices cannot be listed: {type(error).__name__}: {error}"]


def _default_line(module: Any, kind: Kind) -> str:
    try:
        facts = module.query_devices(None, kind)
    except (module.PortAudioError, ValueError):
        return f"no {_NOUNS[kind]}: {_WITHOUT[kind]}"
    return f"{_NOUNS[kind]}: {facts['name']} ({facts['default_samplerate']:g} Hz)"


def _device_lines(module: Any) -> list[str]:
    return [
        f"device {number}: {facts['name']} ({facts['max_input_channels']} in, {facts['max_output_channels']} out)"
        for number, facts in enumerate(module.query_devices())
    ]


def _names(module: Any, kind: Kind) -> list[str]:
    try:
        return [facts["name"] for facts in module.query_devices() if facts[f"max_{kind}_channels"] > 0]
    except (module.PortAudioError, ValueError):
        return []
