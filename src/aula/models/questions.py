"""What a student of a course is likely to say: sentences for the recogniser's language model.

The course's own sentences teach how its words follow one another; templates of questions, filled with the course's
terms, teach how questions begin; fixed phrases are for greetings and "say it again".
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from aula.core.types import Intent
from aula.models.intents import load_examples
from aula.models.ngrams import WeightedSentences
from aula.models.spoken import spoken_form

TEMPLATES = (
    "what is {x}", "what is a {x}", "what is the {x}", "what are {x}", "what are the {x}", "what does {x} mean",
    "what is meant by {x}", "what do you mean by {x}", "define {x}", "explain {x}", "can you explain {x}",
    "could you explain the {x}", "please explain {x}", "describe {x}", "tell me about {x}", "how does {x} work",
    "how does a {x} work", "how do {x} work", "how do i calculate {x}", "how do you calculate the {x}",
    "how can we find the {x}", "how do i find {x}", "how do we measure {x}", "how can i measure the {x}",
    "how is {x} measured", "how is {x} defined", "what is the unit of {x}", "what are the units of {x}",
    "what is the formula for {x}", "what is the equation for the {x}", "which formula gives the {x}",
    "what causes {x}", "what happens to the {x} when", "what happens when {x}", "what happens if {x}",
    "what would happen without {x}", "why is {x}", "why are {x}", "why do {x}", "why does {x}", "why does the {x}",
    "why does a {x}", "why do we need {x}", "why is there {x}", "why can't {x}", "where does the {x} come from",
    "where does the {x} go", "when is {x}", "when does {x}", "when does a {x}", "who discovered {x}",
    "is {x}", "is the {x}", "is {x} a {y}", "is {x} the same as {y}", "are {x}", "are {x} and {y} the same",
    "does {x}", "does a {x}", "does the {x} change", "do {x}", "can {x}", "can a {x}", "can a {x} be {y}",
    "does {x} depend on {y}", "does the {x} depend on the {y}", "what does {x} depend on",
    "how is {x} related to {y}", "how does {x} change with {y}", "how does {x} affect {y}",
    "what is the difference between {x} and {y}", "what is the relation between {x} and {y}",
    "give me an example of {x}", "can you give an example of a {x}", "what is an example of {x}",
    "how many {x}", "how much {x}", "how far does {x}", "how fast does the {x}", "how long does {x}", "how big is {x}",
    "which {x}", "which is bigger {x} or {y}", "i don't understand {x}", "i do not understand the {x}",
    "i don't understand why {x}", "what about {x}", "and what about the {x}", "so what is {x}", "{x}", "the {x}",
)  # fmt: skip

COURSE_WEIGHT = 1.0
QUESTION_WEIGHT = 2000.0
"""Sentences that all filled templates together count as, shared between terms by how often the course has them."""
PHRASE_WEIGHT = 0.5
FULLY_ASKED = 250
"""Terms that fill every template; the many rarer ones fill each a share of them, which keeps the model small."""
_ROTATION = 12
_PHRASES = (Intent.REPEAT, Intent.SLOWER, Intent.GREETING, Intent.ORGANISATION)

_FUNCTION_TEXT = """
    a about above after again all also always am an and another any anything are as at away back be because been
    before being below between both but by can cannot could did do does doing done down during each either else even
    ever every few for from further gives had has have having he her here hers him his how however i if in into is it
    its itself just know later less let like make many may me mean means more most much must my need needs neither
    never next no nobody none nor not nothing now of off often on once one only or other our out over own per quite
    rather same say see shall she should since so some someone something still such than that the their theirs them
    then there therefore these they thing things this those through to too towards under until up upon us use used
    very was we well were what when where whether which while who whom whose why will with within without would yes
    yet you your yours don't doesn't isn't can't won't it's that's
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?")
_SUBJECT = re.compile(r"^(?:an? |the |one )?((?:[a-z']+ ){1,4}?)(?:is|are|means|happens)\b")
_SMALL_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_UNITS_TEENS = _SMALL_NUMBERS.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def question_sets(course: Sequence[str]) -> list[WeightedSentences]:
    """Weighted sentences, as lists of lower-case words, for a course given as its sentences."""
    sentences = [words for sentence in course if (words := words_of(sentence))]
    phrases = [words_of(row) for intent in _PHRASES for row in load_examples()["en"][intent]]
    sets = [WeightedSentences(sentences, COURSE_WEIGHT), WeightedSentences(phrases, PHRASE_WEIGHT)]
    weighted = course_terms(sentences)
    terms = sorted(weighted, key=lambda term: (-weighted[term], term))
    total = sum(weighted.values())
    for place, term in enumerate(terms):
        rows = TEMPLATES if place < FULLY_ASKED else TEMPLATES[place % _ROTATION :: _ROTATION]
        # The partner in "{x} and {y}" moves on with the term, so that every term stands in both places.
        filled = [
            template.format(x=term, y=terms[(place + 7 * (row + 1)) % len(terms)]).split()
            for row, template in enumerate(rows)
        ]
        sets.append(WeightedSentences(filled, QUESTION_WEIGHT * weighted[term] / total / len(rows)))
    return [part for part in sets if part.sentences]


def words_of(sentence: str) -> list[str]:
    """Lower-case words as they are spoken: units and numbers in words, no punctuation."""
    spoken = re.sub(r"\beigh\b", "a", spoken_form(sentence.replace("’", "'"), "en").lower())
    words: list[str] = []
    for word in _WORD.findall(spoken):
        words += number_words(word) if word[0].isdigit() else [word]
    return words


def number_words(digits: str) -> list[str]:
    """ "45" is "forty five", "9.8" is "nine point eight"; more than a million is read digit by digit."""
    whole, _, fraction = digits.partition(".")
    words = _whole_words(int(whole)) if int(whole) < 1_000_000 else [_UNITS_TEENS[int(digit)] for digit in whole]
    return words + (["point", *(_UNITS_TEENS[int(digit)] for digit in fraction)] if fraction else [])


def course_terms(sentences: Iterable[Sequence[str]]) -> dict[str, float]:
    """What questions may be about, with a weight: what sentences define, content words, and pairs of these."""
    counts: Counter[str] = Counter()
    for words in sentences:
        if subject := _SUBJECT.match(" ".join(words)):
            name = subject[1].strip()
            if not set(name.split()) <= _FUNCTION_WORDS:
                counts[name] += 3
        content = [word not in _FUNCTION_WORDS and word not in _NUMBER_WORDS for word in words]
        counts.update(word for word, is_content in zip(words, content, strict=True) if is_content)
        counts.update(
            f"{words[place]} {words[place + 1]}"
            for place in range(len(words) - 1)
            if content[place] and content[place + 1]
        )
    # The square root keeps the course's favourite word from filling most questions.
    return {term: count**0.5 for term, count in sorted(counts.items())}


_NUMBER_WORDS = frozenset({*_UNITS_TEENS, *_TENS, "hundred", "thousand", "point"})


def _whole_words(number: int) -> list[str]:
    if number < 20:
        return [_UNITS_TEENS[number]]
    if number < 100:
        return [_TENS[number // 10 - 2], *(_whole_words(number % 10) if number % 10 else [])]
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = _whole_words(number % size) if number % size else []
    return [*_whole_words(number // size), name, *rest]
