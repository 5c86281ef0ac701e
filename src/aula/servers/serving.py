"""`aula serve`: one process with every door, from the first load to the last turn.

The order of the end is what matters: no new connection, no new turn, what is under way finishes (or
`serve.drain_seconds` are over), then connections close, then the runtime.
"""

import asyncio
import gc
import ipaddress
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from aula.assistant.dialogue import Dialogue
from aula.assistant.generator import Generator
from aula.core.errors import SettingsError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import Context
from aula.runtime import open_runtime
from aula.servers import kserve, pages
from aula.servers.app import build_app
from aula.servers.guests import Guests
from aula.servers.house import House
from aula.servers.keys import KeyedDoorman, KeyStore
from aula.servers.logs import log_notice, log_stray, log_warning
from aula.servers.notices import notify_systemd
from aula.servers.origins import Origins
from aula.servers.realtime.door import WEBSOCKET_OPTIONS
from aula.servers.wire import listen, protocol_for
from aula.serving.alarm import Alarm

Progress = Callable[[str, float], None]
"""Told what is being loaded, and the share that is."""
CLOSING_SECONDS = 5
"""After the turns have ended, for connections to close by themselves."""
SWITCH_SECONDS = 0.0002
"""How long a thread may keep the interpreter when another wants it. Python's own 5 ms are longer than most engines run:
one that is done would wait so long to say so, and its batch's answers with it."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens. `grpc` is host:port, or None; `is_open`: no key is needed; `has_pages`: for people."""

    host: str
    port: int
    scheme: str
    grpc: str | None
    is_open: bool
    course: str
    has_pages: bool = False

    @property
    def http(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class _Server(uvicorn.Server):
    """Signals are ours to hear: uvicorn would close conversations at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_accepting(self) -> None:
        for server in self.servers:
            server.close()


async def serve(
    settings: Settings,
    *,
    progress: Progress | None = None,
    on_ready: Callable[[Address], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`. Raises SettingsError for an address that cannot be listened on, or may
    not without keys, and what warming raises: a server that can answer nothing does not begin."""
    stop = stop or asyncio.Event()
    share_the_interpreter()
    asyncio.get_running_loop().set_exception_handler(log_stray)
    async with open_runtime(settings, progress=progress) as runtime:
        generator = Generator.from_settings(settings, runtime.clock)
        keyed = KeyedDoorman(KeyStore.from_settings(settings), runtime.clock)
        doorman = Guests(keyed, runtime.clock, keyed.holds)
        house = House(runtime, settings, doorman, generator=generator)
        try:
            with _heard_signals(stop):
                async with open_doors(house, warm=lambda: _warm_up(house)) as address:
                    log_notice("ready", address=address.http, grpc=address.grpc, is_open=address.is_open)
                    notify_systemd("READY=1")
                    if on_ready is not None:
                        on_ready(address)
                    await stop.wait()
                    notify_systemd("STOPPING=1")
                    log_notice("ending", turns=house.traffic.turns)
        finally:
            gc.unfreeze()
            if generator is not None:
                await generator.close()


def share_the_interpreter() -> None:
    """For whoever owns the process, and serves from it."""
    sys.setswitchinterval(SWITCH_SECONDS)


def spare_what_stays() -> None:
    """For the same, once all is loaded: the collector passes over what is there by now. It would else go through
    courses and modules time and again, with everybody waiting for 20 to 30 ms."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def open_doors(house: House, *, warm: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[Address]:
    """The doors of a house, open within the block; when it ends, turns under way are finished. `warm` is run
    while /livez answers already."""
    settings = house.settings
    host = settings.text("serve.host")
    is_open = bool(getattr(house.doorman, "is_open", False))
    if is_open and not is_loopback(host) and not settings.flag("serve.without_keys"):
        raise SettingsError(
            f"{host} can be reached from elsewhere, and there are no keys: whoever comes could ask anything",
            available=["127.0.0.1"],
            next_step="make a key (aula key create CLASS), or allow it: serve.without_keys = true",
        )
    clock = house.runtime.clock
    alarm = Alarm(clock)
    origins = Origins.from_settings(settings, only_loopback=is_open and is_loopback(host))
    server = _Server(_config(house, alarm, origins))
    bound = _bound(settings)
    house.traffic.is_warm = warm is None
    port = bound.getsockname()[1]
    house.traffic.ports = (port,)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    grpc_server = None
    try:
        await _either(server.listening.wait(), serving)
        grpc_server, grpc_address = await _open_grpc(house)
        if warm is not None:
            await _either(warm(), serving)
            house.traffic.is_warm = True
        scheme = "https" if settings.text("serve.tls_cert") else "http"
        has_pages = any(getattr(route, "path", None) == "/" for route in pages.routes(house))
        yield Address(host, port, scheme, grpc_address, is_open, settings.text("course"), has_pages)
    finally:
        house.traffic.close()
        if server.started:
            server.stop_accepting()
        if not await house.traffic.finished(clock, settings.number("serve.drain_seconds")):
            log_warning("turns were cut off", turns=house.traffic.turns)
        if grpc_server is not None:
            await grpc_server.stop(CLOSING_SECONDS)
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        alarm.close()
        bound.close()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _config(house: House, alarm: Alarm, origins: Origins) -> uvicorn.Config:
    settings = house.settings
    config = uvicorn.Config(
        build_app(house, origins),
        http=protocol_for(house, alarm),
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.whole("serve.keep_seconds"),
        timeout_graceful_shutdown=CLOSING_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
        **WEBSOCKET_OPTIONS,
    )
    if settings.text("serve.tls_cert"):
        config.load()
        config.ssl = _tls(settings)
    return config


def _tls(settings: Settings) -> ssl.SSLContext:
    """Raises SettingsError for files that hold no certificate and key."""
    certificate = Path(settings.text("serve.tls_cert")).expanduser()
    key = settings.text("serve.tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A key with a password would ask for it on the terminal.
        context.load_cert_chain(certificate, Path(key).expanduser() if key else None, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"serve.tls_cert {certificate} and its key cannot be used ({error.strerror or error})",
            next_step="name PEM files of a certificate and its key, without a password",
        ) from error
    return context


def _bound(settings: Settings) -> socket.socket:
    host, port = settings.text("serve.host"), settings.whole("serve.port")
    try:
        return listen(host, port, 2 * settings.number("serve.idle_seconds"))
    except OSError as error:
        raise SettingsError(
            f"{host}:{port} cannot be listened on ({error.strerror or error})",
            next_step="end what listens there, or choose another: aula serve --port 0 takes any that is free",
        ) from error


async def _open_grpc(house: House) -> tuple[Any, str | None]:
    """The server of the Open Inference Protocol, and its address; neither where it is turned off or absent."""
    port = house.settings.whole("serve.grpc_port")
    make = getattr(kserve, "grpc_server", None)
    if port < 0 or make is None:
        return None, None
    host = house.settings.text("serve.host")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # gRPC tells a free port only by number, and a taken one by a wall of text.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be listened on for gRPC ({error.strerror})",
                next_step="choose another port: aula serve --grpc-port 0, or -1 for no gRPC",
            ) from error
        port = probe.getsockname()[1]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = await make(house, address)
    await server.start()
    return server, address


async def _warm_up(house: House) -> None:
    """The usual course and all that a turn needs, so that the first question does not pay for it, and later ones not
    for looking after it."""
    course = await house.course()
    dialogue = Dialogue(house.runtime, course, house.settings)
    language = course.info.language
    try:
        await dialogue.warm(Context(language), listening=True)
    except UnsupportedLanguageError:
        # Nothing here hears the course's language: it can still be asked in writing.
        await dialogue.warm(Context(language), listening=False)
    spare_what_stays()


async def _either(wanted: Any, serving: "asyncio.Future[None]") -> None:
    """Wait for `wanted`, unless the server ends before; then say why."""
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            serving.result()
            raise SettingsError("the server ended before it began", next_step="see what it logged")
        waiting.result()
    finally:
        waiting.cancel()


@contextmanager
def _heard_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first asks for an end, which finishes turns; the second does not wait for them."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        stop.set()
        if len(heard) > 1 and task is not None:
            task.cancel()

    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, hear, number)
    except (NotImplementedError, RuntimeError, ValueError):
        # Windows, and threads that are not the first: Ctrl-C ends the loop there.
        yield
        return
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
