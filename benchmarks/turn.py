"""Clock A: from the release of the button to the first sound of the answer, over 20 different questions.

    python -m benchmarks.turn [--repeat N] [--without-drafts] [--json]

Each question is spoken by one of several synthetic voices (eSpeak NG), gets 250 ms of silence before the release as
a hand leaves a button, and is fed in frames of 20 ms at speaking pace. The text that was recognised and the passage
that was cited are shown too: a fast wrong answer is no answer. Limits: synthetic voices speak more evenly than
people do, and every recogniser hears them far better than it hears people.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aula.assistant.asking import Asked, ask_file, record_question
from aula.assistant.dialogue import Dialogue
from aula.assistant.packs import open_course
from aula.bench.machine import machine, percentile
from aula.core.settings import Settings, load_settings
from aula.core.types import Context
from aula.runtime import Runtime, open_runtime

QUESTIONS = (
    ("What is inertia?", "Inertia"),
    ("What is terminal velocity?", "Terminal velocity"),
    ("What is the difference between mass and weight?", "Weight"),
    ("What is momentum?", "Momentum"),
    ("What is kinetic energy?", "Kinetic energy"),
    ("What is centripetal force?", "Centripetal force"),
    ("What is the law of gravitation?", "gravitation"),
    ("Why does a satellite stay in orbit?", "Satellites"),
    ("What is friction?", "Friction"),
    ("What is Hooke's law?", "Hooke"),
    ("What is an elastic collision?", "Elastic collisions"),
    ("What is power?", "Power"),
    ("What is efficiency?", "Efficiency"),
    ("What is free fall?", "Free fall"),
    ("What is a vector?", "Vectors"),
    ("What is acceleration?", "Acceleration"),
    ("What is the centre of mass?", "Centre of mass"),
    ("What is a lever?", "Levers"),
    ("What is pressure?", "Pressure"),
    ("What is buoyancy?", "Buoyancy"),
)
"""Question, and a word of the heading where the course answers it."""
VOICES = ("en-us", "en-gb", "en-us+f2", "en-gb+m3", "en-us+f3")


async def measure(repeat: int, *, drafts: bool) -> list[Asked]:
    settings = load_settings()
    # Answers come from the voice, not from what an earlier run left in the cache.
    settings = settings.replaced(speech__cache_mb=0)
    if not drafts:
        settings = settings.replaced(turn__draft_after_ms=5000)
    context = Context(language="en")
    asked: list[Asked] = []
    async with open_runtime(settings) as runtime:
        course = await open_course(runtime, settings, "mechanics-en")
        dialogue = Dialogue(runtime, course, settings)
        await dialogue.warm(context, listening=True)
        with tempfile.TemporaryDirectory() as folder:
            for round_number in range(repeat):
                for number, (text, _) in enumerate(QUESTIONS):
                    voice = VOICES[(number + round_number) % len(VOICES)]
                    path = await record_question(runtime, text, voice, Path(folder) / "question.wav", context)
                    asked.append(await _ask(runtime, dialogue, path, settings, context))
    return asked


async def _ask(runtime: Runtime, dialogue: Dialogue, path: Path, settings: Settings, context: Context) -> Asked:
    return await ask_file(runtime, dialogue, path, settings, context, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1, help="rounds over the 20 questions, each in other voices")
    parser.add_argument("--without-drafts", action="store_true", help="answer only after the commit")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    asked = asyncio.run(measure(options.repeat, drafts=not options.without_drafts))
    rows = list(zip(QUESTIONS * options.repeat, asked, strict=True))
    times = [row.timings_ms["commit_to_first_audio"] for row in asked]
    right = [any(word.lower() in c.passage.lower() for c in row.answer.citations) for (_, word), row in rows]
    summary = {
        "benchmark": "turn",
        "questions": len(asked),
        "p50_ms": round(percentile(times, 0.50), 1),
        "p95_ms": round(percentile(times, 0.95), 1),
        "max_ms": round(max(times), 1),
        "right_passage": sum(right),
        "refused": sum(row.answer.refused for row in asked),
        "drafted": sum(row.drafted for row in asked),
        "drafts": not options.without_drafts,
        "stages_p50_ms": {
            stage: round(percentile([row.timings_ms[stage] for row in asked], 0.5), 2)
            for stage in ("transcribe", "understand", "retrieve", "answer", "speak_first_byte")
        },
        "machine": machine(),
    }
    if not options.json:
        _print(rows, right, summary)
    print(json.dumps(summary, ensure_ascii=False))


def _print(rows: list[tuple[tuple[str, str], Asked]], right: list[bool], summary: dict[str, object]) -> None:
    table = Table(title="Clock A: commit to first audio", header_style="bold", box=None)
    for column in ("asked", "heard", "cited", "draft", "transcribe ms", "clock A ms"):
        table.add_column(column, justify="right" if column.endswith("ms") else "left")
    for ((text, _), asked), found in zip(rows, right, strict=True):
        cited = asked.answer.citations[0].passage if asked.answer.citations else "refused"
        timings = asked.timings_ms
        table.add_row(
            text,
            asked.transcript,
            ("" if found else "✗ ") + cited,
            "yes" if asked.drafted else "no",
            f"{timings['transcribe']:.1f}",
            f"{timings['commit_to_first_audio']:.1f}",
        )
    console = Console(width=150)
    console.print(table)
    console.print(f"p50 {summary['p50_ms']} ms, p95 {summary['p95_ms']} ms; {summary['machine']}", highlight=False)


if __name__ == "__main__":
    main()
