from pathlib import Path

import pytest

from aula.core.errors import InputError
from aula.servers.callers import Caller
from aula.servers.pages.student import find_passage
from tests.servers.pages.people import app_of, call, small_house

KEYS = {
    "pupil": Caller("class-5b", abilities=frozenset({"ask"}), key="pupil-key"),
    "teacher": Caller("class-5b", abilities=frozenset({"ask", "teach"}), key="teacher-key"),
}


async def test_without_keys_everybody_may_see_every_page(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        me = (await call(app_of(house), "/pages/me")).json
        assert me["abilities"] == ["ask", "teach", "operate"]
        assert me["course"] == "small"
        small = next(course for course in me["courses"] if course["name"] == "small")
        assert small == {"name": "small", "title": "Motion", "language": "en", "description": "How things move."}


async def test_courses_that_come_with_aula_have_their_titles_before_anybody_asked_them(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        courses = {one["name"]: one for one in (await call(app_of(house), "/pages/me")).json["courses"]}
        assert courses["mechanics-zh"]["title"] == "力学"
        assert courses["mechanics-zh"]["language"] == "zh"
        assert courses["mechanics-en"]["description"]


async def test_a_key_opens_the_pages_that_it_is_for(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        app = app_of(house)
        refused = await call(app, "/pages/me")
        assert refused.status == 401
        assert refused.json["error"]["kind"] == "UnknownKeyError"
        assert refused.json["error"]["next"] == "bring another"
        assert (await call(app, "/pages/me?for=ask", key="wrong")).status == 401
        assert (await call(app, "/pages/me?for=ask", key="pupil")).json["abilities"] == ["ask"]
        assert (await call(app, "/pages/me?for=teach", key="pupil")).status == 401
        me = (await call(app, "/pages/me?for=teach", key="teacher")).json
        assert (me["tenant"], me["key"], me["abilities"]) == ("class-5b", "teacher-key", ["ask", "teach"])


async def test_no_page_is_for_an_ability_that_there_is_not(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        reply = await call(app_of(house), "/pages/me?for=infer")
        assert reply.status == 400
        assert reply.json["error"]["available"] == ["ask", "teach", "operate"]


async def test_a_cited_passage_comes_with_what_stands_around_it(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        course = await house.course()
        first, second = course.passages
        query = f"course=small&document={first.document}&passage={first.label}"
        told = (await call(app_of(house), f"/pages/passage?{query}")).json
        assert told["text"] == first.text
        assert (told["before"], told["after"]) == ("", second.text)
        assert told["headings"] == list(first.headings)
        with pytest.raises(InputError, match="no passage"):
            find_passage(course, first.document, "elsewhere")


async def test_passages_are_for_those_who_may_ask_or_teach(tmp_path: Path) -> None:
    only_teaches = {
        "t": Caller("c", abilities=frozenset({"teach"})),
        "o": Caller("c", abilities=frozenset({"operate"})),
    }
    async with small_house(tmp_path, keys=only_teaches) as (house, _):
        app = app_of(house)
        assert (await call(app, "/pages/passage?document=x&passage=y", key="t")).status == 400
        assert (await call(app, "/pages/passage?document=x&passage=y", key="o")).status == 401


async def test_an_unknown_course_is_not_found(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        reply = await call(app_of(house), "/pages/passage?course=none&document=x&passage=y")
        assert reply.status == 404
        assert reply.json["error"]["kind"] == "CourseNotFoundError"
