"""Sentences for a sentence encoder: real ones to calibrate on, labelled ones to be judged by.

Labelled data is a text file with a label, a tab and a sentence on each line. The metric is the accuracy of a linear
head on the frozen embeddings, fitted on every other sentence and tried on the rest, both ways round: what a
classifier on this encoder would get right.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.session import Session
from aula.core.errors import CalibrationError
from aula.core.types import Float32
from aula.engine.recipe import Arrays, Calibration, Task
from aula.models.bert import embed_texts
from aula.models.intents import LinearHead, load_examples

MOST_EXAMPLES = 128
"""Calibration examples that are used; ranges hardly move after a hundred."""

Labelled = list[tuple[str, str]]


def own_labelled() -> Labelled:
    """The intent examples of this project, English: label and sentence."""
    return [(intent.value, sentence) for intent, rows in load_examples()["en"].items() for sentence in rows]


def read_labelled(path: Path) -> Labelled:
    """Label, tab, sentence on each line. Raises CalibrationError naming the line at fault."""
    rows: Labelled = []
    for number, line in enumerate(_lines(path), 1):
        label, tab, sentence = line.partition("\t")
        if not (tab and label.strip() and sentence.strip()):
            raise CalibrationError(
                f"line {number} of {path.name} is not a label, a tab and a sentence",
                next_step="write lines like: greeting<TAB>Good morning.",
            )
        rows.append((label.strip(), sentence.strip()))
    if len({label for label, _ in rows}) < 2 or len(rows) < 20:
        raise CalibrationError(
            f"{path.name} has {len(rows)} sentences of {len({label for label, _ in rows})} labels",
            next_step="give at least 20 sentences of at least 2 labels",
        )
    return rows


def read_sentences(path: Path) -> list[str]:
    """One sentence a line. Raises CalibrationError."""
    return [line for line in _lines(path) if line.strip()]


def calibration(sentences: Sequence[str], source: str, tokenizer: Any) -> Calibration:
    """Each sentence alone, as a question comes; at most MOST_EXAMPLES, spread over all."""
    step = max(1, len(sentences) // MOST_EXAMPLES)
    chosen = sentences[::step][:MOST_EXAMPLES]
    inputs: list[Arrays] = []
    for encoding in tokenizer.encode_batch(list(chosen)):
        tokens = np.array([encoding.ids], dtype=np.int64)
        inputs.append({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    return Calibration(inputs, source, _digest(chosen))


def task(rows: Labelled, tokenizer: Any, dimensions: int) -> Task:
    sentences = [sentence for _, sentence in rows]
    labels = [label for label, _ in rows]

    def evaluate(session: Session) -> float:
        features = embed_texts(session, tokenizer, sentences, dimensions)
        return cross_accuracy(features, labels)

    return Task("accuracy of a linear head", len(rows), _digest([f"{a}\t{b}" for a, b in rows]), evaluate)


def cross_accuracy(features: Float32, labels: Sequence[str]) -> float:
    """Share of rows whose label a head gets right that was fitted on the other half. `features` float32 [n, d]."""
    # Each label's rows go to the halves in turns, so that both halves know every label.
    seen: dict[str, int] = {}
    halves = []
    for label in labels:
        seen[label] = seen.get(label, -1) + 1
        halves.append(seen[label] % 2)
    half = np.array(halves)
    names = sorted(set(labels))
    right = 0
    for tried in (0, 1):
        fitting, trying = np.flatnonzero(half != tried).tolist(), np.flatnonzero(half == tried).tolist()
        head = LinearHead.fitted(features[fitting], [names.index(labels[row]) for row in fitting], len(names))
        guessed = head.probabilities(features[trying]).argmax(axis=1)
        right += sum(names[guess] == labels[row] for guess, row in zip(guessed, trying, strict=True))
    return right / len(labels)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path} cannot be read as text ({error})", next_step="give a UTF-8 text file, one sentence a line"
        ) from error


def _digest(rows: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode("utf-8")).hexdigest()
