"""The files as they are handed out, and what stands in them."""

import hashlib
import re
from pathlib import Path

import pytest

from aula.servers.pages.files import POLICY, table
from tests.servers.pages.people import app_of, call, small_house

STATIC = Path(__file__).resolve().parents[3] / "src" / "aula" / "servers" / "pages" / "static"
OURS = sorted(name for name in table() if not name.startswith(("vendor/", "fonts/")))
SCRIPTS = [name for name in OURS if name.endswith(".js")]
PAGES = ("student.html", "teacher.html", "operator.html")


@pytest.mark.parametrize("path", ["/", "/teacher", "/operator", "/pages/files/student.js"])
async def test_everything_that_a_page_loads_is_kept_to_itself(tmp_path: Path, path: str) -> None:
    async with small_house(tmp_path) as (house, _):
        reply = await call(app_of(house), path)
        assert reply.status == 200
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "microphone=(self)" in reply.headers["permissions-policy"]
        assert reply.headers["cache-control"] == "no-cache"


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.partition(" ")[::2] for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert {value for name, value in rules.items() if name.endswith("-src")} == {"'none'", "'self'"}


async def test_a_browser_that_has_a_file_is_told_so(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        app = app_of(house)
        first = await call(app, "/pages/files/base.css")
        again = await call(app, "/pages/files/base.css", headers={"If-None-Match": first.headers["etag"]})
        other = await call(app, "/pages/files/base.css", headers={"If-None-Match": '"older"'})
        assert (again.status, again.body) == (304, b"")
        assert (other.status, other.body) == (200, first.body)


@pytest.mark.parametrize("name", ["../files.py", "..%2ffiles.py", "/etc/passwd", "", "vendor", "STUDENT.JS", "a\0b"])
async def test_what_is_not_in_the_table_does_not_exist(tmp_path: Path, name: str) -> None:
    async with small_house(tmp_path) as (house, _):
        reply = await call(app_of(house), f"/pages/files/{name}")
        assert reply.status == 404
        assert "content-security-policy" in reply.headers


@pytest.mark.parametrize("name", OURS)
def test_a_file_names_no_other_site_and_only_files_that_there_are(name: str) -> None:
    text = table()[name].content.decode()
    assert set(re.findall(r"(?:https?|wss?):?//[\w.-]+", text)) <= {"http://www.w3.org"}
    named = re.findall(r'(?:href|src)="/pages/files/([^"]+)"', text) + re.findall(r'url\("([^"]+)"\)', text)
    named += [one.removeprefix("./") for one in re.findall(r'(?:from |import |import\()"(\./[^"]+)"', text)]
    named += re.findall(r'new URL\("([\w.]+\.js)"', text)
    assert [one for one in named if one not in table()] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_open_no_browser_dialog_and_make_no_markup_from_text(name: str) -> None:
    text = table()[name].content.decode()
    banned = r"\b(alert|confirm|prompt)\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert re.search(banned, text) is None


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_nothing_inline(name: str) -> None:
    text = table()[name].content.decode()
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text) is None


def test_what_others_wrote_is_what_the_list_says() -> None:
    """vendor/README.md has a row for each such file: its version, its licence and its SHA-256."""
    listed = dict(re.findall(r"\| `([^`]+)` .*\| `([0-9a-f]{64})` \|", (STATIC / "vendor" / "README.md").read_text()))
    there = {
        one.relative_to(STATIC).as_posix() for folder in ("vendor", "fonts") for one in (STATIC / folder).iterdir()
    }
    assert set(listed) == {name for name in there if not name.endswith((".txt", "README.md"))}
    for name, digest in listed.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name
