"""Where each millisecond of a turn went, drawn to scale in the terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aula.assistant.asking import Asked

WIDTH = 22
NARROW = 72
"""Columns under which the figures are shown without bars."""
STAGES = ("transcribe", "understand", "retrieve", "answer", "speak_first_byte")


def print_answer(console: Console, asked: Asked) -> None:
    """Question, answer, where it stands in the course, and the waterfall."""
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("You", "bold cyan"), Text(asked.transcript, overflow="fold"))
    table.add_row(Text("aula", "bold green"), Text(asked.answer.text, overflow="fold"))
    for citation in asked.answer.citations:
        where = f"{citation.document} › {citation.passage}  (score {citation.score:.2f})"
        table.add_row("", Text(where, "dim"))
    console.print(table)
    if "speak" not in asked.rungs:
        console.print(
            Padding(Text("nothing here speaks this answer aloud; aula doctor says why", style="yellow"), (0, 0, 0, 6))
        )
    console.print(Padding(waterfall(asked, bars=console.width >= NARROW), (0, 0, 0, 6)))
    if asked.audio is not None:
        note = Text(f"{asked.audio_seconds:.1f} s of speech in {asked.audio}", style="dim", no_wrap=True)
        console.print(Padding(note, (0, 0, 0, 6)))


def waterfall(asked: Asked, *, bars: bool = True) -> Table:
    """Bars to one scale. Of a draft, the stages that ran while the student still spoke stand left of the commit, in
    another shade."""
    timings = asked.timings_ms
    total = timings["commit_to_first_audio"]
    ahead = STAGES[1:] if asked.drafted else ()
    scale = WIDTH / max(total + sum(timings[stage] for stage in ahead), 1e-9)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    if bars:
        table.add_column(no_wrap=True, min_width=WIDTH + 1)
        table.add_column(no_wrap=True)
    offset = 0.0
    for stage in (*ahead, "transcribe") if asked.drafted else STAGES:
        length = timings[stage] * scale
        start = min(round(offset), WIDTH - 1)
        filled = max(1, min(round(offset + length), WIDTH) - start)
        bar = Text(" " * start + "█" * filled, style="blue" if stage in ahead else "green")
        note = "held back" if stage in ahead else asked.rungs.get(stage, "")
        drawn = (bar, Text(note, style="dim")) if bars else ()
        table.add_row(stage, f"{timings[stage]:.1f} ms", *drawn)
        offset += length
    clock = "commit → first audio" if timings["transcribe"] else "Enter → first audio"
    table.add_row(Text(clock, style="bold"), Text(f"{total:.1f} ms", style="bold"))
    return table
