"""Word error rate: how much of what was said was heard otherwise. In Chinese, characters are the words."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+(?:['\u2019][^\W_{_IDEOGRAPHS}]+)*")


def words(text: str) -> list[str]:
    """Words as they are compared: letters and digits without case or punctuation, each ideograph on its own."""
    return [word.replace("\u2019", "'") for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(heard) + 1))
    for place, word in enumerate(reference, 1):
        above, row = row, [place]
        for column, other in enumerate(heard, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (word != other)))
    return row[-1]


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors over words of all pairs of reference and heard text; it passes 1 where more was heard than was said.
    0 where nothing was said and nothing heard."""
    errors = total = 0
    for reference, heard in pairs:
        said = words(reference)
        errors += word_errors(said, words(heard))
        total += len(said)
    return errors / max(1, total)
