"""Documents cut into passages: pieces small enough to cite and to hear, never cut inside a sentence."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aula.assistant.documents import Document
from aula.assistant.formats import Part
from aula.assistant.languages import length, sentences

PASSAGE_WORDS = 120
PASSAGE_CHARACTERS = 250
"""About 40 seconds of speech in either language; one idea of a textbook."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One citable piece. `label` is unique inside `document`; `headings` are the document's title and the
    headings above the text, as words to search by."""

    document: str
    label: str
    headings: tuple[str, ...]
    text: str
    language: str


@dataclass(slots=True)
class _Section:
    path: tuple[str, ...]
    blocks: list[list[str]] = field(default_factory=list)
    """Each block is a paragraph, list or table as the pieces it may be cut into, joined by `joint`."""
    joints: list[str] = field(default_factory=list)

    def add(self, pieces: list[str], joint: str) -> None:
        if pieces:
            self.blocks.append(pieces)
            self.joints.append(joint)


def cut_passages(document: Document) -> list[Passage]:
    """The passages of `document` in reading order; [] where it holds no words."""
    language = document.language
    cut: list[tuple[str, tuple[str, ...], str]] = []
    for part in document.parts:
        for section in _sections(part, language):
            label = " > ".join(filter(None, (part.label, *section.path))) or document.title
            headings = tuple(dict.fromkeys((document.title, *section.path)))
            cut += [(label, headings, text) for text in _pack(section, language)]
    uses: Counter[str] = Counter()
    taken = {label for label, _, _ in cut}
    passages: list[Passage] = []
    for label, headings, text in cut:
        uses[label] += 1
        unique = label
        while uses[label] > 1 and (unique := f"{label} ({uses[label]})") in taken:
            uses[label] += 1
        passages.append(Passage(document.name, unique, headings, text, language))
    return passages


_FENCE = re.compile(r"^\s*(```|~~~)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)、])\s+")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$")
_RULE = re.compile(r"^\s*([-*_])(\s*\1){2,}\s*$")


def _sections(part: Part, language: str) -> Iterator[_Section]:
    if not part.markdown:
        section = _Section(())
        for paragraph in re.split(r"\n\s*\n", part.text):
            section.add(sentences(_join_lines(paragraph.split("\n")), language), _joint(language))
        yield section
        return
    path: list[tuple[int, str]] = []
    section = _Section(())
    lines: list[str] = []
    fenced = False
    text = re.sub(r"<!--.*?-->", "", part.text, flags=re.DOTALL)
    for line in [*text.split("\n"), ""]:
        heading = None if fenced else _HEADING.match(line)
        if _FENCE.match(line):
            fenced = not fenced
        elif heading:
            _flush(lines, section, language)
            yield section
            level = len(heading[1])
            path = [(depth, name) for depth, name in path if depth < level]
            path.append((level, plain(heading[2])))
            section = _Section(tuple(name for _, name in path if name))
        elif line.strip() or fenced:
            lines.append(line)
        else:
            _flush(lines, section, language)
    _flush(lines, section, language)
    yield section


def _flush(lines: list[str], section: _Section, language: str) -> None:
    """Add the block that `lines` are to `section`, and empty `lines`."""
    block = [line for line in lines if not _RULE.match(line) or "|" in line]
    lines.clear()
    if len(block) > 1 and _TABLE_RULE.match(block[1]):
        section.add(_table_rows(block), "\n")
    elif any(_ITEM.match(line) for line in block):
        _add_list(block, section)
    elif block:
        section.add(sentences(plain(_join_lines(block)), language), _joint(language))


def _add_list(block: list[str], section: _Section) -> None:
    """A lead-in sentence stays with its items; an item's continuation lines join it."""
    items: list[list[str]] = [[]]
    for line in block:
        if _ITEM.match(line):
            items.append([])
        items[-1].append(line.strip())
    section.add([text for item in items if (text := plain(_join_lines(item)))], "\n")


def _table_rows(block: list[str]) -> list[str]:
    """Each row with its column names, so that it can be found and understood alone."""
    header, *rows = [_cells(line) for line in block if not _TABLE_RULE.match(line)]
    lines: list[str] = []
    for row in rows:
        named = [
            f"{name}: {value}" if name else value
            for name, value in zip([*header, *[""] * len(row)], row, strict=False)
            if value
        ]
        if named:
            lines.append("; ".join(named))
    return lines or ["; ".join(filter(None, header))]


def _cells(line: str) -> list[str]:
    return [plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"!\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)_(?=\S)([^_]+?)(?<=\S)_(?!\w)"), r"\1"),
    (re.compile(r"`+([^`]+)`+"), r"\1"),
    (re.compile(r"\$\$?([^$\n]+?)\$?\$(?!\d)"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), " "),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!|>~$-])"), r"\1"),
)


def plain(text: str) -> str:
    """Markdown's inline marks taken away: links keep their words, emphasis and code their content."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return re.sub(r"[ \t\u00a0]+", " ", text).strip()


def _join_lines(lines: Sequence[str]) -> str:
    """Soft line ends become spaces, except between Chinese characters, where print has none."""
    text = "\n".join(line.strip().removeprefix("> ") for line in lines).strip()
    text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])", "", text)
    text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)  # a printed line's hyphenation
    return text.replace("\n", " ")


def _joint(language: str) -> str:
    return "" if language == "zh" else " "


def _pack(section: _Section, language: str) -> list[str]:
    """Whole blocks while they fit; a block that is too long alone is cut into even runs of its pieces."""
    limit = PASSAGE_CHARACTERS if language == "zh" else PASSAGE_WORDS
    packed: list[str] = []
    room = 0
    for pieces, joint in zip(section.blocks, section.joints, strict=True):
        for run in _even_runs(pieces, limit, language):
            text = joint.join(run)
            size = length(text, language)
            if packed and size <= room:
                packed[-1] += "\n" + text
                room -= size
            else:
                packed.append(text)
                room = limit - size
    return packed


def _even_runs(pieces: list[str], limit: int, language: str) -> list[list[str]]:
    sizes = [length(piece, language) for piece in pieces]
    total = sum(sizes)
    count = -(-total // limit) if total > limit else 1
    share = total / count
    runs: list[list[str]] = [[]]
    filled = done = 0
    for piece, size in zip(pieces, sizes, strict=True):
        # A piece goes where the greater part of it falls, as long as that run stays within the limit.
        if runs[-1] and (filled + size > limit or done + size / 2 > share * len(runs)):
            runs.append([])
            filled = 0
        runs[-1].append(piece)
        filled += size
        done += size
    return runs
