"""`aula captions`"""

import asyncio
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import TextIO

import click

from aula.assistant.captions import FORMS, Captioned, CaptionWriter, Form, caption_file, caption_frames
from aula.audio.decoding import open_audio
from aula.audio.microphone import Microphone
from aula.audio.streams import AudioStream, is_stream
from aula.cli.ask import push_to_talk
from aula.cli.output import notices, progress_bar
from aula.core.errors import ModelNotFoundError, StorageError
from aula.core.settings import Settings, load_settings
from aula.core.types import UNKNOWN_LANGUAGE, Context
from aula.runtime import open_hearing


@click.command(short_help="Captions of a recording or of what is said now.")
@click.argument("source", metavar="[FILE|URL|-]", required=False)
@click.option("--mic", is_flag=True, help="By microphone: Enter begins, Enter again ends.")
@click.option("--model", help="A Whisper: a folder, or owner/name on the hub; else the best at hand.")
@click.option("--language", default=UNKNOWN_LANGUAGE, help='What is spoken, like "en"; found if not given.')
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file instead, .vtt or .srt.")
@click.option("--format", "form", type=click.Choice(FORMS), help="WebVTT or SRT; by --out's name, else WebVTT.")
def captions(
    source: str | None, mic: bool, model: str | None, language: str, out: Path | None, form: Form | None
) -> None:
    """Write what is said, and when, as WebVTT or SRT. Captions are written as they come, in memory that does not grow
    with the lesson; at the end it is told how long after the words they were there.

    URL is an http or https address that brings sound for as long as it likes (an Icecast stream, say): WAV, AIFF, MP3,
    OGG Vorbis or Opus. - is the same from standard input; what else there is (RTSP, HLS), ffmpeg pipes in.

    Captions need a Whisper: aula pull openai/whisper-small.

    \b
    Example:
      aula captions lecture.mp3 --out lecture.vtt
      aula captions --mic --language en
      aula captions http://127.0.0.1:8000/lecture.mp3 --out lecture.vtt
      ffmpeg -i rtsp://camera.local/hall -f wav - | aula captions -
    """
    if mic == (source is not None):
        raise click.UsageError("give either a FILE, a URL or --mic; for example: aula captions lecture.mp3")
    settings = load_settings()
    if model is not None:
        settings = settings.replaced(whisper=model)
    stream = AudioStream(source) if source is not None and is_stream(source) else None
    file = Path(source) if source is not None and stream is None else None
    if file is not None:
        open_audio(file).close()
    chosen: Form = form or ("srt" if out is not None and out.suffix.lower() == ".srt" else "vtt")
    made = asyncio.run(_captions(settings, file, stream, language, out, chosen))
    _tell(made)


async def _captions(
    settings: Settings, file: Path | None, stream: AudioStream | None, language: str, out: Path | None, form: Form
) -> Captioned:
    async with AsyncExitStack() as stack:
        with progress_bar(quiet=False) as report:
            runtime = await stack.enter_async_context(open_hearing(settings, progress=report, last_resort=False))
            if not runtime.statistics().rungs:
                raise ModelNotFoundError(
                    "captions need a Whisper, and none is at hand", next_step="aula pull openai/whisper-small"
                )
            context = Context(language)
            if file is not None:
                seconds = _seconds(file)
                writer = CaptionWriter(_opened(stack, out), form)

                def watch(heard: float, _text: str) -> None:
                    report(f"{file.name}: {heard:.0f} s", min(heard / seconds, 0.99) if seconds else 0.5)

                return await caption_file(runtime, file, context, writer, watch)
        if stream is not None:
            await asyncio.to_thread(stack.enter_context, stream)
            return await caption_frames(
                runtime, stream.frames(), context, CaptionWriter(_opened(stack, out), form), _show
            )
        microphone = await stack.enter_async_context(Microphone())
        writer = CaptionWriter(_opened(stack, out), form)
        invitation = "Press Enter to begin, and Enter again to end."
        return await caption_frames(runtime, push_to_talk(microphone, invitation), context, writer, _show)


def _opened(stack: AsyncExitStack, out: Path | None) -> TextIO:
    if out is None:
        return sys.stdout
    try:
        return stack.enter_context(out.open("w", encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror})", next_step="name another file") from error


def _seconds(file: Path) -> float | None:
    with open_audio(file) as opened:
        return opened.seconds


def _show(_seconds: float, text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        room = max(10, shutil.get_terminal_size().columns - 6)
        click.echo(f"\r\x1b[K  … {text[-room:]}", nl=False, err=True)


def _tell(made: Captioned) -> None:
    line = f"{made.captions} captions of {made.seconds:.1f} s by {made.rung}"
    if made.lags:
        line += f"; {median(made.lags):.1f} s after the words in the median, {max(made.lags):.1f} s at the most"
    elif made.took > 0:
        line += f", in {made.took:.1f} s"
    notices().print(line, style="dim", markup=False)
