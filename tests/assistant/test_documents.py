import csv
import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest

from aula.assistant import formats
from aula.assistant.documents import read_documents, split_front_matter
from aula.assistant.passages import cut_passages
from aula.core.errors import CourseEmptyError, DocumentError, UnsupportedLanguageError

FRONT = "---\ntitle: Motion\nlanguage: en\nconcepts: [speed]\nprerequisites: [length]\n---\n"
LESSON = FRONT + "\n## Speed\n\nSpeed is a rate.\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pdf(*pages: str, password: str | None = None) -> bytes:
    from reportlab.pdfgen.canvas import Canvas

    target = io.BytesIO()
    canvas = Canvas(target, encrypt=password)
    for page in pages:
        if page:
            canvas.drawString(72, 720, page)
        canvas.rect(1, 1, 9, 9)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def word(text: str) -> bytes:
    """The least that is a Word document."""
    kinds = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    schemas = "http://schemas.openxmlformats.org"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{schemas}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kinds}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{schemas}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{schemas}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{schemas}/wordprocessingml/2006/main"><w:body>'
        f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>",
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def test_front_matter_describes_the_document(tmp_path: Path) -> None:
    (document,) = read_documents(write(tmp_path, "01-motion.md", LESSON)).documents
    assert (document.title, document.language) == ("Motion", "en")
    assert (document.concepts, document.prerequisites) == (("speed",), ("length",))
    assert document.parts[0].text.startswith("\n## Speed")


def test_a_title_comes_from_the_first_heading_or_the_file_name(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "# Falling bodies\n\nThey fall.")
    write(tmp_path, "02-free-fall.md", "They fall.")
    assert [d.title for d in read_documents(tmp_path).documents] == ["free fall", "Falling bodies"]


@pytest.mark.parametrize(
    ("front", "line"),
    [
        ("title: [unclosed\n", "line 3"),
        ("title: x\nconcepts: speed\n", "line 3"),
        ("language: fr\n", "line 2"),
        ("- a\n- b\n", "line 2"),
    ],
)
def test_bad_front_matter_names_its_line(front: str, line: str) -> None:
    with pytest.raises(DocumentError, match=line):
        split_front_matter("a.md", f"---\n{front}---\ntext")


