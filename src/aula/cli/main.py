"""The command `aula`. Each command lives in a file of its own."""

import os
import signal
import sys

import click

from aula import __version__
from aula.cli.ask import ask
from aula.cli.bench import bench
from aula.cli.build import build, inspect, verify_bundle
from aula.cli.bundle import bundle
from aula.cli.captions import captions
from aula.cli.course import course
from aula.cli.demo import demo
from aula.cli.doctor import doctor
from aula.cli.export import export
from aula.cli.key import key
from aula.cli.output import failures, prepare_streams, print_json, report_defect
from aula.cli.pull import pull
from aula.cli.remove import remove
from aula.cli.serve import serve_command
from aula.cli.simulate import simulate
from aula.cli.transcribe import transcribe

EXIT_CODES = """\b
Exit codes:
  0   answered; an honest "this course does not say" is an answer too
  1   a defect of aula's
  2   bad options or settings
  3   unusable audio or text
  4   a course or document is missing, empty or unreadable
  5   a model or engine is missing or broken
  6   no microphone or loudspeaker
  7   nothing was heard
  8   a language that nothing here hears, reads or speaks
  9   storage: no permission, no space, a damaged library
  10  the deadline passed
  11  too busy: refused before it was tried
  12  no key, or none that opens this door
  130 interrupted (Ctrl-C)
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, "--version", "-V", prog_name="aula")
def cli() -> None:
    """Real-time AI for the classroom: a student asks aloud, the answer sounds at once, from the course.

    \b
    Start here:
      aula demo                            three spoken questions, answered aloud
      aula ask --text "What is inertia?"   one typed question
      aula course add lecture.pdf          your own course
      aula serve                           for the clients and pages of a school
    """


for command in (
    ask,
    transcribe,
    captions,
    course,
    doctor,
    demo,
    build,
    inspect,
    verify_bundle,
    bundle,
    pull,
    export,
    bench,
    simulate,
    remove,
    serve_command,
    key,
):
    # click keeps the help option of whoever is asked first, alone or as a part of the group.
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    cli.add_command(command)


def _interrupt(_number: int, _frame: object) -> None:
    """A polite request to end is treated like Ctrl-C, so that drafts are removed."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: whatever happens, a user sees a message and an exit code, never a traceback."""
    prepare_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with failures(as_json="--json" in sys.argv):
            cli.main(standalone_mode=False)
    except click.ClickException as error:
        if "--json" in sys.argv:
            print_json({"error": {"type": "UsageError", "message": error.format_message(), "next_step": "aula --help"}})
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except SystemExit as end:
        # click wraps the output and ends with 1 when its reader goes away (| head), which is nobody's error.
        if end.code == 1 and type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            raise SystemExit(0) from None
        raise
    except Exception as error:  # the outermost line of defence
        report_defect(error, debug=bool(os.environ.get("AULA_DEBUG")))
