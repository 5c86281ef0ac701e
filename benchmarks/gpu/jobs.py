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
    "whisper-1": "Whisper-small, one question",
    "whisper-64": "the same, 64 questions",
    "whisper-320": "the same, 320 questions, for in-flight",
}
"""In the order in which they are built: one that needs another comes later."""
PARTS = ("encoder", "decoder")
"""Whisper's may be built apart, with --part."""
NEED_QUANTISED = ("digits",)


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
