"""What each kind of file says: its bytes in, Markdown or plain text out, with pages and times kept for citations."""

import csv
import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aula.assistant.languages import detect_language, length, sentences
from aula.core.errors import DocumentError


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document. `label` is a page or a time ("p. 3", "00:12:30"), "" where there is none."""

    text: str
    label: str = ""
    markdown: bool = True


LARGEST_BYTES = 100 * 2**20
ENCODINGS = ("utf-8-sig", "utf-16 (only with its mark)", "gb18030")
_CAPTION_WORDS = 90
_CAPTION_CHARACTERS = 200
"""A caption passage: about half a minute of a lecture, so that its time leads to the place."""


_UNSHOWABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
_SURROGATE = re.compile("[\\ud800-\\udfff]")


def clean(text: str) -> str:
    """Without what can neither be stored nor shown safely: lone surrogates become U+FFFD; control characters
    but tabs and line ends, and the marks that turn the direction of text (Unicode Annex 9), are left out."""
    return _UNSHOWABLE.sub("", _SURROGATE.sub("\ufffd", text))


def clean_label(text: str) -> str:
    """`text` as `clean` leaves it, on one line."""
    return " ".join(clean(text).split())


def decode_text(path: Path, content: bytes) -> str:
    """UTF-8, UTF-16 with its mark or GB18030. Raises DocumentError for anything else."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _unify(content.decode("utf-16", errors="replace"))
    if b"\0" in content[:8192]:
        raise DocumentError(
            f"{path.name} is not text: it holds zero bytes",
            next_step="give it the suffix of what it is, or save it as text in UTF-8",
        )
    try:
        return _unify(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        fault = error
    try:
        text = content.decode("gb18030")
        if _reads_as_chinese(text):
            return _unify(text)
    except UnicodeDecodeError:
        pass
    raise DocumentError(
        f"{path.name} is in an unknown encoding: byte 0x{fault.object[fault.start]:02x} at {fault.start} "
        "is not UTF-8, and the text is not GB18030",
        available=ENCODINGS,
        next_step="save the file in UTF-8 and add it again",
    )


def _reads_as_chinese(text: str) -> bool:
    """GB18030 decodes nearly every byte string; only Chinese text then has runs of Han and no odd characters."""
    odd = re.search("[\ue000-\uf8ff\ufffd\x00-\x08\x0b\x0e-\x1f]", text)
    return odd is None and re.search("[\u4e00-\u9fff]{2,}", text) is not None


def _unify(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_markdown(path: Path, content: bytes) -> list[Part]:
    return [Part(decode_text(path, content))]


def read_plain(path: Path, content: bytes) -> list[Part]:
    pages = decode_text(path, content).split("\f")
    return [
        Part(page, label=f"p. {number}" if len(pages) > 1 else "", markdown=False)
        for number, page in enumerate(pages, 1)
    ]


def read_pdf(path: Path, content: bytes) -> list[Part]:
    """A part a page. A sentence that runs over a page's end stays whole, on the page where it begins.

    Read with pdfminer.six, which markitdown reads PDF with too, since markitdown drops the page ends of a
    file that has a table.
    """
    from pdfminer.high_level import extract_text
    from pdfminer.pdfdocument import PDFPasswordIncorrect

    try:
        pages = extract_text(io.BytesIO(content)).split("\f")
    except PDFPasswordIncorrect as error:
        raise DocumentError(
            f"{path.name} is encrypted", next_step="save it without a password and add it again"
        ) from error
    except Exception as error:  # pdfminer raises many kinds on damaged files
        raise _unreadable(path, "PDF", error) from error
    if not any(page.strip() for page in pages):
        raise DocumentError(
            f"{path.name} has {max(1, len(pages) - 1)} page(s) and no text: it is probably a scan",
            next_step="run text recognition (OCR) over it, and add what that makes",
        )
    return [_page(number, text) for number, text in enumerate(_mend_page_ends(pages), 1)]


_HEADING_CHARACTERS = 60
_HEADING = re.compile(r"(?:\d+(?:\.\d+)*[.、]? +)?[A-Z\u4e00-\u9fff][^=|]*[^\s=|.!?。！？,;:，；：、]")
_BODY = re.compile(r"[\"'“‘(]?[A-Z0-9\u4e00-\u9fff]")


def _page(number: int, text: str) -> Part:
    """A page with headings becomes Markdown; else a heading would run into the first sentence below it.

    pdfminer parts paragraphs by blank lines. A short line alone, without a final mark, is a heading where longer
    text or a whole sentence follows it.
    """
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text)]
    short = [len(text) <= _HEADING_CHARACTERS and bool(_HEADING.fullmatch(text)) for text in paragraphs]
    heads = [
        head and not short_below and bool(_BODY.match(below))
        for head, short_below, below in zip(short, short[1:], paragraphs[1:], strict=False)
    ]
    if not any(heads):
        return Part(text, label=f"p. {number}", markdown=False)
    marked = []
    for head, paragraph in zip([*heads, False], paragraphs, strict=True):
        # What only looks like Markdown's headings and tags must stay text.
        safe = re.sub(r"<(?=[a-zA-Z/!])", "< ", re.sub(r"(?m)^(?=\s*#)", r"\\", paragraph))
        marked.append(f"## {safe}" if head else safe)
    return Part("\n\n".join(marked), label=f"p. {number}")


