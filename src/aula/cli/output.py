"""How commands speak: results on standard output, everything else on standard error."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from aula.core.errors import AulaError

INTERRUPTED = 130
DEFECT = 1


def results() -> Console:
    """For what was asked for."""
    return Console(highlight=False, soft_wrap=False)


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
        # The reader of our output went away (| head): end quietly, and keep Python from complaining at exit.
        sys.stdout = None
        raise SystemExit(0) from None


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
    console.print(f"[red]✗[/red] {_plain(error.what.rstrip('.'))}.", soft_wrap=True)
    if error.available:
        console.print(f"  Available: {_plain(', '.join(error.available))}", soft_wrap=True)
    console.print(f"  Next: {_plain(error.next_step)}", soft_wrap=True)
    raise SystemExit(error.exit_code)


def report_defect(error: BaseException, *, debug: bool) -> NoReturn:
    """The last resort: something nobody foresaw."""
    if debug:
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    notices().print(
        f"[red]✗[/red] A defect of aula's, not of yours: {type(error).__name__}: {_plain(str(error))} "
        f"({where.name}, line {where.lineno}).\n  Next: run it again with AULA_DEBUG=1 and report what it prints.",
        soft_wrap=True,
    )
    raise SystemExit(DEFECT)


def _plain(text: str) -> str:
    """Text of ours or a user's that must not be read as markup."""
    return text.replace("[", r"\[")


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A callback for long work: what is being done, and the share done, 0 to 1. Each `what` gets no line of its
    own; one bar a piece of work that begins again at 0."""
    if quiet:
        yield lambda _what, _share: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=notices(), transient=True) as bars:
        task: TaskID = bars.add_task("", total=1.0, visible=False)

        def report(what: str, share: float) -> None:
            bars.update(task, description=what, completed=share, visible=share < 1.0)

        yield report
