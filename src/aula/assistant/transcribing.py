"""Recordings to texts: one file after another, of any length, on whatever rung hears best."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from aula.audio.decoding import open_audio
from aula.core.errors import NothingHeardError, StorageError
from aula.core.types import SPEECH_RATE, Capability, Context, Segment, TranscribeRequest, Transcript
from aula.runtime import Runtime

BLOCK_MS = 1000
"""Nobody waits for a partial: large blocks cost fewer hops between threads."""

Watch = Callable[[float, float | None], None]
"""Told the seconds that were heard, and of how many, where the file says so."""


@dataclass(frozen=True, slots=True)
class Transcribed:
    """A file's text; "" where nobody speaks. `timings_ms`: `audio` is how long the sound lasts, `total` what it took
    from opening the file to its text."""

    file: Path
    text: str
    language: str
    segments: tuple[Segment, ...]
    rung: str
    timings_ms: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The documented object of `aula transcribe --json`."""
        return {
            "file": str(self.file),
            "text": self.text,
            "language": self.language,
            "segments": [{"start": one.start, "end": one.end, "text": one.text} for one in self.segments],
            "rung": self.rung,
            "timings_ms": self.timings_ms,
        }


async def transcribe_file(
    runtime: Runtime,
    path: Path,
    context: Context,
    *,
    timestamps: bool = False,
    translate: bool = False,
    watch: Watch | None = None,
) -> Transcribed:
    """In memory that does not grow with the file. Raises what `open_audio`, `AudioFile.frames` and the runtime raise:
    a file that ends early is refused as a whole."""
    start = runtime.clock.now()
    with open_audio(path) as file:
        request = TranscribeRequest(timestamps=timestamps, translate=translate, partials=False)
        outcome = await runtime.submit(Capability.TRANSCRIBE, request, context)
        samples = 0
        try:
            for frame in file.frames(BLOCK_MS):
                await outcome.value.feed(frame)
                samples += len(frame)
                if watch is not None:
                    watch(samples / SPEECH_RATE, file.seconds)
            transcript = await _committed(outcome.value, context)
        finally:
            await outcome.value.close()
    timings = {"audio": 1000 * samples / SPEECH_RATE, "total": 1000 * (runtime.clock.now() - start)}
    rounded = {name: round(milliseconds, 1) for name, milliseconds in timings.items()}
    return Transcribed(path, transcript.text, transcript.language, transcript.segments, outcome.rung, rounded)


async def _committed(stream: Any, context: Context) -> Transcript:
    try:
        transcript: Transcript = await stream.commit()
    except NothingHeardError:
        return Transcript("", context.language)
    return transcript


class Results:
    """A file of JSON lines, one a transcribed file, that an interrupted batch goes on with."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError for a file that cannot be written, or that holds something else."""
        self.path = path
        try:
            content = path.read_text(encoding="utf-8") if path.exists() else ""
            self.done = frozenset(_files(content.splitlines(keepends=True), path))
            self._stream: TextIO = path.open("r+" if path.exists() else "w", encoding="utf-8")
            # The last line of a batch that was cut off may lack its end.
            whole = content[: content.rfind("\n") + 1]
            self._stream.seek(len(whole.encode()))
            self._stream.truncate()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise StorageError(f"{path} cannot be written ({reason})", next_step="name another file") from error

    def has(self, file: Path) -> bool:
        return str(file) in self.done

    def add(self, transcribed: Transcribed) -> None:
        self._stream.write(json.dumps(transcribed.as_json(), ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def _files(lines: Iterable[str], path: Path) -> list[str]:
    files = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            files.append(str(json.loads(line)["file"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"line {number} of {path} is no result of aula transcribe", next_step="name another file"
            ) from error
    return files
