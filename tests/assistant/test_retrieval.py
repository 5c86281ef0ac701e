import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.assistant.course import Course, CourseInfo, assemble, embedded_text, index_passages
from aula.assistant.languages import terms
from aula.assistant.lexical import LENGTH_SHARE, SATURATION, LexicalIndex
from aula.assistant.passages import Passage
from aula.assistant.questions import defines_plainly, definition_keys, parse_question
from aula.assistant.retrieval import Retriever
from aula.core.types import Float32

TEXTS = {
    "Force": "A force is a push or a pull. Its unit is the newton.",
    "Friction": "Friction opposes sliding. It is a force between two surfaces.",
    "Energy": "The ability to do work is called energy. It is measured in joules.",
    "Pendulum": "A pendulum swings to and fro under gravity.",
}


def embed(texts: Sequence[str]) -> Float32:
    vectors = np.full((len(texts), 64), 1e-3, dtype=np.float32)
    for row, text in enumerate(texts):
        for term in terms(text, "en"):
            vectors[row, zlib.crc32(term.encode()) % 64] += 1
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def course(texts: dict[str, str], language: str = "en", vectors: bool = True) -> Course:
    passages = tuple(Passage("a.md", label, ("Title", label), text, language) for label, text in texts.items())
    made = embed([embedded_text(p) for p in passages]) if vectors else np.zeros((len(passages), 0), dtype=np.float32)
    return assemble(
        CourseInfo("c", "C", language),
        passages,
        {key: a.copy() for key, a in index_passages(passages).items()} | {"vectors": made},
    )


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), min_size=1, max_size=6),
    st.sets(st.sampled_from("abcdefg")),
)
def test_the_index_scores_as_the_formula_says(documents: list[list[str]], query: set[str]) -> None:
    index = LexicalIndex.build(documents)
    mean = max(sum(map(len, documents)) / len(documents), 1e-9)
    for number, words in enumerate(documents):
        expected = 0.0
        for term in query:
            count = words.count(term)
            norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(words) / mean)
            expected += index.idf(term) * count / (count + norm) if count else 0.0
        assert index.score(dict.fromkeys(query, 1.0))[number] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    again = LexicalIndex.from_arrays(len(documents), index.arrays())
    assert np.array_equal(again.score(dict.fromkeys(query, 1.0)), index.score(dict.fromkeys(query, 1.0)))


def test_words_alone_find_a_passage() -> None:
    hits = Retriever(course(TEXTS, vectors=False)).search("How does friction act on surfaces?", "en")
    assert hits[0].passage.label == "Friction"
    assert hits[0].word_rank == 0
    assert (hits[0].cosine, hits[0].meaning_rank) == (0.0, None)


def test_a_definition_is_found_before_a_mention() -> None:
    hits = Retriever(course(TEXTS)).search("What is energy?", "en", embed(["energy"])[0])
    assert hits[0].passage.label == "Energy"
    assert hits[0].defines
    assert hits[0].coverage == pytest.approx(1.0)


def test_meaning_finds_what_words_do_not() -> None:
    retriever = Retriever(course(TEXTS))
    assert retriever.search("zzz", "en") == []
    hits = retriever.search("zzz", "en", embed(["pendulum swings gravity"])[0])
    assert hits[0].passage.label == "Pendulum"
    assert hits[0].coverage == 0.0


def test_k_limits_the_hits_and_scores_fall() -> None:
    hits = Retriever(course(TEXTS)).search("force", "en", embed(["force"])[0], k=2)
    assert len(hits) == 2
    assert hits[0].score >= hits[1].score


def test_chinese_is_found_by_characters() -> None:
    lessons = {"力": "力是物体对物体的作用。", "能量": "做功的本领叫做能量。", "摆": "摆来回摆动。"}
    hits = Retriever(course(lessons, "zh", vectors=False)).search("什么是能量？", "zh")
    assert (hits[0].passage.label, hits[0].defines) == ("能量", True)


@pytest.mark.parametrize(
    ("text", "language", "key"),
    [
        ("What is kinetic energy?", "en", "=kinetic energy"),
        ("um, so what's a force", "en", "=forc"),
        ("Can you explain what the normal force is?", "en", "=normal forc"),
        ("what does inertia mean", "en", "=inertia"),
        ("Tell me about Newton's laws, please", "en", "=newton law"),
        ("define work", "en", "=work"),
        ("why do things fall", "en", ""),
        ("老师，什么是加速度？", "zh", "=加速度"),
        ("加速度是什么意思", "zh", "=加速度"),
        ("请解释一下动量守恒定律", "zh", "=动量守恒定律"),
        ("动能的定义是什么", "zh", "=动能"),
        ("为什么会下落", "zh", ""),
    ],
)
def test_what_a_definition_question_asks_about(text: str, language: str, key: str) -> None:
    assert parse_question(text, language).key == key


def test_words_that_only_ask_are_no_terms() -> None:
    assert parse_question("Could you please tell me why a spring stretches?", "en").terms == ("spring", "stretch")
    assert "什么" not in parse_question("弹簧为什么会伸长", "zh").terms


@pytest.mark.parametrize(
    ("sentence", "language", "key"),
    [
        ("Kinetic energy is the energy of motion.", "en", "=kinetic energy"),
        ("The study of motion is called kinematics.", "en", "=kinematic"),
        ("We begin with kinematics—the study of motion.", "en", "=kinematic"),
        ("The law of refraction states that rays bend.", "en", "=law refraction"),
        ("The location of an object is its position.", "en", "=position"),
        ("摩擦力是阻碍相对运动的力。", "zh", "=摩擦力"),
        ("这种现象叫做惯性。", "zh", "=惯性"),
    ],
)
def test_sentences_that_define(sentence: str, language: str, key: str) -> None:
    assert key in definition_keys(sentence, language)
    assert defines_plainly(sentence, key, language) > 0


def test_a_mention_defines_nothing() -> None:
    assert defines_plainly("Cars have kinetic energy.", "=kinetic energy", "en") == 0
