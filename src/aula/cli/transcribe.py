"""`aula transcribe`"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import click
from rich.markup import escape

from aula.assistant.transcribing import Results, Transcribed, transcribe_file
from aula.cli.output import notices, print_json, progress_bar, results
from aula.core.errors import AudioError, AulaError, SettingsError
from aula.core.settings import Settings, load_settings
from aula.core.types import UNKNOWN_LANGUAGE, Context
from aula.engine.precision import Progress
from aula.runtime import Runtime, open_hearing


@click.command(short_help="Recordings to texts.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False))
@click.option("--model", help="A Whisper: a folder, or owner/name on the hub; else the best at hand.")
@click.option("--language", default=UNKNOWN_LANGUAGE, help='What is spoken, like "en"; found if not given.')
@click.option("--timestamps", is_flag=True, help="Also when each segment is said.")
@click.option("--translate", is_flag=True, help="Write it in English, whatever is spoken (a multilingual Whisper).")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Append to this file, one JSON object a line; files that stand there already are passed over.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line and file.")
def transcribe(
    files: tuple[Path, ...],
    model: str | None,
    language: str,
    timestamps: bool,
    translate: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write down what is said in FILES (WAV, FLAC, MP3, OGG, Opus, AIFF), however long they are.

    The best Whisper at hand hears them: one that was pulled (aula pull openai/whisper-small), or --model. Without
    any, the English recogniser that ships with this package does; each result names the rung. Engines are built on
    first use. A file that cannot be used is told, the others go on, and the exit code is that of the first error.

    \b
    Example:
      aula transcribe lesson.mp3 --timestamps
      aula transcribe answers/*.wav --language en --json
      aula transcribe visita.mp3 --language it --translate
      aula transcribe lectures/*.flac --model ./whisper-small --out texts.jsonl
    """
    settings = load_settings()
    if model is not None:
        if model == "none":
            raise SettingsError("--model none leaves nothing that hears", next_step="name a folder or owner/name")
        settings = settings.replaced(whisper=model)
    kept = Results(out) if out is not None else None
    wanted = _Wanted(language, timestamps, translate)
    try:
        failed = asyncio.run(_transcribe(settings, files, model is None, wanted, kept, as_json))
    finally:
        if kept is not None:
            kept.close()
    if failed is not None:
        raise SystemExit(failed.exit_code)


@dataclass(frozen=True, slots=True)
class _Wanted:
    language: str
    timestamps: bool
    translate: bool


async def _transcribe(
    settings: Settings,
    files: tuple[Path, ...],
    last_resort: bool,
    wanted: _Wanted,
    kept: Results | None,
    as_json: bool,
) -> AulaError | None:
    """The first error of a file."""
    first: AulaError | None = None
    with progress_bar(quiet=as_json) as report:
        async with open_hearing(settings, progress=report, last_resort=last_resort) as runtime:
            for file in files:
                if kept is not None and kept.has(file):
                    continue
                try:
                    made = await _one(runtime, file, wanted, report)
                except AudioError as error:
                    first = first or error
                    _tell(file, error, as_json=as_json)
                    continue
                if kept is not None:
                    kept.add(made)
                if as_json:
                    print_json(made.as_json())
                elif kept is None:
                    _print(made, many=len(files) > 1)
    return first


async def _one(runtime: Runtime, file: Path, wanted: _Wanted, report: Progress) -> Transcribed:
    def watch(heard: float, seconds: float | None) -> None:
        of = f" of {_clock(seconds)}" if seconds else ""
        report(f"{file.name}: {_clock(heard)}{of}", min(heard / seconds, 0.99) if seconds else 0.5)

    context, times = Context(wanted.language), wanted.timestamps
    made = await transcribe_file(runtime, file, context, timestamps=times, translate=wanted.translate, watch=watch)
    report(file.name, 1.0)
    return made


def _print(made: Transcribed, *, many: bool) -> None:
    console = results()
    if many:
        console.print(f"[bold]{escape(str(made.file))}[/bold]", soft_wrap=True)
    if made.segments:
        for segment in made.segments:
            times = f"{_clock(segment.start)} – {_clock(segment.end)}"
            console.print(f"{times}  {segment.text}", markup=False, soft_wrap=True)
    else:
        console.print(made.text or "(nobody speaks)", markup=False, soft_wrap=True)
    notices().print(f"heard by {made.rung}", style="dim", markup=False)


def _tell(file: Path, error: AulaError, *, as_json: bool) -> None:
    if as_json:
        details = {"type": type(error).__name__, "message": error.what, "next_step": error.next_step}
        print_json({"file": str(file), "error": details})
    notices().print(f"[red]✗[/red] {escape(str(error))}", soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
