"""The jobs that build our side's engines: their names, whether they are done, and how they are started.

Nothing of TensorRT is imported here; `engines` does the work.
"""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.rows import Row

JOBS = {
    "bert-1x32": "BERT-base, fp16, one sentence of 32 tokens",
    "bert-64x32": "the same, 64 sentences",
    "bert-1x32-again": "the plan of bert-1x32 once more, with the timings that its first build left",
    "efficientnet": "EfficientNet-B0 at batch 32, fp16; int8 too with --quantised",
    "digits": "the trained EfficientNet of training/digits, fp16 and int8, with its top-1; needs --quantised",
    "efficientnet-2": "EfficientNet-B0 at TensorRT's level 2, which tries more kernels than the usual 1",
    "digits-2": "its top-1 at that level",
    "whisper-1": "Whisper-small, one question",
    "whisper-64": "the same, 64 questions",
    "whisper-64x256": "64 questions in windows of 256 positions, 5.12 s, for in-flight",
    "whisper-152x256": "the same, 152 questions",
    "whisper-304x256": "the same, 304 questions",
}
"""In the order in which they are built: one that needs another comes later."""
PARTS = ("encoder", "decoder")
"""Whisper's may be built apart, with --part."""
NEED_QUANTISED = ("digits", "digits-2")
EFFICIENTNETS = ("efficientnet", "efficientnet-2")
QUICK = 1
"""Builder optimisation level of the convolutional networks, unless their job's name says another. Level 3 had not
finished one of batch 32 after 265 s."""


POSITIONS = 250
"""Of the encoder in five seconds of sound."""


def whisper_sizes(job: str) -> tuple[int, int]:
    """Rows and positions of the engines of a job whisper-ROWS or whisper-ROWSxPOSITIONS, or of one of its parts."""
    rows, _, positions = job.partition(".")[0].removeprefix("whisper-").partition("x")
    return int(rows), int(positions or POSITIONS)


def level_of(job: str) -> int:
    """Of a job efficientnet, efficientnet-LEVEL, digits or digits-LEVEL."""
    return int(job.partition("-")[2] or QUICK)


def described() -> str:
    width = max(map(len, JOBS))
    return "jobs:\n" + "\n".join(f"  {name:<{width}}  {what}" for name, what in JOBS.items())


def left_by(work: Path, job: str) -> Path:
    """What a job leaves when it is done."""
    return work / "engines" / f"{job}.json"


def is_built(work: Path, job: str) -> bool:
    return left_by(work, job).exists() or all(left_by(work, f"{job}.{part}").exists() for part in PARTS)


def missing(work: Path, rows: Iterable[Row]) -> list[str]:
    wanted = {job for row in rows for job in row.jobs}
    return [job for job in JOBS if job in wanted and not is_built(work, job)]


def command(work: Path, job: str, quantised: Path | None = None) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.gpu.engines", "--work", str(work), "--job", job]
    return words + (["--quantised", str(quantised)] if quantised else [])


def spelled(work: Path, job: str, quantised: Path | None = None) -> str:
    """For people to copy."""
    words = ["python", *command(work, job, quantised)[1:]]
    if job in NEED_QUANTISED and quantised is None:
        words += ["--quantised", "FOLDER"]
    return shlex.join(words)
