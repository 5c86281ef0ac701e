"""`aula demo`: what `make demo` runs."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from aula.assistant.asking import Asked, Listener, ask_file, ask_text, record_question
from aula.assistant.dialogue import Dialogue
from aula.assistant.packs import open_course
from aula.audio.loudspeaker import Loudspeaker
from aula.cli.output import notices, print_json, progress_bar, results
from aula.cli.waterfall import print_answer
from aula.core.errors import DeviceError, StorageError
from aula.core.settings import load_settings
from aula.core.types import Context
from aula.runtime import open_runtime

QUESTIONS = (
    ("What is conservation of momentum?", "en-us+f2"),
    ("How do I calculate kinetic energy?", "en-us"),
    ("What is an elastic collision?", "en-us+f3"),
)
"""Asked by three synthetic students: question and eSpeak NG voice. benchmarks/turn.py shows how others fare."""
CHINESE_QUESTION = "什么是惯性？"

NEXT = """\
[bold]Where to go next[/bold]
  aula ask --text "What is momentum?"   one typed question
  aula ask question.wav                 a recording, fed at speaking pace
  aula ask --mic                        your own voice
  aula course add lecture.pdf           your own course
  aula doctor                           what this machine can run\
"""


@click.command(short_help="Three spoken questions, answered aloud from a course.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where the questions and answers are written as WAV files.",
)
@click.option("--mute", is_flag=True, help="Do not play the answers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text; plays nothing.")
def demo(folder: Path, mute: bool, as_json: bool) -> None:
    """Build the engines, then let three synthetic students ask aloud and answer them from the course.

    The first run takes under a minute, later ones under twenty seconds, most of it the questions being spoken.

    \b
    Example:
      aula demo
    """
    _make_folder(folder)
    asked = asyncio.run(_demo(folder, mute or as_json, as_json))
    if as_json:
        print_json({"questions": asked})
    else:
        notices().print()
        results().print(NEXT)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder {folder} cannot be made ({error.strerror})",
            next_step="choose another: aula demo --folder PATH",
        ) from error


async def _demo(folder: Path, mute: bool, quiet: bool) -> list[dict[str, Any]]:
    settings = load_settings()
    console = results()
    english, chinese = Context(language="en"), Context(language="zh")
    rows: list[dict[str, Any]] = []

    def show(said: str, asked: Asked) -> None:
        rows.append({"said": said, **asked.as_json()})
        if not quiet:
            console.print()
            print_answer(console, asked)

    async with AsyncExitStack() as stack:
        with progress_bar(quiet=quiet) as report:
            runtime = await stack.enter_async_context(open_runtime(settings, progress=report))
            dialogue = Dialogue(runtime, await open_course(runtime, settings, "mechanics-en", report), settings)
            chinese_course = await open_course(runtime, settings, "mechanics-zh", report)
            report("loading", 0.5)
            await dialogue.warm(english, listening=True)
            recordings = [
                await record_question(runtime, text, voice, folder / f"question-{number}.wav", english)
                for number, (text, voice) in enumerate(QUESTIONS, 1)
            ]
        listeners: list[Listener] = []
        if not mute:
            try:
                listeners.append(await stack.enter_async_context(Loudspeaker(dialogue.rate)))
            except DeviceError:
                notices().print(f"No loudspeaker here; the answers are in {folder}/answer-*.wav.", style="yellow")
        for number, ((text, _), recording) in enumerate(zip(QUESTIONS, recordings, strict=True), 1):
            if not quiet:
                notices().print(f"\nA synthetic student asks aloud: {text}", style="dim")
            out = folder / f"answer-{number}.wav"
            show(text, await ask_file(runtime, dialogue, recording, settings, english, out, *listeners))
        if not quiet:
            notices().print(f"\nAnother types, in Chinese: {CHINESE_QUESTION}", style="dim")
        speaking_chinese = Dialogue(runtime, chinese_course, settings)
        out = folder / "answer-4.wav"
        asked = await ask_text(speaking_chinese, CHINESE_QUESTION, settings, chinese, runtime.clock, out, *listeners)
        show(CHINESE_QUESTION, asked)
        for listener in listeners:
            if isinstance(listener, Loudspeaker):
                await listener.drained()
    return rows
