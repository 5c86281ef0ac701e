"""Every error a user can meet.

    AulaError                      broad to catch
    ├── SettingsError              a setting is unknown or has a bad value           exit 2
    ├── InputError                 what was handed in cannot be used                 exit 3
    │   ├── AudioError
    │   │   ├── NotAudioError        no decoder knows the bytes
    │   │   ├── EmptyAudioError      0 bytes, or a container with no samples
    │   │   ├── TruncatedAudioError  the stream ends in the middle of itself
    │   │   └── AudioTooLongError    more speech than one question may have
    │   ├── TextError              a question that is empty or far too long
    │   ├── TooLargeError          a request with more bytes or headers than a door takes
    │   └── TooSlowError           a client that does not send what it began, or does not read
    ├── CourseError                                                                  exit 4
    │   ├── CourseNotFoundError
    │   ├── CourseEmptyError
    │   └── DocumentError          one document could not be read
    ├── EngineError                                                                  exit 5
    │   ├── ModelNotFoundError     a checkpoint or the package that carries it is absent
    │   ├── DownloadError          a model hub that cannot be reached, refuses, or does not answer like one
    │   ├── CheckpointError        weights that are missing, mis-shaped or foreign
    │   ├── BackendError           a runtime is absent, or it refused a graph or a tensor
    │   │   ├── DeviceMemoryError    the card is full; something else may be freed, or a lower rung may serve
    │   │   ├── DeviceLostError      the GPU answers this process no more; only a new process helps
    │   │   ├── ProcessAwayError     the engine's process is not there just now; nothing was tried
    │   │   └── ProcessLostError     the engine's process ended with this run in it; it comes back by itself
    │   │       ├── ProcessHungError     it gave no answer for too long, and was ended
    │   │       └── ProcessMemoryError   it had no memory left
    │   ├── BundleError            a bundle that is damaged, or for another target, backend or version
    │   ├── VerificationError      an engine differs from its reference, or from what was proven
    │   ├── CalibrationError       calibration data that is random, too little or of the wrong form
    │   └── NoRungError            nothing on this machine serves the capability
    ├── DeviceError                no microphone, no loudspeaker                     exit 6
    ├── NothingHeardError          silence, noise, or words nobody could make out    exit 7
    ├── UnsupportedLanguageError   no rung hears, reads or speaks the language       exit 8
    ├── StorageError               no permission, no space, a damaged library        exit 9
    ├── DeadlineError              the work could not be finished in time            exit 10
    ├── OverloadError              refused before it was tried; asking later helps   exit 11
    └── AccessError                a door that stays shut for whoever stands there   exit 12
        ├── KeyAbsentError           a key is needed, and none was brought
        ├── KeyRefusedError          a key that is unknown, wrong or revoked
        └── NotAllowedError          a key without that ability, or a page of another origin

Anything else that escapes is a defect of ours: the command line reports it as such with exit code 1.
An interrupt (Ctrl-C) ends with 130, as shells expect.
"""

from collections.abc import Sequence
from typing import Self


class AulaError(Exception):
    """A failure a user can act on: what was wrong, what there is instead, what to do next."""

    exit_code = 1
    reason: str | None = None
    """Why it was refused, where nothing was tried: a word of the metrics. None is a failure."""
    retry_after_s: float | None = None
    """Seconds after which asking again makes sense; None where it never does."""

    def __init__(self, what: str, *, next_step: str, available: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.available = tuple(available)
        self.next_step = next_step

    def refused(self, reason: str, retry_after_s: float | None = None) -> Self:
        """Mark it as a refusal: nothing was tried."""
        self.reason = reason
        self.retry_after_s = retry_after_s
        return self

    def __str__(self) -> str:
        parts = [self.what.rstrip(".") + "."]
        if self.available:
            parts.append(f"Available: {', '.join(self.available)}.")
        parts.append(f"Next: {self.next_step}")
        return " ".join(parts)


class SettingsError(AulaError):
    exit_code = 2


class InputError(AulaError):
    exit_code = 3


class AudioError(InputError):
    pass


class NotAudioError(AudioError):
    pass


class EmptyAudioError(AudioError):
    pass


class TruncatedAudioError(AudioError):
    pass


class AudioTooLongError(AudioError):
    pass


class TextError(InputError):
    pass


class TooLargeError(InputError):
    pass


class TooSlowError(InputError):
    pass


class CourseError(AulaError):
    exit_code = 4


class CourseNotFoundError(CourseError):
    pass


class CourseEmptyError(CourseError):
    pass


class DocumentError(CourseError):
    pass


class EngineError(AulaError):
    exit_code = 5


class ModelNotFoundError(EngineError):
    pass


class DownloadError(EngineError):
    pass


class CheckpointError(EngineError):
    pass


class BackendError(EngineError):
    pass


class DeviceMemoryError(BackendError):
    pass


class DeviceLostError(BackendError):
    pass


class ProcessAwayError(BackendError):
    """`retry_after_s` seconds from now the process is started anew; 0.0 where it is being started already."""

    def __init__(self, what: str, *, next_step: str, available: Sequence[str] = (), retry_after_s: float = 0.0) -> None:
        super().__init__(what, next_step=next_step, available=available)
        self.retry_after_s = retry_after_s


class ProcessLostError(BackendError):
    pass


class ProcessHungError(ProcessLostError):
    pass


class ProcessMemoryError(ProcessLostError):
    pass


class BundleError(EngineError):
    pass


class VerificationError(EngineError):
    pass


class CalibrationError(EngineError):
    pass


class NoRungError(EngineError):
    pass


class DeviceError(AulaError):
    exit_code = 6


class NothingHeardError(AulaError):
    exit_code = 7


class UnsupportedLanguageError(AulaError):
    exit_code = 8


class StorageError(AulaError):
    exit_code = 9


class DeadlineError(AulaError):
    exit_code = 10


class OverloadError(AulaError):
    """Nothing failed: `reason` is one of the scheduler's few, `retry_after_s` seconds from now."""

    exit_code = 11

    def __init__(self, what: str, *, reason: str, retry_after_s: float, next_step: str) -> None:
        super().__init__(what, next_step=next_step)
        self.refused(reason, retry_after_s)


class AccessError(AulaError):
    """Nothing was read, and nothing tried. `status` is what HTTP calls it."""

    exit_code = 12
    status = 403


class KeyAbsentError(AccessError):
    status = 401


class KeyRefusedError(AccessError):
    status = 401


class NotAllowedError(AccessError):
    pass
