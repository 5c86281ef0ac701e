"""The pictures of docs/pages.md, taken of a server that runs.

    python -m tests.servers.pages.pictures URL FOLDER [--key SECRET] [--speech question.wav] [--lecture lecture.wav]

Each page in both languages. `--speech` is what the student says (a WAV of 48 kHz, with half a second of silence before
it), `--lecture` what the teacher says; without them both only look. Needs Chromium; Pillow makes WebP of it.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.servers.pages.browser import Page, chromium

SIZE, TALL, PHONE = (1280, 800), (1280, 1060), (390, 844)
QUALITY = 82


def save(page: Page, path: Path) -> None:
    page.until("document.fonts.status === 'loaded'")
    page.rest(0.5)
    Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB").save(path, quality=QUALITY, method=6)
    print(path, path.stat().st_size // 1024, "KiB")


def student(page: Page, url: str, path: Path, *, speaks: bool, asks: str) -> None:
    page.open(url)
    page.until("document.body.dataset.line === 'open'")
    if speaks:
        with page.holding("#hold"):
            page.until("document.querySelector('#hold').dataset.state === 'listening'")
            page.rest(3.2)
    else:
        page.run("window.chooser = document.querySelector('#course'); chooser.value = arguments[0]", "mechanics-zh")
        page.run("chooser.dispatchEvent(new Event('change'))")
        page.until("document.body.dataset.line === 'open'")
        page.find("#question").send_keys(asks + "\n")
    page.until("document.querySelector('.turn .meta') !== null")
    page.run("document.querySelector('.latency').click(); document.activeElement.blur()")
    save(page, path)


def teacher(page: Page, url: str, path: Path, *, speaks: bool) -> None:
    page.open(url)
    page.until("document.querySelector('#asked').getAttribute('aria-busy') === 'false'")
    if speaks:
        page.find("#begin").click()
        page.until("document.querySelector('#lines').childElementCount > 0")
        page.rest(3)
    save(page, path)


def operator(page: Page, url: str, path: Path) -> None:
    page.open(url)
    page.until("document.querySelector('.rung') !== null")
    save(page, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", default="")
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--lecture", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    key = f"#key={given.key}" if given.key else ""
    for language, name in (("en", "en"), ("zh-CN", "zh")):
        is_english = name == "en"

        def at(page: str, name: str = name) -> Path:
            return Path(given.folder) / f"{page}-{name}.webp"

        with tempfile.TemporaryDirectory() as folder:
            sound = Path(f"{given.speech}%noloop") if is_english and given.speech else None
            size, scale = (TALL, 1.0) if is_english else (PHONE, 2.0)
            looks: dict[str, Any] = {"language": language, "dark": not is_english, "size": size, "scale": scale}
            with chromium(Path(folder) / "a", microphone=sound, **looks) as page:
                student(page, f"{given.url}/{key}", at("student"), speaks=sound is not None, asks="什么是惯性？")
            with chromium(Path(folder) / "b", language=language, microphone=given.lecture, size=SIZE) as page:
                teacher(page, f"{given.url}/teacher{key}", at("teacher"), speaks=is_english and bool(given.lecture))
            with chromium(Path(folder) / "c", language=language, size=(1280, 1180), dark=is_english) as page:
                operator(page, f"{given.url}/operator{key}", at("operator"))


if __name__ == "__main__":
    main()
