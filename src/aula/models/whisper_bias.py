"""What Whisper is told before it listens: the course's own terms, as if they had just been said.

A term is a word that the tokeniser has no single token for: Whisper saw it rarely. The terms that the course says most
often come last, next to the text, since a prompt weighs more there. Written Chinese has no spaces, so runs of two
characters that recur stand for its terms.
"""

import re
from collections import Counter
from collections.abc import Iterable

from aula.models.whisper_tokenizer import WhisperTokenizer

_WORD = re.compile(r"[^\W\d_]{4,}")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")
_LEAST_HAN = 3
"""How often a pair of characters is said by a course that it is a term of."""


def course_terms(sentences: Iterable[str], tokenizer: WhisperTokenizer) -> list[str]:
    """The rarest first."""
    words: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    for sentence in sentences:
        for run in _HAN.findall(sentence):
            pairs.update(run[place : place + 2] for place in range(len(run) - 1))
        words.update(word for word in _WORD.findall(_HAN.sub(" ", sentence)) if word.islower())
    terms = {word: count for word, count in words.items() if len(tokenizer.encode(f" {word}")) > 1}
    terms |= {pair: count for pair, count in pairs.items() if count >= _LEAST_HAN}
    return sorted(terms, key=lambda term: (terms[term], term))


def bias_tokens(sentences: Iterable[str], tokenizer: WhisperTokenizer, most: int) -> tuple[int, ...]:
    """At most so many tokens of terms, separated by commas; none where `most` is 0."""
    chosen: list[int] = []
    for term in reversed(course_terms(sentences, tokenizer) if most else []):
        tokens = tokenizer.encode(f" {term},")
        if len(tokens) + len(chosen) > most:
            break
        chosen = tokens + chosen
    return tuple(chosen)
