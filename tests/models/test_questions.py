import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.models.questions import course_terms, number_words, question_sets, words_of


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A force is a push, or a pull.", "a force is a push or a pull"),
        ("9.8 m/s² downwards", "nine point eight metres per second squared downwards"),
        ("F = ma", "f equals m a"),
        ("Newton’s 3 laws; 力", "newton's three laws"),
        ("10,000 or 342", "ten thousand or three hundred forty two"),
        ("...", ""),
    ],
)
def test_sentences_become_spoken_words(sentence: str, words: str) -> None:
    assert words_of(sentence) == words.split()


@given(st.integers(0, 10**9))
def test_every_number_has_words(number: int) -> None:
    assert all(word.isalpha() for word in number_words(str(number)))


def test_terms_are_what_sentences_define_and_talk_of() -> None:
    terms = course_terms([words_of("The net force is the vector sum of all forces."), words_of("It is so.")])
    assert {"net force", "force", "vector sum", "forces"} <= set(terms)
    assert not {"the", "it", "is", "of"} & set(terms)
    assert max(terms, key=lambda term: terms[term]) == "net force"


def test_questions_are_filled_with_terms_and_fixed_phrases_are_there() -> None:
    sets = question_sets(["Inertia is the tendency to keep still.", "Mass is inertia in numbers."])
    sentences = {" ".join(words) for part in sets for words in part.sentences}
    assert {"what is inertia", "explain mass", "please repeat that", "slower please"} <= sentences
    assert not any("{" in sentence for sentence in sentences)


def test_an_empty_course_leaves_the_phrases() -> None:
    assert [part for part in question_sets([]) if part.sentences]
    assert question_sets(["", "..."])
