import pytest

from aula.models.word_errors import word_error_rate, word_errors, words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What's inertia, then?", ["what's", "inertia", "then"]),
        ("Don\u2019t - stop!", ["don't", "stop"]),
        ("\u8d8a\u9ad8\u8d8a\u5b89\u5168\u3002", list("\u8d8a\u9ad8\u8d8a\u5b89\u5168")),
        ("\u725b\u987f Newton 2\u6b21", ["\u725b", "\u987f", "newton", "2", "\u6b21"]),
        ("\uff28\uff22\uff11", ["hb1"]),
        ("_ ... '", []),
    ],
)
def test_words_as_they_are_compared(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted


@pytest.mark.parametrize(
    ("reference", "heard", "errors"),
    [("", "", 0), ("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "", 3), ("", "a b", 2), ("a b", "b a b", 1)],
)
def test_word_errors(reference: str, heard: str, errors: int) -> None:
    assert word_errors(reference.split(), heard.split()) == errors


def test_the_rate_is_over_all_words_not_over_clips() -> None:
    assert word_error_rate([("one", "two"), ("a b c d e f g h i", "a b c d e f g h i")]) == pytest.approx(0.1)
    assert word_error_rate([("\u5b89\u5168", "\u5b89 \u5355\u5168")]) == pytest.approx(0.5)
    assert word_error_rate([("Hello!", "hello")]) == 0
    assert word_error_rate([("", "")]) == 0
    assert word_error_rate([("one", "one two three")]) == 2
