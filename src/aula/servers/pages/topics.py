"""What a class asked, as its teacher sees it: by topic of the course, and what the course could not answer."""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from aula.assistant.course import Course
from aula.assistant.phrases import phrase
from aula.core.errors import AulaError
from aula.core.types import Context, Intent
from aula.servers.pages.likeness import Likeness, Said
from aula.servers.turn_log import TurnRecord

SHOWN_QUESTIONS = 12
"""Of a topic, the latest."""
_OF_THE_TALK = frozenset({Intent.GREETING.value, Intent.REPEAT.value, Intent.SLOWER.value})
_AGAIN = re.compile(r" \(\d+\)$")
"""A section that is cut into several passages numbers them."""

Courses = Callable[[str], Awaitable[Course]]


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    answer: str
    moment: float
    language: str
    aloud: bool


@dataclass(frozen=True, slots=True)
class Topic:
    """`path`: the headings above `title` in the course, none where questions are alike and cite nothing. `questions`
    are the latest first, `count` is of all."""

    title: str
    path: tuple[str, ...]
    course: str
    document: str
    passage: str
    count: int
    latest: float
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Board:
    topics: tuple[Topic, ...]
    unanswered: tuple[Topic, ...]
    asked: int
    unheard: int
    """Turns whose words could not be made out."""
    failed: int


async def board(turns: Iterable[TurnRecord], courses: Courses, likeness: Likeness, context: Context) -> Board:
    """The turns of one class. Raises nothing of the runtime's: what cannot be embedded is grouped by its words."""
    cited: dict[tuple[str, str, str], list[TurnRecord]] = defaultdict(list)
    others: list[TurnRecord] = []
    unanswered: list[TurnRecord] = []
    unheard = failed = asked = 0
    for turn in turns:
        if turn.error is not None:
            failed += 1
        elif not turn.question or turn.answer == phrase("unclear", turn.language, ""):
            unheard += 1
        elif turn.intent in _OF_THE_TALK:
            continue
        else:
            asked += 1
            if turn.refused:
                unanswered.append(turn)
            elif turn.citations:
                document, passage, _ = turn.citations[0]
                cited[turn.course, document, _AGAIN.sub("", passage)].append(turn)
            else:
                others.append(turn)
    topics = [await _cited(key, those, courses) for key, those in cited.items()]
    topics += await _alike(others, likeness, context)
    return Board(
        _in_order(topics),
        _in_order(await _alike(unanswered, likeness, context)),
        asked,
        unheard,
        failed,
    )


def _in_order(topics: Sequence[Topic]) -> tuple[Topic, ...]:
    return tuple(sorted(topics, key=lambda topic: (-topic.count, -topic.latest)))


async def _cited(key: tuple[str, str, str], turns: Sequence[TurnRecord], courses: Courses) -> Topic:
    course, document, label = key
    path = tuple(label.split(" > "))
    try:
        passages = (await courses(course)).passages
        path = next(one.headings for one in passages if one.document == document and _AGAIN.sub("", one.label) == label)
    except (AulaError, StopIteration):
        pass  # the course was changed since; its old label still says where it stood
    passage = turns[-1].citations[0][1]
    return _topic(turns, path[-1], path[:-1], course, document, passage)


async def _alike(turns: Sequence[TurnRecord], likeness: Likeness, context: Context) -> list[Topic]:
    said = [Said(turn.question, turn.language) for turn in turns]
    groups = await likeness.groups(said, context)
    return [
        _topic([turns[place] for place in group], turns[group[0]].question, (), turns[group[0]].course, "", "")
        for group in groups
    ]


def _topic(
    turns: Sequence[TurnRecord], title: str, path: tuple[str, ...], course: str, document: str, passage: str
) -> Topic:
    latest = sorted(turns, key=lambda turn: -turn.moment)
    questions = tuple(
        Question(turn.question, turn.answer, turn.moment, turn.language, turn.clock != "text")
        for turn in latest[:SHOWN_QUESTIONS]
    )
    return Topic(title, path, course, document, passage, len(turns), latest[0].moment, questions)