_OPEN_END = re.compile(r"[\w,;，；、]$")
_FIRST_END = re.compile(r"[.!?。！？]+[\"'”’)]*(?=\s|$|[\u4e00-\u9fff])|\n\s*\n")


def _mend_page_ends(pages: list[str]) -> list[str]:
    mended: list[str] = []
    for page in (page.strip() for page in pages):
        runs_on = mended and _OPEN_END.search(mended[-1]) and re.match("[a-z\u4e00-\u9fff]", page)
        if runs_on:
            end = _FIRST_END.search(page)
            cut = end.end() if end else len(page)
            mended[-1] += "\n" + page[:cut].strip()
            page = page[cut:].strip()
        mended.append(page)
    return mended


def read_office(path: Path, content: bytes) -> list[Part]:
    """DOCX, PPTX and HTML through markitdown, with the three converters that read only the file itself."""
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise DocumentError(
            f"{path.name} is encrypted, or in Office's format from before 2007",
            next_step=f"save it as {path.suffix} without a password and add it again",
        )
    if path.suffix.lower() in (".html", ".htm"):
        content = decode_text(path, content).encode()
    try:
        text = _converted(path, content)
    except Exception as error:  # its converters raise whatever their libraries raise
        raise _unreadable(path, path.suffix[1:].upper(), error) from error
    slides = re.split(r"<!-- Slide number: (\d+) -->", text)
    parts = [Part(_unify(slides[0]))]
    parts += [
        Part(_unify(body), label=f"slide {number}") for number, body in zip(slides[1::2], slides[2::2], strict=True)
    ]
    return [part for part in parts if part.text.strip()]


def _converted(path: Path, content: bytes) -> str:
    with warnings.catch_warnings():
        # Its libraries warn of style they do not know; a reader of courses can do nothing about that.
        warnings.simplefilter("ignore")
        from markitdown import MarkItDown, StreamInfo
        from markitdown.converters import DocxConverter, HtmlConverter, PptxConverter

        converter = MarkItDown(enable_builtins=False, enable_plugins=False)
        for kind in (DocxConverter, PptxConverter, HtmlConverter):
            converter.register_converter(kind())
        info = StreamInfo(extension=path.suffix.lower(), filename=path.name)
        if path.suffix.lower() in (".html", ".htm"):
            info = StreamInfo(extension=".html", charset="utf-8")
        return str(converter.convert_stream(io.BytesIO(content), stream_info=info).text_content)


def _unreadable(path: Path, kind: str, error: Exception) -> DocumentError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
    return DocumentError(
        f"{path.name} cannot be read as {kind} ({reason.strip(' -')})",
        next_step="open it in the program that made it, and save or export it again",
    )


_QUESTION_HEADERS = frozenset(("question", "questions", "q", "问题", "问", "题目", "提问"))
_ANSWER_HEADERS = frozenset(("answer", "answers", "a", "答案", "答", "回答", "解答"))


