"""The documents say what the program does. `make docs` writes the generated pages anew."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aula.cli.main import cli
from aula.core.settings import TABLE
from aula.core.telemetry import METRICS

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh.md")
WRITTEN = [*READMES, "CONTRIBUTING.md", "docs/engines.md", "docs/isolation.md", "docs/serving.md"]


def render_cli() -> str:
    """docs/cli.md: every command's --help, as it is printed at 100 columns."""
    parts = ["# Commands\n\nWritten by `make docs` from the program itself.\n"]
    for path, command in _commands(cli, ("aula",)):
        context = click.Context(
            command,
            info_name=" ".join(path),
            terminal_width=100,
            max_content_width=100,
            help_option_names=["-h", "--help"],
        )
        parts.append(f"## {' '.join(path)}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def render_settings() -> str:
    """docs/settings.md: the table of settings."""
    rows = [
        f"| `{setting.name}` | `{setting.variable}` | `{json.dumps(setting.default)}` | {setting.help} |"
        for setting in TABLE
    ]
    return (
        "# Settings\n\nWritten by `make docs` from the program itself. Weakest first: the default, `aula.toml` in the\n"
        "user's configuration folder, `aula.toml` in the working folder, the environment, an option of the command.\n\n"
        '```toml\n# aula.toml\ncourse = "mechanics-zh"\n\n[speech]\nwords_per_minute = 150\n```\n\n'
        "`tenants.file` names a TOML file with a table for each tenant that is to have more or less than others;\n"
        "whatever a table leaves out is not limited:\n\n"
        "```toml\n[class-5b]\nrate = 5.0                  # requests a second\nburst = 20\n"
        "concurrency = 40            # requests in flight\ndevice_ms_a_minute = 20000\n"
        "weight = 2.0                # twice an ordinary class's part when classes wait\n```\n\n"
        "| setting | environment | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def render_metrics() -> str:
    """docs/metrics.md: the table of metrics."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return (
        "# Metrics\n\nWritten by `make docs` from the program itself. `Runtime.metrics()` gives them as text for\n"
        "Prometheus; times are in seconds. [operations.md](operations.md) explains the alerts that stand on them.\n\n"
        "| metric | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


PAGES = {"docs/cli.md": render_cli, "docs/metrics.md": render_metrics, "docs/settings.md": render_settings}


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _commands(child, (*path, name))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_generated_pages_are_what_the_program_says(page: str) -> None:
    assert (ROOT / page).read_text(encoding="utf-8") == PAGES[page](), "write it anew: make docs"


@pytest.mark.parametrize(("path", "command"), list(_commands(cli, ("aula",))), ids=lambda value: str(value))
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    context = click.Context(command, info_name=" ".join(path), help_option_names=["-h", "--help"])
    text = command.get_help(context)
    assert " ".join(path[:2]) in text.split("Usage", 1)[1].split("\n", 1)[1], "show an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"


def _command_lines(document: str, program: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.S)
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] == program]


@pytest.mark.parametrize("document", WRITTEN)
def test_command_lines_in_documents_parse(document: str) -> None:
    for line in _command_lines(document, "aula"):
        words = shlex.split(line, comments=True)
        command: click.Command = cli
        rest = words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{document}: {line}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = [word for word in rest if word.startswith("--") and word not in known]
        assert not unknown, f"{document}: {line}: {unknown}"


@pytest.mark.parametrize("document", WRITTEN)
def test_make_targets_in_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in _command_lines(document, "make"):
        assert line.split()[1] in targets, f"{document}: {line}"


@pytest.mark.parametrize("document", READMES)
def test_the_tree_in_the_readme_is_the_one_on_disk(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    tree = re.search(r"```\nsrc/aula/\n(.*?)```", text, re.S)
    assert tree is not None, "the README draws src/aula/"
    drawn = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.strip()}
    ignored = {"__pycache__", "__init__.py", "py.typed"}
    on_disk = {entry.name for entry in (ROOT / "src" / "aula").iterdir()} - ignored
    assert drawn == on_disk


@pytest.mark.parametrize("document", [*WRITTEN, "CHANGELOG.md", "requirements/README.md", "docs/operations.md"])
def test_links_to_files_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}"


if __name__ == "__main__":
    for page, render in PAGES.items():
        (ROOT / page).write_text(render(), encoding="utf-8")
        print(f"wrote {page}")
