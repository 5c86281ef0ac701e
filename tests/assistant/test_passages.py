from hypothesis import given
from hypothesis import strategies as st

from aula.assistant.documents import Document
from aula.assistant.formats import Part
from aula.assistant.languages import length
from aula.assistant.passages import PASSAGE_CHARACTERS, PASSAGE_WORDS, cut_passages, plain


def cut(text: str, language: str = "en", **part: object) -> list[tuple[str, str]]:
    document = Document("a.md", "Title", language, (Part(text, **part),))  # type: ignore[arg-type]
    return [(passage.label, passage.text) for passage in cut_passages(document)]


def test_sections_give_passages_named_by_their_heading_path() -> None:
    text = "Intro.\n\n# One\n\nFirst.\n\n## Two\n\nSecond.\n\n# Three\n\nThird."
    assert cut(text) == [("Title", "Intro."), ("One", "First."), ("One > Two", "Second."), ("Three", "Third.")]


def test_paragraphs_share_a_passage_while_they_fit() -> None:
    paragraph = "word " * 49 + "end."
    labels = [label for label, _ in cut(f"## H\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}")]
    assert labels == ["H", "H (2)"]


def test_a_label_is_unique_even_beside_a_heading_that_looks_numbered() -> None:
    labels = [label for label, _ in cut("## H\n\na.\n\n## H (2)\n\nb.\n\n## H\n\nc.")]
    assert labels == ["H", "H (2)", "H (3)"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_no_sentence_is_cut_and_no_passage_too_long(sizes: list[int]) -> None:
    spoken = [" ".join(["Word", *["word"] * (size - 1)]) + "." for size in sizes]
    passages = [text for _, text in cut(" ".join(spoken))]
    assert " ".join(passages) == " ".join(spoken)
    assert all(length(text, "en") <= PASSAGE_WORDS and text.endswith(".") for text in passages)


def test_long_chinese_paragraphs_are_cut_between_sentences() -> None:
    passages = [text for _, text in cut("物体" * 40 + "。" + "运动" * 50 + "。" + "力" * 120 + "。", "zh")]
    assert all(length(text, "zh") <= PASSAGE_CHARACTERS and text.endswith("。") for text in passages)
    assert len(passages) == 2


def test_tables_are_read_row_by_row_with_their_column_names() -> None:
    table = "| Quantity | Unit |\n|---|:--:|\n| force | newton |\n| mass | kilogram |"
    assert cut(table) == [("Title", "Quantity: force; Unit: newton\nQuantity: mass; Unit: kilogram")]


def test_lists_keep_a_line_an_item() -> None:
    assert cut("Three laws:\n- the first\n  goes on\n- the second") == [
        ("Title", "Three laws:\n- the first goes on\n- the second")
    ]


def test_soft_line_ends_join_by_script() -> None:
    assert cut("A force\nis a push.") == [("Title", "A force is a push.")]
    assert cut("力是\n作用。", "zh") == [("Title", "力是作用。")]


def test_inline_marks_are_taken_away() -> None:
    assert plain("**Force** is *a* [push](http://x.y) of `5 N`, $F = ma$, 3 * 4 * 5, snake_case_name") == (
        "Force is a push of 5 N, F = ma, 3 * 4 * 5, snake_case_name"
    )


def test_page_labels_lead_the_heading_path_and_plain_text_has_no_headings() -> None:
    assert cut("# not a heading", label="p. 3", markdown=False) == [("p. 3", "# not a heading")]
    assert cut("# H\n\nText.", label="slide 2") == [("slide 2 > H", "Text.")]


def test_fenced_code_is_no_heading_and_comments_vanish() -> None:
    assert cut("```\n# code\n```\n<!-- hidden -->\n\nText.") == [("Title", "# code\nText.")]
