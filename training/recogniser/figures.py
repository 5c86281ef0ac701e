"""What a packaged recogniser can do, measured as it is served: words, course questions, time and memory.

    python -m training.recogniser.figures FOLDER --cost      time and memory alone, in a process of their own

Needs no PyTorch. Texts are heard through `CtcTranscriber`, on the engine that a user's machine builds.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from aula.core.errors import NothingHeardError
from aula.core.settings import Settings, load_settings
from aula.core.types import SPEECH_RATE, Context, Float32, TranscribeRequest
from aula.models.ctc_beam import Word
from aula.models.ctc_rung import open_transcriber
from aula.models.ctc_transcriber import CtcTranscriber
from aula.models.word_errors import word_errors, words
from aula.serving.memory import resident_bytes
from training.recogniser.calibrate import Tried
from training.recogniser.corpora import Recording, recordings
from training.recogniser.questions import COURSES, Spoken
from training.recogniser.spelling import said
from training.recogniser.voices import RATE, at_16k

FEED = SPEECH_RATE // 50
"""Samples of 20 ms, as a class sends them."""
ASKED_SECONDS = 5
TIMES = 30
MOST_CLIPS = 400
"""Of one corpus, so that a run takes minutes."""


@dataclass(frozen=True)
class Cost:
    """`rtf` in seconds a second on one core; `commit_ms` from the commit to the text of ASKED_SECONDS, the median and
    what nine of ten keep; `opened_mb` is what opening and hearing added to the process."""

    rtf: float
    commit_ms: float
    commit_worst_ms: float
    opened_mb: float
    process_mb: float
    engine: str
    seconds: int = ASKED_SECONDS


def recorded(shared: Path, half: str) -> Iterator[Spoken]:
    """People's clips of "dev" or "test", at most MOST_CLIPS a corpus, spread over all."""
    found: dict[str, list[Recording]] = {}
    for where, recording in recordings(shared):
        if where == half and recording.file.exists():
            found.setdefault(recording.source, []).append(recording)
    for source, clips in found.items():
        for clip in clips[:: max(1, -(-len(clips) // MOST_CLIPS))]:
            text = said(clip.text)
            if text is None:
                continue
            samples, rate = soundfile.read(clip.file, dtype="float32", always_2d=True)
            groups = [source]
            if clip.age.isdigit():
                child = "children" if int(clip.age) < 16 else "adults"
                groups += [f"{source}, {child}", f"{source}, {child}, {clip.gender}"]
            yield Spoken(text, at_16k(samples.mean(axis=1), rate), tuple(groups))


def other_sounds(shared: Path, count: int) -> Iterator[Spoken]:
    """What nobody should understand: Mandarin, and noise."""
    files = sorted((shared / "speech_zh_aishell").rglob("*.wav"))
    for file in files[:: max(1, len(files) // count)][:count]:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        yield Spoken("", at_16k(samples.mean(axis=1), rate), ("mandarin",))
    rng = np.random.default_rng(8)
    for _ in range(count // 4):
        yield Spoken("", rng.normal(0, 10 ** rng.uniform(-3, -1), 3 * RATE).astype(np.float32), ("noise",))


def heard(transcriber: CtcTranscriber, sound: Float32, request: TranscribeRequest) -> list[Word]:
    stream = transcriber.start(request, Context("en"))
    frame = transcriber.hearing.frame_seconds
    try:
        stream.feed(sound)
        transcript = stream.commit()
    except NothingHeardError:
        return []
    return [
        Word(word.text, round(word.start / frame), round(word.end / frame), word.confidence)
        for word in transcript.words
    ]


def listen(transcriber: CtcTranscriber, clips: Sequence[Spoken], request: TranscribeRequest) -> list[Tried]:
    return [Tried(clip.text, heard(transcriber, clip.sound, request)) for clip in clips]


def error_rates(clips: Sequence[Spoken], tried: Sequence[Tried]) -> dict[str, tuple[float, int]]:
    """Word error rate and clips of every group."""
    counts: dict[str, list[int]] = {}
    for clip, one in zip(clips, tried, strict=True):
        reference = words(one.said)
        wrong = word_errors(reference, words(" ".join(word.text for word in one.heard)))
        for group in clip.groups:
            row = counts.setdefault(group, [0, 0, 0])
            row[0] += wrong
            row[1] += len(reference)
            row[2] += 1
    return {group: (wrong / max(1, total), clips) for group, (wrong, total, clips) in sorted(counts.items())}


def found_share(texts: Sequence[str], rows: Sequence[dict[str, str]], settings: Settings) -> float:
    """Of the questions, as they were heard, those whose passage is among the five best."""
    from aula.assistant.courses import CourseLibrary
    from aula.assistant.retrieval import Retriever
    from aula.models.bert import SentenceEncoder

    encoder = SentenceEncoder.minilm(settings)
    with tempfile.TemporaryDirectory() as folder:
        library = CourseLibrary(Path(folder))
        library.add(COURSES / "mechanics-en", embed=encoder.embed, embedder="minilm")
        retriever = Retriever(library.load("mechanics-en"))
        found = 0
        for text, row in zip(texts, rows, strict=True):
            embedding = encoder.embed([text])[0] if text else None
            hits = retriever.search(text, "en", embedding) if text else []
            found += any(
                Path(hit.passage.document).name == row["document"] and hit.passage.headings[-1] == row["heading"]
                for hit in hits
            )
    encoder.close()
    return found / len(rows)


def course_request() -> TranscribeRequest:
    """The project's course, as a dialogue hands it to the recogniser."""
    from aula.assistant.languages import sentences

    folder = COURSES / "mechanics-en"
    lines = [
        line
        for file in sorted(folder.glob("*-*.md"))
        for line in file.read_text("utf-8").split("---\n", 2)[2].splitlines()
    ]
    texts = [line.lstrip("# ") for line in lines if line.strip()]
    return TranscribeRequest(tuple(one for text in texts for one in sentences(text, "en")), "mechanics-en")


def measure_cost(folder: Path, request: TranscribeRequest | None = None) -> Cost:
    """In this process, whose memory before and after is compared: run it in one of its own (see `--cost`)."""
    before = resident_bytes()
    settings = load_settings()
    transcriber = open_transcriber(folder, settings)
    request = request or course_request()
    sound = read_question(ASKED_SECONDS)
    run(transcriber, sound, request)
    after = resident_bytes()
    spent, commits = [], []
    for _ in range(TIMES):
        cpu, committed = run(transcriber, sound, request)
        spent.append(cpu / ASKED_SECONDS)
        commits.append(committed)
    engine = f"{transcriber.hearing.backend} with {settings.whole('threads') or 'all'} threads"
    transcriber.close()
    commits.sort()
    return Cost(
        float(np.median(spent)), 1000 * commits[TIMES // 2], 1000 * commits[int(TIMES * 0.9)],
        (after - before) / 1e6, after / 1e6, engine,
    )  # fmt: skip


def run(transcriber: CtcTranscriber, sound: Float32, request: TranscribeRequest) -> tuple[float, float]:
    """Processor seconds of the whole question, fed in pieces of 20 ms, and seconds from the commit to the text."""
    began = time.process_time()
    stream = transcriber.start(request, Context("en"))
    for start in range(0, len(sound), FEED):
        stream.feed(sound[start : start + FEED])
    committed = time.perf_counter()
    with contextlib.suppress(NothingHeardError):
        stream.commit()
    return time.process_time() - began, time.perf_counter() - committed


def read_question(seconds: int) -> Float32:
    """Speech of eSpeak NG, exactly so long."""
    from aula.models.ctc_task import spoken

    sounds = [sound for sound, _ in spoken().sounds()[:8]]
    flat = np.concatenate(sounds)[: seconds * SPEECH_RATE]
    return np.pad(flat, (0, seconds * SPEECH_RATE - len(flat)))


def cost_apart(folder: Path, home: Path) -> Cost:
    """In a process that has done nothing else, on one core."""
    environment = os.environ | {"AULA_HOME": str(home), "AULA_THREADS": "1"}
    command = [sys.executable, "-m", "training.recogniser.figures", str(folder), "--cost"]
    # The first builds the engine for one thread, which takes memory of its own; the second opens it, as every later
    # process does.
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the process that measures ended with {done.returncode}: {done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cost", action="store_true", required=True)
    print(json.dumps(measure_cost(parser.parse_args().folder).__dict__))


if __name__ == "__main__":
    main()
