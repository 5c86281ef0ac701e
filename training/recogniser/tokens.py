"""The recogniser's output units: 255 pieces of words by byte-pair encoding, after the blank, which is 0.

python -m training.recogniser.tokens texts/train.tsv tokens.json
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BLANK = 0
SIZE = 256
_REPEATS = {"learners": 12, "everyday": 2, "questions": 2, "digits": 2}
"""Sentences of the kind that classrooms hear weigh more than a dictionary's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()

    def sentences() -> Iterator[str]:
        for line in options.texts.read_text("utf-8").splitlines():
            category, _, text = line.partition("\t")
            for _ in range(_REPEATS.get(category, 1)):
                yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["<blank>"], show_progress=False)
    )
    tokenizer.save(str(options.out))
    print(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))


def load(file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def greedy(tokenizer: Tokenizer, best: Sequence[int]) -> str:
    """The text of the best unit of each frame: repeats and blanks fall away."""
    kept = [unit for place, unit in enumerate(best) if unit != BLANK and (place == 0 or best[place - 1] != unit)]
    return str(tokenizer.decode(kept)).strip()


if __name__ == "__main__":
    main()
