"""Which sentences of the found passages answer the question, and how they are made short enough to hear."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aula.assistant.course import Course
from aula.assistant.languages import length, sentences, terms
from aula.assistant.questions import KEY_MARK, Question, defines_plainly
from aula.assistant.retrieval import Hit, weigh

LONGEST_WORDS = 45
LONGEST_CHARACTERS = 90
"""About fifteen seconds of speech."""
PASSAGES_READ = 3
"""How many hits are searched for sentences."""
HIT_WEIGHT = 0.5
DEFINES_WEIGHT = 0.6
TYPE_WEIGHT = 0.15
CONTEXT_SHARE = 0.4
"""What a sentence gains from its passage's rank, from defining the asked thing and from holding the asked kind of
thing, and the share that words of the heading or the sentence before count; measured by benchmarks/retrieval.py."""
COMPANION_SHARE = 0.6
"""A neighbour is said too when it scores this much of the best sentence."""

_LEANING = re.compile(
    r"(?:this|these|those|such|it|they|he|she|however|therefore|thus|so|for this reason|adding to|in this case"
    r"|where|here)\b"
    "|这|那|它|他们|因此|所以|但|然而|此时|其中|例如|比如",
    re.IGNORECASE,
)
"""Beginnings that lean on the sentence before."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A candidate. `coverage` is the share of the question's weight of words in it and its context, 0..1."""

    hit: Hit
    place: int
    text: str
    coverage: float
    defines: float
    leaning: bool
    score: float


def rank_sentences(question: Question, hits: Sequence[Hit], course: Course) -> list[Sentence]:
    """The sentences of the best hits, best first."""
    weights = weigh(question, course.lexical)
    total = sum(weights.values()) or 1.0
    wanted = _wanted(question)
    asked = set(question.key.removeprefix(KEY_MARK).split())
    ranked: list[Sentence] = []
    for hit in hits[:PASSAGES_READ]:
        language = hit.passage.language
        context = set(terms(". ".join(hit.passage.headings), language))
        for place, text in enumerate(sentences(hit.passage.text, language)):
            own = set(terms(text, language))
            coverage = (
                sum(
                    weight if term in own else CONTEXT_SHARE * weight
                    for term, weight in weights.items()
                    if term in own or term in context
                )
                / total
            )
            names_it = asked <= own if language != "zh" else question.key.removeprefix(KEY_MARK) in text
            defines = defines_plainly(text, question.key, language) if asked and names_it else 0.0
            leaning = _LEANING.match(text) is not None
            fits = wanted is not None and wanted.search(text) is not None
            score = coverage + HIT_WEIGHT * hit.score / hits[0].score + DEFINES_WEIGHT * defines + TYPE_WEIGHT * fits
            ranked.append(Sentence(hit, place, text, coverage, defines, leaning, score))
            context = set(terms(". ".join(hit.passage.headings), language)) | own
    return sorted(ranked, key=lambda sentence: -sentence.score)


_WANTED: tuple[tuple[str, str, str], ...] = (
    (
        "en",
        r"\b(how (many|much|long|far|fast|old|large|big|high|often|heavy)|what (year|percentage|number))\b",
        r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|twelve|hundred|thousand|million|half|zero|once|twice)\b",
    ),
    (
        "en",
        r"^when\b|what (year|date|century)",
        r"\b1?\d{3}\b|\bcentury\b|January|February|March|April|May|June|July|August|September|October|November|December",
    ),
    ("en", r"^(who|whose|whom)\b", r"(?<=[a-z,] )[A-Z][a-z]+"),
    (
        "en",
        r"^why\b",
        r"\b(because|since|so that|therefore|due to|as a result|reason|causes?|caused|to avoid|in order)\b",
    ),
    ("zh", "多少|几[个次种年名]|多[大长高远久快重]|哪一?年|百分之几", "\\d|[一二三四五六七八九十百千万亿两零半]"),
    ("zh", "什么时候|哪一?年|何时", "\\d{3,4}|年|世纪|月"),
    ("zh", "为什么|为何|原因", "因为|由于|所以|因此|导致|为了|使得|才"),
)
_PATTERNS = tuple((language, re.compile(asks, re.IGNORECASE), re.compile(has)) for language, asks, has in _WANTED)


def _wanted(question: Question) -> re.Pattern[str] | None:
    """What a sentence that answers this kind of question holds: a number, a date, a name, a reason."""
    for language, asks, has in _PATTERNS:
        if language == question.language and asks.search(question.text.strip()):
            return has
    return None


def compose(ranked: Sequence[Sentence], language: str) -> tuple[str, tuple[Sentence, ...]]:
    """The best sentence, with the one after or before it where both still are short; in their order."""
    limit = LONGEST_CHARACTERS if language == "zh" else LONGEST_WORDS
    best = ranked[0]
    chosen = [best]
    room = limit - length(best.text, language)
    beside = {other.place - best.place: other for other in ranked[1:] if other.hit.number == best.hit.number}
    before, after = beside.get(-1), beside.get(1)
    if best.leaning and before:
        companion: Sentence | None = before
    elif best.defines:
        companion = after
    else:
        companion = max((other for other in (before, after) if other), key=lambda s: s.score, default=None)
        if companion and companion.score < COMPANION_SHARE * best.score:
            companion = None
    if companion and length(companion.text, language) <= room:
        chosen.append(companion)
    chosen.sort(key=lambda sentence: sentence.place)
    text = ("" if language == "zh" else " ").join(_spoken(sentence.text, language) for sentence in chosen)
    return shorten(text, language), tuple(chosen)


def _spoken(text: str, language: str) -> str:
    """A sentence as it is said: list marks off, an end put to a row or heading that has none."""
    text = re.sub(r"^\s*(?:[-*+•]|\d{1,3}[.)、])\s+", "", text).strip()
    if re.search(r"[\w%)）\]]$", text):
        text += "。" if language == "zh" else "."
    return text


_BREAK = {"zh": re.compile("[，；：、]"), "en": re.compile(r"[,;:—–](?=\s|$)|\s(?=\()")}


def shorten(text: str, language: str) -> str:
    """`text` cut at its last clause end within the limit, else at a word; such a cut is marked with an ellipsis."""
    limit = LONGEST_CHARACTERS if language == "zh" else LONGEST_WORDS
    if length(text, language) <= limit:
        return text
    if language == "zh":
        window = text[:limit]
    else:
        starts = [match.end() for match in re.finditer(r"\S+", text)]
        window = text[: starts[limit - 1]]
    breaks = [match.start() for match in _BREAK["zh" if language == "zh" else "en"].finditer(window)]
    late = [place for place in breaks if place >= len(window) // 2]
    return (window[: late[-1]] if late else window).rstrip(" ,;:，；：、") + "…"
