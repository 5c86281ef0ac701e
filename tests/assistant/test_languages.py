import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.assistant.languages import detect_language, length, sentences, stem, terms


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("what is force", "en"),
        ("What is Δv?", "en"),
        ("什么是力？", "zh"),
        ("什么是 velocity", "zh"),
        ("力とは何ですか", "ja"),
        ("힘이 뭐예요", "ko"),
        ("что такое сила", "und-Cyrl"),
        ("ما هي القوة", "und-Arab"),
        ("τι είναι η δύναμη", "und-Grek"),
        ("9.8 + 2 = ?", "und"),
        ("", "und"),
    ],
)
def test_the_script_tells_the_language(text: str, tag: str) -> None:
    assert detect_language(text) == tag


def test_english_sentences_end_where_speech_would() -> None:
    text = 'The force, e.g. 3.5 N, acts. Dr. Lee said "Stop." Then A. Smith left! Did he?\n- one\n- two'
    assert sentences(text, "en") == [
        "The force, e.g. 3.5 N, acts.",
        'Dr. Lee said "Stop."',
        "Then A. Smith left!",
        "Did he?",
        "- one",
        "- two",
    ]


def test_chinese_sentences_keep_their_closing_quotes() -> None:
    assert sentences("他说：“停。”然后走了！速度是3.5米每秒。好", "zh") == [
        "他说：“停。”",
        "然后走了！",
        "速度是3.5米每秒。",
        "好",
    ]


@given(st.text(alphabet="ab. !?\n。！力学3", max_size=60), st.sampled_from(["en", "zh"]))
def test_sentences_lose_nothing_but_white_space(text: str, language: str) -> None:
    assert "".join("".join(sentences(text, language)).split()) == "".join(text.split())


def test_english_terms_lose_stop_words_case_and_inflection() -> None:
    assert terms("What are the Forces that Newton’s law describes?", "en") == ["forc", "newton", "law", "describ"]


@pytest.mark.parametrize(
    "forms",
    [("stopped", "stopping"), ("bodies", "body"), ("masses", "mass"), ("moved", "moving", "move"), ("forces", "force")],
)
def test_forms_of_a_word_share_a_stem(forms: tuple[str, ...]) -> None:
    assert len({stem(form) for form in forms}) == 1


def test_numbers_and_formulas_stay() -> None:
    assert terms("F = ma, with 9.8 m/s² and 1,000 kg", "en") == ["f", "ma", "9.8", "m", "s2", "1000", "kg"]


def test_chinese_terms_are_characters_and_pairs_without_function_words() -> None:
    assert terms("力的单位", "zh") == ["力", "单", "位", "力的", "的单", "单位"]
    assert "什么" not in terms("什么", "zh")


def test_latin_terms_in_chinese_text_are_read_as_english() -> None:
    assert terms("牛顿的 Laws", "zh")[-1] == "law"


def test_length_counts_words_or_characters() -> None:
    assert (length("one two  three", "en"), length("力 学。", "zh")) == (3, 3)
