"""A small n-gram language model from weighted sentences, written as ARPA text.

Interpolated Witten-Bell smoothing: for a history h with total count c(h) and t(h) kinds of continuation,

    P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)),        h' = h without its oldest word,

(Witten and Bell 1991, method C, in the recursive form of Chen and Goodman 1998, section 2.5). The recursion ends in
the uniform distribution over the vocabulary. An unseen continuation gets t(h) / (c(h) + t(h)) of P(w | h'), which is
just the back-off weight that the ARPA format wants, so nothing is lost in writing. Kneser-Ney does better on large
text, but counts kinds of history, which weighted and made-up sentences distort.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

START, END = "<s>", "</s>"

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightedSentences:
    """Sentences as lists of words; each counts as `weight` sentences."""

    sentences: Sequence[Sequence[str]]
    weight: float = 1.0


class NgramModel:
    """Probabilities over `vocabulary`, which holds END but not START. Made by `estimate`."""

    def __init__(self, order: int, counts: dict[Gram, float], vocabulary: frozenset[str]) -> None:
        self.order = order
        self.vocabulary = vocabulary
        self._counts = counts
        self._totals: defaultdict[Gram, float] = defaultdict(float)
        self._kinds: Counter[Gram] = Counter()
        for gram, count in counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        """P(word | history); only the last `order - 1` words of the history count. 0 for a word not known."""
        if word not in self.vocabulary:
            return 0.0
        known = tuple(history)[-(self.order - 1) :] if self.order > 1 else ()
        share = 1.0 / len(self.vocabulary)
        for length in range(len(known) + 1):
            before = known[len(known) - length :]
            kinds = self._kinds.get(before, 0)
            if kinds:
                share = (self._counts.get((*before, word), 0.0) + kinds * share) / (self._totals[before] + kinds)
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
        return (gram for gram in self._counts if len(gram) == length)

    def _line(self, gram: Gram) -> str:
        # The start of a sentence is never predicted; -99 is the format's custom for that.
        share = -99.0 if gram == (START,) else math.log10(self.probability(gram[-1], gram[:-1]))
        line = f"{share:.7f}\t{' '.join(gram)}"
        kinds = self._kinds.get(gram, 0)
        return f"{line}\t{math.log10(kinds / (self._totals[gram] + kinds)):.7f}" if kinds else line


def estimate(sets: Iterable[WeightedSentences], vocabulary: Iterable[str] = (), order: int = 3) -> NgramModel:
    """A model of `order` from sets of sentences; words of `vocabulary` are known even where no sentence has them.

    Raises ValueError for an order below 1, a weight that is not above 0, or a word that holds white space.
    """
    if order < 1:
        raise ValueError(f"an n-gram has at least one word, not {order}")
    counts: defaultdict[Gram, float] = defaultdict(float)
    known = {*vocabulary, END}
    for part in sets:
        if not part.weight > 0:
            raise ValueError(f"a weight of {part.weight} is not above 0")
        for sentence in part.sentences:
            known.update(sentence)
            words = (START, *sentence, END)
            for last in range(1, len(words)):
                for first in range(max(0, last + 1 - order), last + 1):
                    counts[words[first : last + 1]] += part.weight
    known.discard(START)
    if bad := [word for word in sorted(known) if not word or any(map(str.isspace, word))]:
        raise ValueError(f"{bad[0]!r} is no single word")
    return NgramModel(order, dict(counts), frozenset(known))
