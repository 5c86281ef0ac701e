"""Chromium without a window, and every page served to it on a free port of the loopback."""

import asyncio
import json
import os
import shutil
import socket
import threading
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from starlette.applications import Starlette

from aula.core.clock import SystemClock
from aula.servers import pages
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.realtime import routes as realtime_routes
from tests.servers.pages.fake_realtime import FakeRealtime
from tests.servers.pages.people import Models, small_house

PATIENCE = 30.0
"""Seconds until a page that does not get there has failed; nothing is asserted of how fast it was."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
)
FAKE_MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
LISTEN = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (...to) {
  if (to[0] === this.context.destination) {
    const analyser = (window.heard = this.context.createAnalyser());
    analyser.fftSize = 8192;
    analyser.smoothingTimeConstant = 0;
    connect.call(this, analyser);
  }
  return connect.apply(this, to);
};
window.loudest = () => {
  const bins = new Float32Array(window.heard.frequencyBinCount);
  window.heard.getFloatFrequencyData(bins);
  const place = bins.indexOf(Math.max(...bins));
  return [place * window.heard.context.sampleRate / window.heard.fftSize, bins[place]];
};
"""
"""Puts an ear before the loudspeaker: `loudest()` is the frequency that sounds most, and its decibels."""


def wanted_programs() -> tuple[str, str]:
    """Chromium and its driver; skips, aloud, where they are not."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    return browser, driver


@dataclass
class Classroom:
    url: str
    house: House
    models: Models
    realtime: FakeRealtime
    loop: asyncio.AbstractEventLoop

    def do(self, call: Callable[[], Any]) -> Any:
        """In the server's thread."""

        async def doing() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(doing(), self.loop).result(PATIENCE)


@contextmanager
def classroom(
    home: Path, keys: Mapping[str, Caller] | None = None, *, real: bool = False, open_house: Any = small_house
) -> Iterator[Classroom]:
    """A server in a thread of its own; with `real`, the house's own Realtime door."""
    made: list[Classroom] = []
    failed: list[BaseException] = []
    begun = threading.Event()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))

    async def serve() -> None:
        async with open_house(home, SystemClock(), keys) as (house, models):
            fake = FakeRealtime(house)
            doors = realtime_routes(house) if real else fake.routes()
            app = Starlette(routes=[*pages.routes(house), *doors])
            config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
            server = uvicorn.Server(config)
            loop = asyncio.get_running_loop()
            made.append(Classroom(f"http://127.0.0.1:{bound.getsockname()[1]}", house, models, fake, loop))
            stop.append(lambda: setattr(server, "should_exit", True))
            bound.listen(64)
            bound.setblocking(False)
            begun.set()
            await server.serve(sockets=[bound])

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            begun.set()

    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait(PATIENCE)
    if failed:
        raise failed[0]
    try:
        yield made[0]
    finally:
        stop[0]()
        thread.join(PATIENCE)
        bound.close()
        assert not thread.is_alive(), "the server does not end"
        if failed:
            raise failed[0]


class Page:
    """A tab: waits for what is asked for, and keeps what the browser complained of."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.until("document.documentElement.dataset.ready !== undefined")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: str) -> Any:
        """Until a JavaScript expression is true; its value."""
        try:
            return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(
                lambda _: self.run(f"return {condition}")
            )
        except TimeoutException:
            shown = self.run("return document.body.innerText")
            raise AssertionError(f"never came true: {condition}\n{shown}\n{self.complaints()}") from None

    def rest(self, seconds: float) -> None:
        """As long as somebody holds a button or speaks, by the page's own clock."""
        self.run("window.since = performance.now()")
        self.until(f"performance.now() - window.since > {1000 * seconds}")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    @contextmanager
    def holding(self, selector: str) -> Iterator[None]:
        """The mouse button is down within the block."""
        ActionChains(self.driver).move_to_element(self.find(selector)).click_and_hold().perform()
        try:
            yield
        finally:
            ActionChains(self.driver).release().perform()

    def click_without_pointer(self, selector: str) -> None:
        """As a screen reader clicks: a gesture of the user, but no pointer's."""
        script = f"document.querySelector({selector!r}).click()"
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script, "userGesture": True})

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def asked_for(self) -> set[str]:
        """The host of every request since the last look, whoever made it."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        sockets = [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
        return {urlsplit(url).netloc for url in (*sent, *sockets) if url.startswith(("http", "ws"))}

    def complaints(self) -> list[str]:
        """What the console says: errors, and breaches of the security policy among them."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@contextmanager
def chromium(
    profile: Path,
    *,
    language: str = "en",
    dark: bool = False,
    size: tuple[int, int] = (1280, 860),
    scale: float = 1.0,
    microphone: Path | None = None,
) -> Iterator[Page]:
    browser, program = wanted_programs()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    given = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", f"--lang={language}"]
    if microphone is not None:
        given += [*FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}"]
    for flag in given:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    except WebDriverException as error:
        pytest.skip(f"Chromium does not start here: {str(error)[:200]}")
    try:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": size[0] < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
        yield Page(driver)
    finally:
        driver.quit()


def wanted_axe() -> str:
    """The script of axe-core, which judges whether everybody can use a page; skips, aloud, where it is not."""
    path = Path(os.environ.get("AULA_NODE_MODULES", ""), "axe-core", "axe.min.js")
    if not path.is_file():
        pytest.skip("AULA_NODE_MODULES names no folder with axe-core in it: npm install axe-core")
    return path.read_text(encoding="utf-8")


def write_voice(path: Path, seconds: float = 4.0, pitch: float = 220.0, rate: int = 48_000) -> Path:
    """Something like a voice: a pitch with its overtones, in syllables, so that noise suppression lets it through."""
    time = np.arange(int(seconds * rate)) / rate
    tone = np.asarray(sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 9)))
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time) * 2, 0, 1)
    samples = (0.22 * tone * syllables * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path