def read_table(path: Path, content: bytes) -> list[Part]:
    """A list of questions gives one section a question; any other table one line a row, with column names.

    The standard library reads it: markitdown would make one wide table, which no passage could be cut from.
    """
    text = decode_text(path, content)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(map(str.strip, row))]
    except csv.Error as error:
        raise _unreadable(path, "CSV", error) from error
    if not rows:
        return []
    names = [name.strip() for name in rows[0]]
    lowered = [name.lower() for name in names]
    question = next((i for i, name in enumerate(lowered) if name in _QUESTION_HEADERS), None)
    answer = next((i for i, name in enumerate(lowered) if name in _ANSWER_HEADERS), None)
    if question is None or answer is None:
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        return [Part("\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]]))]
    sections = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(question, answer) or not row[question].strip() or not row[answer].strip():
            raise DocumentError(
                f"{path.name} has no question or no answer in row {number}",
                next_step=f"fill in the columns {names[question]!r} and {names[answer]!r}, or delete the row",
            )
        sections.append(f"## {' '.join(row[question].split())}\n\n{row[answer].strip()}\n")
    return [Part("\n".join(sections))]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def read_captions(path: Path, content: bytes) -> list[Part]:
    """WebVTT: cues joined to sentences, each part labelled with the time at which it begins."""
    import webvtt

    try:
        cues = webvtt.from_string(decode_text(path, content))
    except webvtt.errors.MalformedFileError as error:
        raise _unreadable(path, "WebVTT", error) from error
    timed = list(_timed_lines((cue.start, cue.text) for cue in cues.captions))
    language = detect_language(" ".join(line for _, line in timed))
    limit = _CAPTION_CHARACTERS if language == "zh" else _CAPTION_WORDS
    joint = "" if language == "zh" else " "
    parts: list[Part] = []
    begun, held = "", ""
    for start, sentence in _timed_sentences(timed, language, limit):
        if held and length(held, language) + length(sentence, language) > limit:
            parts.append(Part(held, label=begun.partition(".")[0], markdown=False))
            held = ""
        begun = begun if held else start
        held = held + joint + sentence if held else sentence
    if held:
        parts.append(Part(held, label=begun.partition(".")[0], markdown=False))
    return parts


def _timed_sentences(timed: list[tuple[str, str]], language: str, limit: int) -> Iterator[tuple[str, str]]:
    """Each sentence with the start of the cue it begins in. Captions without full stops are cut at `limit`."""
    begun, held = "", ""
    for start, line in timed:
        begun = begun if held else start
        held = held + ("" if language == "zh" else " ") + line if held else line
        *complete, rest = sentences(held, language)
        if re.search("[.!?。！？][\"'”’）)]*$", rest) or length(rest, language) >= limit:
            complete, rest = [*complete, rest], ""
        for sentence in complete:
            yield begun, sentence
            begun = start
        held = rest
    if held:
        yield begun, held


def _timed_lines(cues: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each caption line once: rolling captions repeat the line before."""
    last = ""
    for start, text in cues:
        for line in filter(None, (" ".join(line.split()) for line in text.split("\n"))):
            if line != last:
                yield start, line
            last = line


READERS: dict[str, Callable[[Path, bytes], list[Part]]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_plain,
    ".pdf": read_pdf,
    ".docx": read_office,
    ".pptx": read_office,
    ".html": read_office,
    ".htm": read_office,
    ".csv": read_table,
    ".vtt": read_captions,
}
"""Reader by suffix."""

BESIDE_TEXT = """\
.png .jpg .jpeg .gif .svg .webp .bmp .tif .tiff .ico .mp3 .wav .ogg .flac .m4a .mp4 .mov .webm .mkv
.css .js"""
BESIDE = frozenset(BESIDE_TEXT.split())
"""Pictures, sound and style that lie beside documents and carry no text of their own."""


def read_parts(path: Path) -> list[Part]:
    """What `path` says. Raises DocumentError: unsupported, unreadable, not text, encrypted, a scan, or empty."""
    reader: Any = READERS.get(path.suffix.lower())
    if reader is None:
        raise DocumentError(
            f"{path.name} is of a kind that cannot be read",
            available=sorted(READERS),
            next_step="export it as PDF or save it as one of these",
        )
    try:
        status = path.stat()
        # Reading a pipe or a device would wait for bytes that may never come.
        if not stat.S_ISREG(status.st_mode):
            raise DocumentError(
                f"{path.name} is a pipe, a device or a folder, not a file",
                next_step="take it away, or save what it holds as a file",
            )
        if status.st_size > LARGEST_BYTES:
            raise DocumentError(
                f"{path.name} is larger than {LARGEST_BYTES // 2**20} MiB", next_step="split it into chapters"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DocumentError(
            f"{path.name} cannot be read ({error.strerror})", next_step="mend its permissions or the path"
        ) from error
    parts = [replace(part, text=clean(part.text)) for part in (reader(path, content) if content.strip() else [])]
    if not any(re.search(r"\w", part.text) for part in parts):
        raise DocumentError(f"{path.name} is empty", next_step="write something into it, or take it away")
    return parts
