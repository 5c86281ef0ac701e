"""Recorded clips and what is said in them, from a list that a person wrote.

A list is a text file with a file's name, a tab and its text on each line; names are relative to the list. A first
line that names its columns ("file", "text") is passed over, and so are further columns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aula.audio.decoding import read_audio
from aula.core.errors import CalibrationError
from aula.core.types import Float32

LIST = "transcripts.tsv"
"""The list's name where a folder is given."""

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif"})
LONGEST = 30.0
"""Seconds: Whisper's window."""

_NEXT = "write lines like: clips/one.wav<TAB>What is inertia?"


@dataclass(frozen=True, slots=True)
class Clip:
    """`text` is None where nobody wrote down what is said."""

    file: Path
    text: str | None = None

    def samples(self) -> Float32:
        """float32 [n] at 16 kHz. Raises AudioTooLongError above 30 s, and what `read_audio` raises."""
        return read_audio(self.file, LONGEST).samples


def read_clips(path: Path) -> list[Clip]:
    """Labelled clips: from a list, or from the list named transcripts.tsv in a folder. The sound is not read yet.

    Raises CalibrationError naming the line at fault.
    """
    listed = path / LIST if path.is_dir() else path
    clips: list[Clip] = []
    for number, line in enumerate(_lines(listed), 1):
        name, tab, rest = line.partition("\t")
        text = rest.split("\t")[0].strip()
        file = listed.parent / name.strip()
        if number == 1 and name.strip().casefold() in ("file", "path", "audio") and not file.exists():
            continue
        if not (tab and name.strip() and text):
            raise CalibrationError(
                f"line {number} of {listed.name} is not a file's name, a tab and its text", next_step=_NEXT
            )
        if not file.is_file():
            raise CalibrationError(
                f"line {number} of {listed.name} names {name.strip()}, which {listed.parent} does not have",
                available=sorted(entry.name for entry in listed.parent.glob("*"))[:8],
                next_step="write names relative to the list",
            )
        clips.append(Clip(file, text))
    if not clips:
        raise CalibrationError(f"{listed} lists no clip", next_step=_NEXT)
    return clips


def read_sounds(path: Path) -> list[Clip]:
    """Clips whose text does not matter: those of a list, or every recording under a folder. Raises CalibrationError."""
    if not path.is_dir():
        return read_clips(path)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise CalibrationError(
            f"there is no recording under {path}", available=sorted(SUFFIXES), next_step="name a folder of recordings"
        )
    return [Clip(file) for file in files]


def digest(clips: Sequence[Clip]) -> str:
    """SHA-256 of every clip's bytes and text, in order; where the files lie does not matter."""
    whole = hashlib.sha256()
    for clip in clips:
        try:
            with clip.file.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CalibrationError(
                f"{clip.file} cannot be read ({error.strerror})", next_step="mend its permissions, or leave it out"
            ) from error
        whole.update(f"{content}\t{clip.text or ''}\n".encode())
    return whole.hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path} cannot be read as text ({error})",
            next_step=f"give a UTF-8 list of clips, or a folder with {LIST}; {_NEXT}",
        ) from error
