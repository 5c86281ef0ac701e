"""What others may rely on. A change here is a change for users: say it in the changelog."""

import inspect

import aula
from aula.core import capabilities, errors, types

CAPABILITIES = [
    "DetectionStream",
    "Detector",
    "Embedder",
    "Passes",
    "PausingStream",
    "RawEngine",
    "Sharing",
    "Speaker",
    "Transcriber",
    "TranscriptionStream",
    "Understander",
]
RECORDS = [
    "Answer",
    "Audio",
    "Capability",
    "Citation",
    "Context",
    "DetectRequest",
    "HeardWord",
    "Intent",
    "Licence",
    "Outcome",
    "Partial",
    "RungInfo",
    "Segment",
    "SpeakRequest",
    "TensorSpec",
    "TranscribeRequest",
    "Transcript",
    "Understanding",
    "Why",
]
ASK_JSON = [
    "transcript",
    "language",
    "intent",
    "answer",
    "citations",
    "refused",
    "rungs",
    "timings_ms",
    "drafted",
    "audio",
    "audio_seconds",
]


def _classes(module: object) -> list[str]:
    name = getattr(module, "__name__", "")
    return sorted(key for key, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == name)


def test_the_contracts_of_capabilities() -> None:
    assert _classes(capabilities) == CAPABILITIES


def test_the_records() -> None:
    assert _classes(types) == RECORDS


def test_exit_codes() -> None:
    codes = {name: getattr(errors, name).exit_code for name in _classes(errors)}
    branches = {name: code for name, code in codes.items() if getattr(errors, name).__bases__[0] is errors.AulaError}
    assert branches == {
        "SettingsError": 2,
        "InputError": 3,
        "CourseError": 4,
        "EngineError": 5,
        "DeviceError": 6,
        "NothingHeardError": 7,
        "UnsupportedLanguageError": 8,
        "StorageError": 9,
        "DeadlineError": 10,
        "OverloadError": 11,
        "AccessError": 12,
    }


def test_the_object_of_ask_json() -> None:
    from aula.assistant.asking import Asked
    from aula.core.types import Answer, Intent

    asked = Asked("?", Answer("!", "en", Intent.CONTENT, refused=False), {}, {}, False, None, 0.0)
    assert list(asked.as_json()) == ASK_JSON


def test_the_version_is_one_version() -> None:
    assert aula.__version__.count(".") == 2
