"""A small n-gram language model from weighted sentences, written as ARPA text.

Interpolated Witten-Bell smoothing: for a history h with total count c(h) and t(h) kinds of continuation,

    P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)),        h' = h without its oldest word,

(Witten and Bell 1991, method C, in the recursive form of Chen and Goodman 1998, section 2.5). The recursion ends in
the uniform distribution over the vocabulary. An unseen continuation gets t(h) / (c(h) + t(h)) of P(w | h'), which is
just the back-off weight that the ARPA format wants, so nothing is lost in writing. Kneser-Ney does better on large
text, but counts kinds of history, which weighted and made-up sentences distort.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

START, END = "<s>", "</s>"

Gram = tuple[str, ...]
Codes = NDArray[Any]
"""int64, or Python's own numbers where grams are long."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WeightedSentences:
    """Sentences as lists of words; each counts as `weight` sentences."""

    sentences: Sequence[Sequence[str]]
    weight: float = 1.0


class NgramModel:
    """Probabilities over `vocabulary`, which holds END but not START. Made by `estimate`.

    Counts lie in two sorted rows of numbers, a gram being one number whose digits are its words: a course's hundred
    thousand grams are 2 MB so, and 40 as tuples of words in a dictionary.
    """

    def __init__(self, order: int, codes: Codes, counts: Float64, words: Sequence[str]) -> None:
        """`words` are START, which has the digit 1, and the vocabulary; `codes` are grams by `Digits.code`, sorted, and
        `counts` how often each was seen."""
        self.order = order
        self.vocabulary = frozenset(words[1:])
        self._digits = Digits(words)
        before, place = np.unique(codes // self._digits.base, return_inverse=True)
        total, kinds = np.bincount(place, counts), np.bincount(place)
        self._counts = _Numbers(codes, counts)
        self._before = _Numbers(before, total, kinds)

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        """P(word | history); only the last `order - 1` words of the history count. 0 for a word not known."""
        if word not in self.vocabulary:
            return 0.0
        digits = self._digits
        known = tuple(history)[-(self.order - 1) :] if self.order > 1 else ()
        share = 1.0 / len(self.vocabulary)
        for length in range(len(known) + 1):
            before = digits.code(known[len(known) - length :])
            followed = None if before is None else self._before.get(before)
            if before is not None and followed is not None:
                total, kinds = followed
                counted = self._counts.get(before * digits.base + digits.of[word])
                share = ((counted[0] if counted else 0.0) + kinds * share) / (total + kinds)
        return share

    def log_probability(self, sentence: Sequence[str]) -> float:
        """Natural logarithm of the whole sentence's probability, its end included; -inf with an unknown word."""
        words = [START, *sentence, END]
        shares = (self.probability(word, words[:place]) for place, word in enumerate(words) if place > 0)
        return sum(math.log(share) if share > 0 else -math.inf for share in shares)

    def perplexity(self, sentence: Sequence[str]) -> float:
        return math.exp(-self.log_probability(sentence) / (len(sentence) + 1))

    def arpa(self) -> str:
        """The model in the ARPA format, logarithms to base 10; the same sentences give the same text."""
        tables = [sorted(self._grams(length)) for length in range(1, self.order + 1)]
        lines = ["\\data\\", *(f"ngram {length}={len(table)}" for length, table in enumerate(tables, 1))]
        for length, table in enumerate(tables, 1):
            lines += ["", f"\\{length}-grams:"]
            lines += [self._line(gram) for gram in table]
        return "\n".join([*lines, "", "\\end\\", ""])

    def _grams(self, length: int) -> Iterable[Gram]:
        if length == 1:
            return {(word,) for word in self.vocabulary} | {(START,)}
        grams = (self._digits.gram(code) for code in self._counts.codes)
        return (gram for gram in grams if len(gram) == length)

    def _line(self, gram: Gram) -> str:
        # The start of a sentence is never predicted; -99 is the format's custom for that.
        share = -99.0 if gram == (START,) else math.log10(self.probability(gram[-1], gram[:-1]))
        line = f"{share:.7f}\t{' '.join(gram)}"
        code = self._digits.code(gram)
        followed = None if code is None else self._before.get(code)
        if followed is None:
            return line
        total, kinds = followed
        return f"{line}\t{math.log10(kinds / (total + kinds)):.7f}"


class Digits:
    """Words as the digits of a number: 1, 2, … in their order, so that no gram is another with zeros before it."""

    def __init__(self, words: Sequence[str]) -> None:
        self.base = len(words) + 1
        self.of = {word: digit for digit, word in enumerate(words, 1)}
        self._words = words

    def code(self, gram: Sequence[str]) -> int | None:
        """None where a word has no digit."""
        code = 0
        for word in gram:
            digit = self.of.get(word)
            if digit is None:
                return None
            code = code * self.base + digit
        return code

    def gram(self, code: int) -> Gram:
        words: list[str] = []
        while code:
            code, digit = divmod(code, self.base)
            words.append(self._words[digit - 1])
        return tuple(reversed(words))


class _Numbers:
    """A dictionary of whole numbers, which come sorted, to a number of each row, kept as float32."""

    def __init__(self, codes: Codes, *rows: NDArray[Any]) -> None:
        # Numbers that are found one by one come faster from Python's own rows than from numpy's.
        self.codes: array[int] | list[int] = codes.tolist() if codes.dtype == object else array("q", codes.tobytes())
        self._rows = [array("f", row.astype(np.float32).tobytes()) for row in rows]

    def get(self, code: int) -> tuple[float, ...] | None:
        place = bisect_left(self.codes, code)
        if place == len(self.codes) or self.codes[place] != code:
            return None
        return tuple(row[place] for row in self._rows)


def estimate(sets: Iterable[WeightedSentences], vocabulary: Iterable[str] = (), order: int = 3) -> NgramModel:
    """A model of `order` from sets of sentences; words of `vocabulary` are known even where no sentence has them.

    Raises ValueError for an order below 1, a weight that is not above 0, or a word that holds white space.
    """
    if order < 1:
        raise ValueError(f"an n-gram has at least one word, not {order}")
    parts = list(sets)
    known = {*vocabulary, END}
    for part in parts:
        if not part.weight > 0:
            raise ValueError(f"a weight of {part.weight} is not above 0")
        for sentence in part.sentences:
            known.update(sentence)
    known.discard(START)
    if bad := [word for word in sorted(known) if not word or any(map(str.isspace, word))]:
        raise ValueError(f"{bad[0]!r} is no single word")
    words = (START, *sorted(known))
    digits = Digits(words)
    # Long grams of many words are larger than 64 bits hold.
    fits = digits.base**order < 2**63
    seen: array[int] | list[int] = array("q") if fits else []
    weights = array("d")
    for part in parts:
        before = len(seen)
        for sentence in part.sentences:
            said = [digits.of[word] for word in (START, *sentence, END)]
            for last in range(1, len(said)):
                code, scale = 0, 1
                for place in range(last, max(-1, last - order), -1):
                    code += said[place] * scale
                    scale *= digits.base
                    seen.append(code)
        weights.extend(repeat(part.weight, len(seen) - before))
    codes, placed = np.unique(np.array(seen, np.int64 if fits else object), return_inverse=True)
    counts: Float64 = np.bincount(placed, weights, len(codes)).astype(np.float64)
    return NgramModel(order, codes, counts, words)
