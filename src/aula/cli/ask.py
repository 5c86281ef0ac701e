"""`aula ask`"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import click

from aula.assistant.asking import Asked, Listener, ask_file, ask_frames, ask_text, checked_text, language_of
from aula.assistant.dialogue import Dialogue
from aula.assistant.languages import SERVED
from aula.assistant.packs import open_course
from aula.audio.decoding import open_audio
from aula.audio.loudspeaker import Loudspeaker
from aula.audio.microphone import Microphone
from aula.cli.output import notices, print_json, progress_bar, results
from aula.cli.waterfall import print_answer
from aula.core.errors import DeviceError, StorageError
from aula.core.settings import Settings, load_settings
from aula.core.types import Context, Float32
from aula.runtime import open_runtime


@click.command(short_help="Ask a course one question, aloud or in writing.")
@click.argument("file", required=False, type=click.Path(path_type=Path, readable=False))
@click.option("--text", help="A typed question instead of a recording.")
@click.option("--mic", is_flag=True, help="Ask by microphone: Enter starts, Enter again ends (push-to-talk).")
@click.option("--course", help="Which course to ask; see: aula course list.")
@click.option(
    "--language",
    type=click.Choice(SERVED),
    help='What is spoken or typed, "en" or "zh"; found from text or course if not given.',
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the spoken answer to this WAV file.")
@click.option("--fast", is_flag=True, help="Read FILE as fast as possible instead of at speaking pace.")
@click.option("--mute", is_flag=True, help="Do not play the answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text; plays nothing.")
def ask(
    file: Path | None,
    text: str | None,
    mic: bool,
    course: str | None,
    language: str | None,
    out: Path | None,
    fast: bool,
    mute: bool,
    as_json: bool,
) -> None:
    """Ask a course one question: a recording (WAV, FLAC, MP3, OGG, Opus), a microphone, or text.

    FILE is fed at speaking pace, so that the measured times are those of a live class. The answer is spoken
    and shown with the passages it comes from.

    \b
    Example:
      aula ask question.wav
      aula ask --text "What is terminal velocity?" --out answer.wav
      aula ask --mic --course mechanics-en
    """
    if sum((file is not None, text is not None, mic)) != 1:
        raise click.UsageError("give exactly one of FILE, --text or --mic; for example: aula ask question.wav")
    settings = load_settings()
    _check_first(settings, file, text, out)
    asked = asyncio.run(_ask(settings, file, text, course, language, out, fast, mute, as_json))
    if as_json:
        print_json(asked.as_json())
    else:
        print_answer(results(), asked)


async def _ask(
    settings: Settings,
    file: Path | None,
    text: str | None,
    course_name: str | None,
    language: str | None,
    out: Path | None,
    fast: bool,
    mute: bool,
    quiet: bool,
) -> Asked:
    async with AsyncExitStack() as stack:
        with progress_bar(quiet=quiet) as report:
            runtime = await stack.enter_async_context(open_runtime(settings, progress=report))
            course = await open_course(runtime, settings, course_name, report)
            spoken_language = language or (language_of(text, course.info.language) if text else course.info.language)
            context = Context(language=spoken_language)
            dialogue = Dialogue(runtime, course, settings)
            await dialogue.warm(context, listening=text is None)
        listeners: list[Listener] = []
        if not mute and not quiet:
            if (loudspeaker := await _loudspeaker(stack, dialogue.rate)) is not None:
                listeners.append(loudspeaker)
            elif out is None:
                notices().print("No loudspeaker here: add --out answer.wav to keep the spoken answer.", style="dim")
        watch = None if quiet else _show_partial
        if text is not None:
            asked = await ask_text(dialogue, text, settings, context, runtime.clock, out, *listeners)
        elif file is not None:
            asked = await ask_file(
                runtime, dialogue, file, settings, context, out, *listeners, live=not fast, watch=watch
            )
        else:
            microphone = await stack.enter_async_context(Microphone())
            frames = push_to_talk(microphone, "Press Enter, ask, and press Enter again.")
            asked = await ask_frames(runtime, dialogue, frames, settings, context, out, *listeners, watch=watch)
        if watch is not None and _terminal():
            click.echo("\r\x1b[K", nl=False, err=True)
        for listener in listeners:
            if isinstance(listener, Loudspeaker):
                await listener.drained()
        return asked


async def _loudspeaker(stack: AsyncExitStack, rate: int) -> Loudspeaker | None:
    """The loudspeaker, or None where there is none: the answer is still shown, and written with --out."""
    try:
        return await stack.enter_async_context(Loudspeaker(rate))
    except DeviceError:
        return None


async def push_to_talk(microphone: Microphone, invitation: str) -> AsyncIterator[Float32]:
    """Frames between two presses of Enter."""
    notices().print(invitation)
    await _enter()
    notices().print("Listening…", style="bold green")
    released = asyncio.create_task(_enter())
    released.add_done_callback(lambda _: microphone.stop())
    try:
        async for frame in microphone.record():
            yield frame
    finally:
        released.cancel()


async def _enter() -> None:
    """One line, or the end, of standard input."""
    line: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        sys.stdin.readline()
        if not line.done():
            line.set_result(None)

    try:
        loop.add_reader(descriptor, read)
    except (NotImplementedError, PermissionError) as error:
        raise DeviceError(
            "push-to-talk needs a terminal that can be waited on", next_step="record to a file: aula ask question.wav"
        ) from error
    try:
        await line
    finally:
        loop.remove_reader(descriptor)


def _show_partial(text: str) -> None:
    if _terminal():
        room = max(10, shutil.get_terminal_size().columns - 6)
        click.echo(f"\r\x1b[K  … {text[-room:]}", nl=False, err=True)


def _terminal() -> bool:
    """Whether standard error is a terminal on which a line can be written over."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _check_first(settings: Settings, file: Path | None, text: str | None, out: Path | None) -> None:
    """What can be judged without a model is judged before any is loaded. Raises InputError and StorageError."""
    if text is not None:
        checked_text(text, settings)
    if file is not None:
        open_audio(file).close()
    if out is None:
        return
    if not out.absolute().parent.is_dir():
        raise StorageError(
            f"there is no folder {out.parent} to write the answer to", next_step="make it, or name another"
        )
    if file is not None and out.exists() and out.samefile(file):
        raise StorageError(f"{out} is the question itself", next_step="write the answer to another file")
