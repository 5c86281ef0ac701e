"""Speech in files of some minutes: one JSON file of clips beside one file of sound, all clips end to end.

The sound is int16 at 16 kHz (`.npy`: quick, for a machine's own disk) or Ogg Opus (`.ogg`: small, to be carried).

    python -m training.recogniser.shards CARRIED UNPACKED     makes the former of the latter
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from training.recogniser.voices import RATE

Int16 = NDArray[np.int16]


@dataclass(frozen=True)
class Clip:
    """`source` is a voice or a corpus; `speaker`, `age` and `gender` are empty for synthetic voices."""

    text: str
    source: str
    samples: int
    speaker: str = ""
    age: str = ""
    gender: str = ""


def write(folder: Path, name: str, listed: Sequence[Clip], sound: Sequence[Int16], *, opus: bool = False) -> Path:
    """The JSON file is written last: a shard that can be seen is whole."""
    flat = np.concatenate(sound)
    if opus:
        soundfile.write(folder / f"{name}.ogg", flat, RATE, format="OGG", subtype="OPUS", compression_level=0.955)
    else:
        np.save(folder / f"{name}.npy", flat)
    unfinished = folder / f"{name}.partial"
    unfinished.write_text(json.dumps([asdict(clip) for clip in listed]), "utf-8")
    return unfinished.rename(folder / f"{name}.json")


def clips(file: Path) -> list[Clip]:
    return [Clip(**fields) for fields in json.loads(file.read_text("utf-8"))]


def read(file: Path) -> tuple[list[Clip], Int16]:
    """The clips of a JSON file and their samples, end to end. Raises ValueError where the two do not fit."""
    listed = clips(file)
    plain = file.with_suffix(".npy")
    if plain.exists():
        flat: Int16 = np.load(plain)
    else:
        flat, rate = soundfile.read(file.with_suffix(".ogg"), dtype="int16")
        if rate != RATE:
            raise ValueError(f"{file.with_suffix('.ogg')} holds {rate} Hz, not {RATE}: pack it again")
    total = sum(clip.samples for clip in listed)
    if len(flat) != total:
        raise ValueError(f"{file} lists {total} samples, the sound beside it holds {len(flat)}: make the shard again")
    return listed, flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("carried", type=Path)
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.unpacked.mkdir(parents=True, exist_ok=True)
    files = sorted(options.carried.glob("*.json"))
    with ProcessPoolExecutor(options.processes) as pool:
        samples = sum(pool.map(partial(_unpack, options.unpacked), files))
    print(f"{len(files)} shards, {samples / RATE / 3600:.2f} h")


def _unpack(folder: Path, file: Path) -> int:
    listed, flat = read(file)
    write(folder, file.stem, listed, [flat])
    return len(flat)


if __name__ == "__main__":
    main()
