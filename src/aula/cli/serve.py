"""`aula serve`"""

import asyncio
from pathlib import Path

import click
from rich.text import Text

from aula.cli.output import INTERRUPTED, notices, progress_bar
from aula.core.errors import SettingsError
from aula.core.settings import load_settings, settings_files
from aula.servers.logs import configure
from aula.servers.serving import Address, serve


@click.command("serve", short_help="Serve OpenAI's, Realtime's and Triton's clients, and pages for people.")
@click.option("--host", help="Where to listen: 127.0.0.1 if not given; 0.0.0.0 for all of this machine's addresses.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port for HTTP and WebSocket; 0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(-1, 65_535), help="The port for gRPC; 0 takes a free one, -1 none.")
@click.option("--config", type=click.Path(path_type=Path), help="A settings file, stronger than the usual aula.toml.")
@click.option("--course", help="The course that the model `aula` is about.")
@click.option("--log", type=click.Choice(("text", "json", "none")), help="How requests are logged.")
def serve_command(
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    config: Path | None,
    course: str | None,
    log: str | None,
) -> None:
    """Serve every protocol from one process: OpenAI's REST and Realtime, the Open Inference Protocol that Triton's
    clients speak, metrics, and pages for students, teachers and operators.

    Engines are loaded first, so that the first question does not wait for them. Ctrl-C, or SIGTERM, finishes the turns
    under way. Without keys (aula key create) only this machine is served.

    \b
    Example:
      aula serve
      aula serve --host 0.0.0.0 --log json
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no settings file {config}", next_step="correct the path, or leave --config out")
    settings = load_settings(files=(*settings_files(), *((config,) if config else ())))
    given = {
        "serve.host": host,
        "serve.port": port,
        "serve.grpc_port": grpc_port,
        "course": course,
        "serve.log": log,
    }
    chosen = {name.replace(".", "__"): value for name, value in given.items() if value is not None}
    settings = settings.replaced(**chosen)
    configure(settings.text("serve.log"))

    is_json = settings.text("serve.log") == "json"

    async def run() -> None:
        with progress_bar(quiet=is_json) as report:

            def ready(address: Address) -> None:
                report("", 1.0)
                if not is_json:  # the log has a line of it
                    _print(address)

            await serve(settings, progress=report, on_ready=ready)

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        if not is_json:
            notices().print("Ended before all turns had.", style="yellow")
        raise SystemExit(INTERRUPTED) from None
    if not is_json:
        notices().print("Ended.", style="dim")


def _print(address: Address) -> None:
    """Where to go, in people's words."""
    realtime = address.http.replace("http", "ws", 1) + "/v1"
    rows = [
        *([("For people", f"{address.http}/")] if address.has_pages else []),
        ("OpenAI's clients", f"{address.http}/v1"),
        ("Realtime voice", f"{realtime}/realtime"),
        ("Triton's clients", f"{address.http}" + (f", gRPC {address.grpc}" if address.grpc else "")),
        ("How to call it", f"{address.http}/docs"),
        ("For Prometheus", f"{address.http}/metrics"),
        ("Is it well?", f"{address.http}/readyz"),
    ]
    console = notices()
    console.print(Text.assemble(("aula serves ", "bold"), (address.course, "bold")), soft_wrap=True)
    for name, where in rows:
        console.print(Text(f"  {name:<18}{where}"), soft_wrap=True)
    if address.is_open:
        told = "No keys are needed: whoever can reach this address may use everything. Next: aula key create CLASS"
        console.print(Text(f"  {told}", "yellow"), soft_wrap=True)
    console.print(Text("  Ctrl-C ends it, once turns under way are finished.", "dim"), soft_wrap=True)
