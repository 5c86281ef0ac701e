from pathlib import Path
from typing import Any

from aula.assistant.phrases import phrase
from aula.core.errors import NoRungError
from aula.core.types import Context
from aula.servers.callers import Caller
from aula.servers.pages.likeness import Likeness, Said
from aula.servers.pages.teacher import REST_SECONDS
from aula.servers.pages.topics import SHOWN_QUESTIONS, Board, board
from tests.servers.pages.people import app_of, call, small_house, stepping, turn, watching

CONTEXT = Context(tier="batch")
KEYS = {
    "5b": Caller("class-5b", abilities=frozenset({"teach"})),
    "6a": Caller("class-6a", abilities=frozenset({"teach"})),
    "pupil": Caller("class-5b", abilities=frozenset({"ask"})),
}


async def _board(house: Any, *turns: Any) -> Board:
    return await board(turns, house.course, Likeness(house.runtime), CONTEXT)


def _citing(course: Any, place: int, question: str, moment: float) -> Any:
    passage = course.passages[place]
    return turn(question, moment, citations=((passage.document, passage.label, 0.9),))


async def test_answered_questions_are_grouped_by_the_heading_that_they_cite(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        course = await house.course()
        told = await _board(
            house,
            _citing(course, 0, "What is inertia?", 1.0),
            _citing(course, 1, "What is momentum?", 2.0),
            _citing(course, 0, "And inertia again?", 3.0),
        )
        assert [(topic.title, topic.count, topic.latest) for topic in told.topics] == [
            ("Inertia", 2, 3.0),
            ("Momentum", 1, 2.0),
        ]
        assert told.topics[0].path == ("Motion",)
        assert [one.text for one in told.topics[0].questions] == ["And inertia again?", "What is inertia?"]
        assert (told.asked, told.unanswered) == (3, ())


async def test_parts_of_one_section_are_one_topic(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        parts = (("course.md", "Forces > Friction", 0.8), ("course.md", "Forces > Friction (2)", 0.8))
        told = await _board(house, *(turn("?!", citations=(part,)) for part in parts))
        assert [(topic.title, topic.path, topic.count) for topic in told.topics] == [("Friction", ("Forces",), 2)]


async def test_what_the_course_could_not_answer_is_grouped_by_what_was_meant(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        told = await _board(
            house,
            turn("When is the exam?", 1.0, refused=True),
            turn("who landed on the moon", 2.0, refused=True),
            turn("what day will the exam be", 3.0, refused=True),
        )
        assert [(topic.title, topic.count) for topic in told.unanswered] == [
            ("When is the exam?", 2),
            ("who landed on the moon", 1),
        ]
        assert told.topics == ()


async def test_talk_is_no_question_and_what_nobody_understood_is_counted(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        told = await _board(
            house,
            turn("hello", intent="greeting"),
            turn("say that again", intent="repeat"),
            turn("", refused=True),
            turn("mumble", refused=True, answer=phrase("unclear", "en", "Motion")),
            turn("broken", error="NoRungError"),
        )
        assert told == Board((), (), asked=0, unheard=2, failed=1)


async def test_only_the_latest_questions_of_a_topic_are_sent(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        told = await _board(house, *(turn("moon", float(place), refused=True) for place in range(40)))
        assert told.unanswered[0].count == 40
        assert [one.moment for one in told.unanswered[0].questions] == [39.0 - n for n in range(SHOWN_QUESTIONS)]


async def test_where_nothing_embeds_shared_words_decide(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, models):
        likeness = Likeness(house.runtime)
        asked = [Said("什么是量子纠缠", "zh"), Said("量子纠缠是什么", "zh"), Said("考试是哪一天", "zh")]
        assert await likeness.groups(asked, CONTEXT) == [[0, 1], [2]]
        models.failure = NoRungError("out of order", next_step="wait")
        english = [Said("When is the exam", "en"), Said("the exam, when is it", "en"), Said("the moon", "en")]
        assert await likeness.groups(english, CONTEXT) == [[0, 1], [2]]


async def test_every_question_is_in_one_group_and_languages_are_kept_apart(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        asked = [Said(f"question {place}", "en" if place % 2 else "zh") for place in range(20)]
        groups = await Likeness(house.runtime).groups(asked, CONTEXT)
        assert sorted(place for group in groups for place in group) == list(range(20))
        assert all(len({asked[place].language for place in group}) == 1 for group in groups)


async def test_a_teacher_sees_the_own_class_as_it_asks(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        app = app_of(house)
        house.turns.add(turn("about the moon", tenant="class-5b", refused=True))
        async with watching(app, "/pages/questions", "5b") as page, watching(app, "/pages/questions", "6a") as other:
            assert (await page.next("board"))["asked"] == 1
            assert (await other.next("board"))["asked"] == 0
            clock: Any = house.runtime.clock
            with stepping(clock, REST_SECONDS):
                house.turns.add(turn("about the exam", tenant="class-5b", refused=True))
                told = await page.next("board")
                while told["asked"] < 2:
                    told = await page.next("board")
                assert {topic["title"] for topic in told["unanswered"]} == {"about the moon", "about the exam"}
                await other.next("beat")


async def test_questions_can_be_of_one_course_and_of_late(tmp_path: Path) -> None:
    async with small_house(tmp_path) as (house, _):
        house.turns.add(turn("about the moon", course="small", refused=True))
        house.turns.add(turn("about the exam", course="other", refused=True))
        app = app_of(house)
        async with watching(app, "/pages/questions?course=other") as page:
            assert [topic["title"] for topic in (await page.next("board"))["unanswered"]] == ["about the exam"]
        async with watching(app, "/pages/questions?minutes=15") as page:
            assert (await page.next("board"))["asked"] == 0, "these turns are of 1970"
        for minutes in ("-1", "0", "x", "99999999"):
            assert (await call(app, f"/pages/questions?minutes={minutes}")).status == 400


async def test_questions_are_for_teachers(tmp_path: Path) -> None:
    async with small_house(tmp_path, keys=KEYS) as (house, _):
        assert (await call(app_of(house), "/pages/questions", key="pupil")).status == 401
        assert house.turns._watchers == []
