"""How commands speak: results on standard output, everything else on standard error."""

import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from aula.core.errors import AulaError, StorageError

INTERRUPTED = 130
DEFECT = 1


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """The reader of our output went away (| head): not an error of anybody's."""
        raise BrokenPipeError


def results() -> Console:
    """For what was asked for."""
    return _Results(highlight=False, soft_wrap=False)


def notices() -> Console:
    """For progress and advice."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


@contextmanager
def failures(*, as_json: bool) -> Iterator[None]:
    """End the process as the documentation says: a message with the next step and the error's exit code.

    A defect of ours says so in one line; AULA_DEBUG=1 shows its traceback.
    """
    try:
        yield
    except AulaError as error:
        _end(error, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        notices().print("\nInterrupted; nothing was left half done.", style="yellow")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        if error.errno == errno.EPIPE:
            end_quietly()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = StorageError("there is no space left to write to", next_step="free some space and run it again")
        _end(full, as_json=False)


def end_quietly() -> NoReturn:
    """Nobody reads our output any more: end, and keep Python from complaining at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(0)


def prepare_streams() -> None:
    """A terminal that cannot show a character shows a question mark, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end(error: AulaError, *, as_json: bool) -> NoReturn:
    if as_json:
        details = {
            "type": type(error).__name__,
            "message": error.what,
            "available": list(error.available),
            "next_step": error.next_step,
        }
        print_json({"error": details})
    console = notices()
    console.print(f"[red]✗[/red] {escape(error.what.rstrip('.'))}.", soft_wrap=True)
    if error.available:
        console.print(f"  Available: {escape(', '.join(error.available))}", soft_wrap=True)
    console.print(f"  Next: {escape(error.next_step)}", soft_wrap=True)
    raise SystemExit(error.exit_code)


def report_defect(error: BaseException, *, debug: bool) -> NoReturn:
    """The last resort: something nobody foresaw."""
    if debug:
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    notices().print(
        f"[red]✗[/red] A defect of aula's, not of yours: {type(error).__name__}: {escape(str(error))} "
        f"({where.name}, line {where.lineno}).\n  Next: run it again with AULA_DEBUG=1 and report what it prints.",
        soft_wrap=True,
    )
    raise SystemExit(DEFECT)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, str, float], None]]:
    """As `progress_bar`, for several pieces of work at once: a callback whose first word names the piece."""
    if quiet:
        yield lambda _name, _what, _share: None
        return
    with _bars() as bars:
        tasks: dict[str, TaskID] = {}

        def report(name: str, what: str, share: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task("", total=1.0)
            bars.update(tasks[name], description=f"{name}: {what}", completed=share)

        yield report


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A callback for long work: what is being done, and the share done, 0 to 1. Each `what` gets no line of its
    own; one bar a piece of work that begins again at 0."""
    if quiet:
        yield lambda _what, _share: None
        return
    with _bars() as bars:
        task: TaskID = bars.add_task("", total=1.0, visible=False)

        def report(what: str, share: float) -> None:
            bars.update(task, description=what, completed=share, visible=share < 1.0)

        yield report


def _bars() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=notices(), transient=True)
