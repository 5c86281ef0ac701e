"""The counts of words that ship beside the weights, from the sentences of the training.

    python -m training.recogniser.language TEXTS/train.tsv OUT/language.npz --shared ../shared/data

The sentences are those that voices read, without those of the speakers of the dev set, on which the search is tuned and
the confidence fitted; what the report is judged by was kept out of them before (texts.py). Single words and strings of
digits, which nobody says in a row, are left out. What learners are given to read counts five times: 0.349 of the words
of the dev set are wrong in place of 0.356. Threes of words besides pairs are 4.4 MB in place of 1.3 and hear no better.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aula.models.ngrams import END, START, Digits
from training.recogniser.corpora import recordings
from training.recogniser.spelling import said

ORDER = 2
LEFT_OUT = ("words", "digits")
COUNTED = {"learners": 5}
"""How often the sentences of a category count, where it is not once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--words", type=int, default=2, help="times that a word is there at least, to be known")
    parser.add_argument("--pairs", type=int, default=1, help="times that a longer gram is there at least")
    parser.add_argument("--order", type=int, default=ORDER)
    options = parser.parse_args()
    held = {said(recording.text) for where, recording in recordings(options.shared) if where != "train"}
    rows = (line.rstrip("\n").split("\t") for line in options.texts.open(encoding="utf-8"))
    sentences = [
        text.split()
        for category, text in rows
        if category not in LEFT_OUT and text not in held
        for _ in range(COUNTED.get(category, 1))
    ]
    write(options.out, sentences, options.words, options.pairs, options.order)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def write(file: Path, sentences: Iterable[list[str]], least_words: int, least_pairs: int, order: int = ORDER) -> None:
    """Rarer words part what stands around them: no gram goes over one."""
    lines = list(sentences)
    often = Counter(word for line in lines for word in line)
    words = [END, *sorted(word for word, count in often.items() if count >= least_words)]
    digits = Digits((START, *words))
    grams: Counter[int] = Counter()
    for line in lines:
        row = [digits.of.get(word, 0) for word in (START, *line, END)]
        for last in range(1, len(row)):
            code, scale = 0, 1
            for length in range(min(order, last + 1)):
                digit = row[last - length]
                if not digit:
                    break
                code += digit * scale
                scale *= digits.base
                grams[code] += 1
    # A gram's number is below the base where it is one word, and all of those stay.
    kept = {code: count for code, count in grams.items() if count >= least_pairs or code < digits.base}
    codes = np.array(sorted(kept), np.int64)
    counts = np.array([kept[code] for code in codes.tolist()], np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = np.frombuffer("\n".join(words).encode(), np.uint8)
    np.savez_compressed(file, words=text, codes=codes, counts=counts, order=np.array(order))


if __name__ == "__main__":
    main()
