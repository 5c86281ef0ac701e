"""People's speech as shards: train, dev and test, by speakers that never meet.

    python -m training.recogniser.corpora OUT --shared ../shared/data

Trains: speechocean762's training speakers but five (CC BY 4.0), four of the six digit speakers (CC BY-SA 4.0), a
LibriVox reader (public domain). Dev: the five. Test: speechocean762's test speakers, LJSpeech, the other two digit
speakers, a president and PocketSphinx's own clips.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from training.recogniser import shards
from training.recogniser.spelling import number, said
from training.recogniser.texts import table
from training.recogniser.voices import RATE, at_16k, trimmed

DEV_SPEAKERS = 5
DIGIT_TEST_SPEAKERS = ("theo", "yweweler")
CLIPS_A_SHARD = 160


@dataclass(frozen=True)
class Recording:
    file: Path
    text: str
    source: str
    speaker: str
    age: str = ""
    gender: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    halves: dict[str, list[Recording]] = {"train": [], "dev": [], "test": []}
    for half, recording in recordings(options.shared):
        if recording.file.exists():
            halves[half].append(recording)
    work = []
    for half, found in halves.items():
        (options.out / half).mkdir(parents=True, exist_ok=True)
        # By source, so that the name of a shard says what is in it.
        found.sort(key=lambda recording: recording.source)
        work += [(options.out / half, f"{half}-{n:03}", part) for n, part in enumerate(_parts(found))]
    with ProcessPoolExecutor(options.processes) as pool:
        for folder, name, seconds in pool.map(_shard, work):
            print(f"{folder.name} {name} {seconds / 60:.1f} min")


def recordings(shared: Path) -> Iterator[tuple[str, Recording]]:
    """Every transcribed English recording, with the half it belongs to."""
    folder = shared / "train_speechocean762"
    rows = list(table(folder / "manifest.tsv")) if folder.exists() else []
    by_age = sorted({(int(row["age"]), row["speaker"]) for row in rows})
    dev = {speaker for _, speaker in by_age[12 :: max(1, len(by_age) // DEV_SPEAKERS)]}
    for row in rows:
        half = "dev" if row["speaker"] in dev else "train"
        yield half, _learner(folder / "ogg" / f"{row['utt']}.ogg", row)
    folder = shared / "speech_en_speechocean762"
    for row in table(folder / "manifest.tsv"):
        yield "test", _learner(folder / "wav" / f"{row['utt']}.wav", row)
    for file in sorted((shared / "speech_en_digits_fsdd/wav").glob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        half = "test" if speaker in DIGIT_TEST_SPEAKERS else "train"
        yield half, Recording(file, number(int(digit)), "fsdd", speaker)
    folder = shared / "speech_en_ljspeech"
    with (folder / "metadata_wav.csv").open(encoding="utf-8") as lines:
        for line in csv.DictReader(lines, delimiter="|", quoting=csv.QUOTE_NONE):
            file = folder / "wav" / Path(line["audio_file"]).name
            yield "test", Recording(file, line["transcription"], "ljspeech", "lj", "adult", "f")
    folder = shared / "speech_en_misc"
    for row in table(folder / "transcripts.tsv"):
        austen = "sense_and_sensibility" in row["file"]
        if row["file"].endswith(".wav"):
            source = "librivox" if austen else "misc"
            yield "train" if austen else "test", Recording(folder / row["file"], row["text"], source, source)


def _parts(found: list[Recording]) -> Iterator[list[Recording]]:
    rest = iter(found)
    while part := list(islice(rest, CLIPS_A_SHARD)):
        yield part


def _learner(file: Path, row: dict[str, str]) -> Recording:
    return Recording(file, row["text"], "speechocean762", row["speaker"], row["age"], row["gender"])


def _shard(work: tuple[Path, str, Iterable[Recording]]) -> tuple[Path, str, float]:
    folder, name, found = work
    clips, sound = [], []
    for recording in found:
        text = said(recording.text)
        if text is None:
            continue
        samples, rate = soundfile.read(recording.file, dtype="float32", always_2d=True)
        mono = trimmed(at_16k(samples.mean(axis=1), rate), keep=0.25)
        level = 0.3 / max(1e-3, float(np.abs(mono).max()))
        sound.append((mono * level * 32767).astype(np.int16))
        clips.append(shards.Clip(text, recording.source, len(mono), recording.speaker, recording.age, recording.gender))
    shards.write(folder, name, clips, sound)
    return folder, name, sum(clip.samples for clip in clips) / RATE


if __name__ == "__main__":
    main()
