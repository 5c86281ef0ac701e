"""Both languages have the same words, and nothing in a page is without them."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from aula.core import errors
from aula.core.types import Capability
from aula.scheduling.ladder import Breaker, Cause
from aula.scheduling.tickets import Reason
from aula.servers.pages.files import table

PAGES = ("student.html", "teacher.html", "operator.html")
BRAND = "aula"
BOTH = "This page needs JavaScript. 本页需要启用 JavaScript。"
"""Said where no script can choose a language."""
COMPUTED = {
    "error": {name for name in dir(errors) if name.endswith("Error")}
    | {"Unreachable", "Unknown", "KeyAbsentError", "KeyRefusedError", "NotAllowedError"},
    "reason": {str(reason) for reason in Reason} | {"deadline", "language"},
    "cause": {str(cause) for cause in Cause if cause is not Cause.OVERRIDE} | {"process"},
    "rung": {str(state) for state in Breaker} | {"serves", "stands_in", "stands_by", "set_aside", "unavailable"},
    "ladder": {str(capability) for capability in Capability} | {"infer"},
    "clock": {"A", "B", "C", "text"} | {f"{clock}_words" for clock in ("A", "B", "C", "text")},
    "microphone": {"denied", "absent", "busy", "insecure", "type", "ready"},
    "stage": {"transcribe", "understand", "retrieve", "answer", "speak_first_byte", "rest"},
    "device": {"host"},
    "nav": {"student", "teacher", "operator", "pages"},
    "tile": set(),
    "event": {"open", "closed", "override", "release"},
    "invite": {"minutes_60", "minutes_120", "minutes_480"},
    "operator": {"time", "clock_short", "class", "stages", "first_sound"},
    "teacher": {"since_15", "since_60", "since_all", "speaks_course", "speaks_en", "speaks_zh", "speaks_und"},
}
"""Keys that a script puts together, by what stands before the dot."""


def words(language: str) -> dict[str, str]:
    raw = table()[f"words.{language}.js"].content.decode()
    found: dict[str, str] = json.loads(raw.removeprefix("export default "))
    return found


def _scripts() -> Iterator[tuple[str, str]]:
    for name, file in table().items():
        if name.endswith(".js") and not name.startswith(("vendor/", "words.")):
            yield name, file.content.decode()


def test_both_languages_have_the_same_words() -> None:
    assert words("en")
    assert set(words("en")) == set(words("zh"))


def test_no_word_is_empty_and_each_has_the_same_places_to_fill() -> None:
    english, chinese = words("en"), words("zh")
    for key, text in english.items():
        assert text.strip(), key
        assert chinese[key].strip(), key
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", chinese[key])), key


def test_chinese_is_chinese_and_english_is_english() -> None:
    same = {"language.other", "ms", "s", "mib", "gib", "operator.of"}
    for key, text in words("zh").items():
        assert key in same or re.search(r"[\u4e00-\u9fff]", text), key
    for key, text in words("en").items():
        assert key in same or not re.search(r"[\u4e00-\u9fff]", text), key


class _Texts(HTMLParser):
    """What a page says by itself, and which keys it names."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.keys: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("data-t", "data-t-label", "data-t-tip", "data-t-placeholder", "data-title"):
                self.keys.append(value or "")
            elif name in ("title", "aria-label", "placeholder", "alt", "aria-description"):
                self.texts.append(value or "")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_nothing_that_is_not_translated(page: str) -> None:
    found = _Texts()
    found.feed(table()[page].content.decode())
    assert set(found.texts) <= {BRAND, BOTH}
    assert [key for key in found.keys if key not in words("en")] == []


def test_scripts_say_only_what_both_languages_have() -> None:
    for name, text in _scripts():
        named = re.findall(r'\b(?:say|complain)\("([\w.]+)"', text) + re.findall(r'"data-t(?:-\w+)?": "([\w.]+)"', text)
        assert [key for key in named if key not in words("en")] == [], name


def test_every_word_is_said_somewhere() -> None:
    everything = " ".join(text for _, text in _scripts()) + " ".join(table()[page].content.decode() for page in PAGES)
    for key in words("en"):
        prefix, _, rest = key.partition(".")
        computed = rest in COMPUTED.get(prefix, ()) or (prefix == "tile" and f'"{rest}"' in everything)
        assert computed or f'"{key}"' in everything, f"nobody says {key}"


@pytest.mark.parametrize("kind", ["reason", "cause", "ladder"])
def test_whatever_the_runtime_tells_has_its_words(kind: str) -> None:
    assert [one for one in COMPUTED[kind] if f"{kind}.{one}" not in words("en")] == []


def test_scripts_make_no_words_of_their_own() -> None:
    """A text between quotes with a blank in it, put into an element, would be one."""
    for name, text in _scripts():
        put = re.findall(r'(?:textContent = |make\([^)]*\}, )"([^"]*[a-z] [a-z][^"]*)"', text)
        assert put == [], name
