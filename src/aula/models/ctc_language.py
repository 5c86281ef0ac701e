"""What English says anyway, for a recogniser: counts of words and pairs that lie beside its weights, and their mixture
with a course's.

By sound alone a small recogniser writes words that nobody says. The counts are those of the sentences that it was
trained on (training/recogniser/language.py), never of what it is judged by.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol
from zipfile import BadZipFile

import numpy as np

from aula.core.errors import CheckpointError
from aula.models.checkpoints import Checkpoint
from aula.models.ngrams import START, NgramModel

LANGUAGE = "language.npz"
"""words: uint8, the vocabulary in its order, parted by line feeds; codes: int64 [grams] and counts: float32 [grams],
as NgramModel takes them; order: int."""
COURSE_SHARE = 0.7
"""Of the mixture, the course's: a student in its class speaks of it, but not of it alone."""


class Language(Protocol):
    """What a search asks of a language model."""

    @property
    def order(self) -> int: ...

    def probability(self, word: str, history: Sequence[str] = ()) -> float: ...

    def likeliest(self, beginning: str) -> float:
        """Probability, without a history, of the likeliest word that begins so; 0 where none does."""
        ...


class Counted:
    """An n-gram model as a `Language`. Words lie sorted; those that begin alike are neighbours."""

    def __init__(self, model: NgramModel) -> None:
        self._model = model
        self._words = sorted(model.vocabulary)
        self._shares = np.array([model.probability(word) for word in self._words])

    @property
    def order(self) -> int:
        return self._model.order

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        return self._model.probability(word, history)

    def likeliest(self, beginning: str) -> float:
        first = bisect_left(self._words, beginning)
        behind = bisect_left(self._words, beginning + "\U0010ffff", first)
        return float(self._shares[first:behind].max()) if behind > first else 0.0


class Mixture:
    """P(w | h) = share of the special model's and the rest of the general one's."""

    def __init__(self, special: Language, general: Language, share: float = COURSE_SHARE) -> None:
        self._parts = ((share, special), (1 - share, general))

    @property
    def order(self) -> int:
        return max(part.order for _, part in self._parts)

    def probability(self, word: str, history: Sequence[str] = ()) -> float:
        return sum(share * part.probability(word, history) for share, part in self._parts)

    def likeliest(self, beginning: str) -> float:
        """Less than the exact value where both know the word; never more."""
        return max(share * part.likeliest(beginning) for share, part in self._parts)


def read_language(checkpoint: Checkpoint) -> Language | None:
    """None where the recogniser came without one. Raises CheckpointError for a file that is none."""
    file = checkpoint.folder / LANGUAGE
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            words = arrays["words"].tobytes().decode("utf-8").split("\n")
            codes, counts, order = arrays["codes"], arrays["counts"], int(arrays["order"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", next_step="copy the file again") from error
    if codes.dtype != np.int64 or codes.shape != counts.shape or codes.ndim != 1 or np.any(np.diff(codes) <= 0):
        raise CheckpointError(f"{file} holds no sorted counts of words", next_step="copy the file again")
    return Counted(NgramModel(order, codes, counts.astype(np.float64), (START, *words)))
