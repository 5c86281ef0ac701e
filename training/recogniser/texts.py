"""The sentences that synthetic voices read: one file, `category <tab> text`, in the recogniser's alphabet.

    python -m training.recogniser.texts FOLDER --shared ../shared/data --courses courses

leaves train.tsv and, with one sentence of two hundred, test.tsv, which no voice of the training reads.

Sources and licences stand in README.md beside this file. A source that is not there is named and left out. Sentences
that the report asks about (questions of speechocean762's test speakers, the course's 100 spoken questions) are kept
out by their text.
"""

import argparse
import csv
import gzip
import json
import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree
from zlib import crc32

from training.recogniser.spelling import number, ordinal, said, year
from training.recogniser.templates import everyday, physics_questions

LONGEST = 16
"""Words in one clip: short clips align sooner, and fill batches better."""

WORDNET = Path("/usr/share/wordnet")
WORDLIST = Path("/usr/share/dict/american-english")
_MONTHS = ("january", "march", "april", "june", "july", "august", "october")
NAMES = Path("/usr/share/dict/propernames.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--courses", type=Path, required=True)
    parser.add_argument("--keep-out", type=Path, help="a text file of sentences, one a line, that must not be read")
    parser.add_argument("--seed", type=int, default=8)
    options = parser.parse_args()
    rng = random.Random(options.seed)

    held = set(map(said, test_sentences(options.shared)))
    if options.keep_out:
        held |= set(map(said, options.keep_out.read_text("utf-8").splitlines()))
    sources: dict[str, Iterable[str]] = {
        "wordnet": wordnet(),
        "bible": bible(rng, 9000),
        "requests": requests(options.shared),
        "physics": physics(options.shared),
        "xquad": xquad(options.shared),
        "course": course(options.courses),
        "questions": physics_questions(rng, 12000),
        "everyday": everyday(rng, names(), 24000),
        "learners": learners(options.shared),
        "digits": digits(rng, 8000),
        "words": words(rng, 16000),
    }
    seen: set[str] = set()
    with (
        (options.folder / "train.tsv").open("w", encoding="utf-8") as train,
        (options.folder / "test.tsv").open("w", encoding="utf-8") as test,
    ):
        for category, sentences in sources.items():
            count = 0
            for sentence in sentences:
                for piece in pieces(sentence, rng):
                    if piece not in seen and piece not in held:
                        seen.add(piece)
                        count += 1
                        out = test if crc32(piece.encode()) % 200 == 0 else train
                        out.write(f"{category}\t{piece}\n")
            print(f"{category:10} {count:6} pieces")


def pieces(sentence: str, rng: random.Random) -> Iterator[str]:
    """A sentence cut where it pauses, and anywhere where that is not enough."""
    clauses = re.split(r"(?<=[,;:.?!])\s+", sentence)
    piece: list[str] = []
    for clause in clauses:
        text = said(clause)
        if text is None:
            piece = []
            continue
        piece += text.split()
        while len(piece) > LONGEST:
            cut = rng.randint(4, LONGEST)
            yield " ".join(piece[:cut])
            piece = piece[cut:]
        if len(piece) >= 4 and rng.random() < 0.6:
            yield " ".join(piece)
            piece = []
    if piece:
        yield " ".join(piece)


def wordnet() -> Iterator[str]:
    """The example sentences of WordNet's glosses, and the shorter definitions."""
    for part in ("noun", "verb", "adj", "adv"):
        file = WORDNET / f"data.{part}"
        if not file.exists():
            print(f"left out: {file} (Debian's wordnet-base)")
            return
        for line in file.read_text("latin-1").splitlines():
            gloss = line.partition(" | ")[2]
            yield from re.findall(r'"([^"]+)"', gloss)
            definition = gloss.partition(";")[0].strip()
            if 3 <= len(definition.split()) <= 9 and "(" not in definition:
                yield definition


def bible(rng: random.Random, count: int) -> Iterator[str]:
    """Verses of the King James version, for the literary half of English."""
    try:
        printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        print("left out: the bible (Debian's bible-kjv)")
        return
    verses = [re.sub(r"^\S+\s", "", line) for line in printed.splitlines()]
    yield from rng.sample(verses, min(count, len(verses)))


