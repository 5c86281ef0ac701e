import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.assistant.answerability import COEFFICIENTS, FEATURES, answerability, logistic
from aula.assistant.answering import answer
from aula.assistant.course import Course, CourseInfo, assemble, index_passages
from aula.assistant.languages import length
from aula.assistant.passages import Passage
from aula.assistant.questions import parse_question
from aula.assistant.retrieval import Retriever
from aula.assistant.selection import LONGEST_CHARACTERS, LONGEST_WORDS, shorten
from aula.core.types import Answer, Intent

ENGLISH = {
    "Force": "You feel forces all day. A force is a push or a pull. Its unit is the newton. Doors need it.",
    "Springs": "A spring stretches because the atoms move apart. The stretch grows with the load.",
    "Energy": "Energy has many forms. The ability to do work is called energy.",
}
CHINESE = {
    "力": "每天都能感到力。力是物体对物体的作用。它的单位是牛顿。",
    "能量": "做功的本领叫做能量。它有很多种形式。",
}


def course(texts: dict[str, str], language: str) -> Course:
    passages = tuple(Passage("a.md", label, ("Lesson", label), text, language) for label, text in texts.items())
    arrays = {key: array.copy() for key, array in index_passages(passages).items()}
    return assemble(
        CourseInfo("c", "C", language), passages, arrays | {"vectors": np.zeros((len(passages), 0), dtype=np.float32)}
    )


def ask(question: str, language: str = "en", min_score: float = 0.5) -> Answer:
    taught = course(CHINESE if language == "zh" else ENGLISH, language)
    hits = Retriever(taught).search(question, language)
    return answer(question, language, Intent.CONTENT, hits, taught, min_score=min_score)


def test_a_definition_question_gets_the_defining_sentence_and_its_citation() -> None:
    said = ask("What is a force?")
    assert not said.refused
    assert "A force is a push or a pull." in said.text
    (citation,) = said.citations
    assert (citation.course, citation.document, citation.passage) == ("c", "a.md", "Force")
    assert "A force is a push or a pull." in citation.text
    assert 0.5 <= citation.score <= 1


def test_chinese_definitions_too() -> None:
    assert "力是物体对物体的作用。" in ask("什么是力？", "zh").text
    assert ask("能量是什么？", "zh").text.startswith("做功的本领叫做能量。")


def test_what_is_said_stands_in_the_passage_in_order() -> None:
    said = ask("Why does a spring stretch?")
    assert said.text.replace("…", "") in ENGLISH["Springs"]


@pytest.mark.parametrize(
    ("question", "language", "begins"),
    [
        ("Who won the football match last night?", "en", "This course does not say."),
        ("唐朝是哪一年建立的？", "zh", "这门课程没有讲到这一点。"),
        ("???", "en", "This course does not say."),
        ("", "zh", "这门课程没有讲到这一点。"),
    ],
)
def test_what_the_course_does_not_teach_is_refused_in_the_question_s_language(
    question: str, language: str, begins: str
) -> None:
    said = ask(question, language)
    assert said.refused
    assert said.text.startswith(begins)
    assert len(said.text) > len(begins)
    assert said.citations == ()
    assert said.language == language


def test_the_setting_moves_the_cut() -> None:
    assert ask("What is a force?", min_score=1.01).refused
    assert not ask("Where do springs come from?", min_score=0.0).refused


def test_a_refusal_names_the_nearest_topic() -> None:
    assert "Force" in ask("force", min_score=1.01).text


@given(st.text(alphabet="ab, .;—（），。力学", max_size=400), st.sampled_from(["en", "zh"]))
def test_an_answer_is_short_enough_to_hear(text: str, language: str) -> None:
    made = shorten(text, language)
    limit = LONGEST_CHARACTERS + 1 if language == "zh" else LONGEST_WORDS
    assert length(made, language) <= limit


def test_a_long_sentence_is_cut_at_a_clause() -> None:
    text = "word " * 30 + "word, " + "more " * 30
    assert shorten(text.strip(), "en") == ("word " * 31).strip() + "…"


def test_every_kind_of_evidence_has_coefficients_for_known_features() -> None:
    assert set(COEFFICIENTS) == {"en", "en-words", "zh"}
    for coefficients in COEFFICIENTS.values():
        assert set(coefficients) <= {*FEATURES, "constant"}
        assert 0 <= logistic(dict.fromkeys(FEATURES, 0.5), coefficients) <= 1


def test_nothing_found_is_not_answerable() -> None:
    taught = course(ENGLISH, "en")
    assert answerability(parse_question("zzz", "en"), [], [], taught) == 0.0