def test_front_matter_must_be_closed_but_a_rule_is_none() -> None:
    with pytest.raises(DocumentError, match="line 1"):
        split_front_matter("a.md", "---\ntitle: x\n\ntext")
    assert split_front_matter("a.md", "---\n\ntext") == ({}, "---\n\ntext")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_the_encodings_of_chinese_classrooms_are_read(tmp_path: Path, encoding: str) -> None:
    (document,) = read_documents(write(tmp_path, "a.txt", "力是物体间的作用。".encode(encoding))).documents
    assert document.parts[0].text == "力是物体间的作用。"
    assert document.language == "zh"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.md", b"\x89PNG\0\0\0", "not text"),
        ("a.txt", "caf\xe9 au lait".encode("latin-1"), "unknown encoding"),
        ("a.md", b"", "empty"),
        ("a.md", b"---\ntitle: x\n---\n\n", "empty below its front matter"),
        ("a.odt", b"x", "cannot be read"),
        ("a.pdf", b"%PDF-1.4 broken", "a.pdf"),
        ("a.docx", b"PK\3\4 broken", "cannot be read as DOCX"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted"),
        ("a.vtt", b"no header here", "cannot be read as WebVTT"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        read_documents(write(tmp_path, name, content))


def test_an_unsupported_kind_names_the_supported(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        read_documents(write(tmp_path, "a.doc", "x"))
    assert {".md", ".pdf", ".docx", ".vtt"} <= set(caught.value.available)


def test_another_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLanguageError, match="und-Cyrl"):
        read_documents(write(tmp_path, "a.txt", "Сила есть векторная величина."))


def test_a_folder_is_read_in_order_without_hidden_files_and_pictures(tmp_path: Path) -> None:
    for name in ("b.md", "a.md", "part/c.md", ".hidden.md", ".git/d.md"):
        write(tmp_path, name, "Words.")
    write(tmp_path, "figure.png", b"\0")
    assert [d.name for d in read_documents(tmp_path).documents] == ["a.md", "b.md", "part/c.md"]


def test_bad_files_of_a_folder_are_listed_together_or_skipped(tmp_path: Path) -> None:
    write(tmp_path, "good.md", "Words.")
    write(tmp_path, "empty.md", "")
    write(tmp_path, "old.doc", "x")
    with pytest.raises(DocumentError, match=r"2 files .*empty\.md.*old\.doc"):
        read_documents(tmp_path)
    reading = read_documents(tmp_path, skip_bad=True)
    assert [d.name for d in reading.documents] == ["good.md"]
    assert [name for name, _ in reading.skipped] == ["empty.md", "old.doc"]


def test_a_folder_with_nothing_to_read_and_a_missing_path_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CourseEmptyError):
        read_documents(tmp_path)
    with pytest.raises(DocumentError, match="does not exist"):
        read_documents(tmp_path / "absent")


def test_pdf_pages_are_kept_and_a_sentence_over_a_page_end_stays_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pdf", pdf("A force is a push or", "a pull. It has a direction."))
    (document,) = read_documents(path).documents
    assert [(part.label, " ".join(part.text.split())) for part in document.parts[:2]] == [
        ("p. 1", "A force is a push or a pull."),
        ("p. 2", "It has a direction."),
    ]


def test_an_encrypted_pdf_and_a_scan_say_so(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="encrypted"):
        read_documents(write(tmp_path, "a.pdf", pdf("secret", password="x")))
    with pytest.raises(DocumentError, match="scan"):
        read_documents(write(tmp_path, "b.pdf", pdf("")))


def test_word_slides_and_web_pages_are_read(tmp_path: Path) -> None:
    import pptx

    write(tmp_path, "a.docx", word("Speed is a rate."))
    slides = pptx.Presentation()
    for title in ("Force", "Mass"):
        slides.slides.add_slide(slides.slide_layouts[5]).shapes.title.text = title
    slides.save(str(tmp_path / "b.pptx"))
    write(tmp_path, "c.html", "<html><script>bad()</script><h1>Work</h1><p>Work is force times distance.</p></html>")
    text, slides_, page = read_documents(tmp_path).documents
    assert text.parts[0].text.strip() == "Speed is a rate."
    assert [(part.label, "Force" in part.text) for part in slides_.parts] == [("slide 1", True), ("slide 2", False)]
    assert "bad()" not in page.parts[0].text
    assert "Work is force times distance." in page.parts[0].text


@pytest.mark.parametrize("header", [("question", "answer"), ("Question", "Answer"), ("问题", "答案")])
def test_a_question_list_gives_a_section_a_question(tmp_path: Path, header: tuple[str, str]) -> None:
    target = io.StringIO()
    csv.writer(target).writerows([header, ("What is force?", "A push,\nor a pull.")])
    (document,) = read_documents(write(tmp_path, "faq.csv", target.getvalue())).documents
    assert document.parts[0].text == "## What is force?\n\nA push,\nor a pull.\n"


def test_a_question_without_an_answer_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="row 3"):
        read_documents(write(tmp_path, "faq.csv", "q,a\nx,y\nz,\n"))


def test_captions_become_timed_sentences(tmp_path: Path) -> None:
    cues = [
        ("00:00:01.000", "Force is a push"),
        ("00:00:04.000", "or a pull. Mass is"),
        ("00:00:07.000", "something else."),
    ]
    body = "".join(f"{start} --> {start[:-3]}900\n{text}\n\n" for start, text in cues)
    (document,) = read_documents(write(tmp_path, "a.vtt", "WEBVTT\n\n" + body)).documents
    assert [(part.label, part.text) for part in document.parts] == [
        ("00:00:01", "Force is a push or a pull. Mass is something else.")
    ]


def test_long_captions_are_parted_at_sentences_with_their_times(tmp_path: Path) -> None:
    body = "".join(
        f"00:{minute:02}:00.000 --> 00:{minute:02}:50.000\n{'word ' * 59}end{minute}.\n\n" for minute in range(4)
    )
    (document,) = read_documents(write(tmp_path, "a.vtt", "WEBVTT\n\n" + body)).documents
    assert [part.label for part in document.parts] == ["00:00:00", "00:01:00", "00:02:00", "00:03:00"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "good.md", "Words.")
    os.mkfifo(tmp_path / "a.md")
    with pytest.raises(DocumentError, match="pipe"):
        read_documents(tmp_path)
    with pytest.raises(DocumentError, match="pipe"):
        read_documents(tmp_path / "a.md")
    assert [name for name, _ in read_documents(tmp_path, skip_bad=True).skipped] == ["a.md"]