def requests(shared: Path) -> Iterator[str]:
    """What people ask assistants: the training and validation halves of CLINC150."""
    data = json.loads((shared / "intent_clinc150/data_full.json").read_text("utf-8"))
    for half in ("train", "val", "oos_train", "oos_val"):
        yield from (text for text, _ in data[half])


def physics(shared: Path) -> Iterator[str]:
    """The paragraphs of a school physics book, without its formulas."""
    for module in sorted((shared / "qa_openstax_physics/modules").rglob("*.cnxml")):
        for paragraph in ElementTree.parse(module).iter("{http://cnx.rice.edu/cnxml}para"):
            text = " ".join("".join(_without_formulas(paragraph)).split())
            yield from re.split(r"(?<=[.?!])\s+", text)
    glossary = shared / "qa_openstax_physics/derived_glossary.jsonl"
    for line in glossary.read_text("utf-8").splitlines():
        yield from (str(value) for value in json.loads(line).values() if isinstance(value, str))


def _without_formulas(element: ElementTree.Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        # "\0" is in no alphabet: the clause that held a formula is dropped, the others stay.
        yield "\0" if "math" in child.tag.rpartition("}")[2].lower() else "".join(_without_formulas(child))
        yield child.tail or ""


def xquad(shared: Path) -> Iterator[str]:
    for article in json.loads((shared / "qa_xquad/xquad.en.json").read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield from re.split(r"(?<=[.?!])\s+", paragraph["context"])
            yield from (question["question"] for question in paragraph["qas"])


def course(courses: Path) -> Iterator[str]:
    for page in sorted(courses.glob("*-en/*.md")):
        for line in page.read_text("utf-8").splitlines():
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.strip("#*-> |")).replace("**", "").replace("`", "")
            yield from re.split(r"(?<=[.?!])\s+", plain)


def learners(shared: Path) -> Iterator[str]:
    """The prompts of speechocean762's training half, so that synthetic voices read them too."""
    yield from (row["text"] for row in table(shared / "train_speechocean762/manifest.tsv"))


def test_sentences(shared: Path) -> Iterator[str]:
    yield from (row["text"] for row in table(shared / "speech_en_speechocean762/manifest.tsv"))


def table(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t")


def names() -> list[str]:
    if not NAMES.exists():
        print(f"left out: {NAMES} (Debian's miscfiles)")
        return ["john", "mary", "tom", "ann", "peter", "lucy"]
    return [name for name in gzip.decompress(NAMES.read_bytes()).decode("latin-1").split() if name.isalpha()]


def digits(rng: random.Random, count: int) -> Iterator[str]:
    """Strings of digits, numbers, ordinals, years and short sums."""
    for _ in range(count):
        size = 10 ** rng.randint(1, 5)
        yield rng.choice((
            " ".join(number(rng.randrange(10)) for _ in range(rng.randint(1, 7))),
            number(rng.randrange(size)),
            f"{number(rng.randrange(size))} point "
            + " ".join(number(rng.randrange(10)) for _ in range(rng.randint(1, 3))),
            f"{number(rng.randrange(100))} {rng.choice(('plus', 'minus', 'times', 'divided by'))}"
            f" {number(rng.randrange(100))} {rng.choice(('equals', 'is', 'makes'))} {number(rng.randrange(200))}",
            f"the {ordinal(rng.randint(1, 99))} of {rng.choice(_MONTHS)}",
            f"in {year(rng.randint(1100, 2099))}",
        ))  # fmt: skip


def words(rng: random.Random, count: int) -> Iterator[str]:
    """Words of the dictionary, a few in a row, so that spelling reaches beyond the sentences."""
    if not WORDLIST.exists():
        print(f"left out: {WORDLIST} (Debian's wamerican)")
        return
    known = [
        word for word in WORDLIST.read_text("utf-8").split() if word.isascii() and word.islower() and len(word) > 1
    ]
    for _ in range(count):
        yield " ".join(rng.sample(known, rng.choice((1, 1, 2, 3, 4))))


if __name__ == "__main__":
    main()