@pytest.mark.parametrize("value", ["2024-13-45", "[" * 3000, "!!bool perhaps", "!!timestamp never"])
def test_front_matter_that_breaks_its_reader_names_the_file(tmp_path: Path, value: str) -> None:
    with pytest.raises(DocumentError, match=r"a\.md"):
        read_documents(write(tmp_path, "a.md", f"---\ntitle: {value}\n---\nWords.\n"))


def test_what_cannot_be_stored_or_shown_is_left_out(tmp_path: Path) -> None:
    front = r'title: "A\ud800 \e[31m\u202eforce"' + "\n" + r'concepts: ["spe\u202eed"]'
    text = f"---\n{front}\n---\n## He\x1bad\u202e\n\nA force\tacts.\n"
    (document,) = read_documents(write(tmp_path, "a.md", text)).documents
    assert (document.title, document.concepts) == ("A\ufffd [31mforce", ("speed",))
    assert document.parts[0].text == "## Head\n\nA force\tacts.\n"


@pytest.mark.parametrize("name", [b"bad\xff.md", b"bad\x1b[31m.md"])
def test_a_file_name_that_cannot_be_shown_is_an_error(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_text("Words.")
    write(tmp_path, "good.md", "Words.")
    with pytest.raises(DocumentError, match="cannot be shown") as caught:
        read_documents(tmp_path)
    caught.value.what.encode()
    ((skipped, why),) = read_documents(tmp_path, skip_bad=True).skipped
    assert (skipped + why).isprintable()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_cannot_be_looked_at_is_a_document_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DocumentError, match="cannot be read"):
        read_documents(tmp_path / name)


def test_a_folder_that_cannot_be_read_is_bad_and_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "good.md", "Words.")
    write(tmp_path, "closed/a.md", "Words.")
    scan = os.scandir

    def guarded(folder: str | Path) -> object:
        if Path(folder).name in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    closed = {"closed"}
    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DocumentError, match="Permission denied"):
        read_documents(tmp_path)
    reading = read_documents(tmp_path, skip_bad=True)
    assert [d.name for d in reading.documents] == ["good.md"]
    assert [name for name, _ in reading.skipped] == ["closed"]
    closed.add(tmp_path.name)
    with pytest.raises(DocumentError, match="Permission denied"):
        read_documents(tmp_path, skip_bad=True)


def test_warnings_of_converters_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from markitdown.converters import HtmlConverter

    convert = HtmlConverter.convert

    def warned(*arguments: object, **options: object) -> object:
        warnings.warn("unknown style", UserWarning, stacklevel=1)
        return convert(*arguments, **options)

    monkeypatch.setattr(HtmlConverter, "convert", warned)
    assert formats.read_parts(write(tmp_path, "a.html", "<p>Work.</p>"))[0].text.strip() == "Work."


def test_headings_of_a_pdf_do_not_run_into_the_text(tmp_path: Path) -> None:
    from reportlab.pdfgen.canvas import Canvas

    target = io.BytesIO()
    canvas = Canvas(target)
    canvas.setFont("Helvetica-Bold", 18)
    canvas.drawString(72, 720, "Swarming")
    canvas.setFont("Helvetica", 11)
    canvas.drawString(72, 690, "Swarming is how bees found a new colony, where a <b and c> d.")
    canvas.drawString(72, 676, "A queen leaves with half of them.")
    canvas.save()
    (document,) = read_documents(write(tmp_path, "a.pdf", target.getvalue())).documents
    (passage,) = cut_passages(document)
    assert passage.label == "p. 1 > Swarming"
    assert passage.text.startswith("Swarming is how bees")
    assert "c> d. A queen" in passage.text


def test_short_lines_of_a_pdf_that_are_no_headings_stay_text() -> None:
    for text in ("F = ma\n\nForce is mass times acceleration.", "Mass\n\nForce\n\nSpeed", "It moves.\n\nIt stops."):
        assert formats._page(1, text) == formats.Part(text, label="p. 1", markdown=False)
