"""Sentences for BERT: real ones to calibrate on, labelled ones to be judged by.

Labelled data is a text file with a label, a tab and a sentence on each line. A classifier is judged by the labels that
its own head gives. For encoders the metric is the accuracy of a linear head on the frozen vectors, fitted on every
other sentence and tried on the rest, both ways round: what a classifier on this encoder would get right.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.session import Session
from aula.core.errors import CalibrationError
from aula.core.types import Float32
from aula.engine.recipe import Arrays, Calibration, Task
from aula.models.bert_config import HIDDEN, SEQUENCE, BertConfig
from aula.models.bert_modules import SentenceModules, is_sentence_encoder
from aula.models.bert_texts import embed_texts, open_tokenizer, run_texts
from aula.models.checkpoints import Checkpoint
from aula.models.intents import LinearHead, load_examples
from aula.models.labels import FEWEST_LABELLED, majority_share, task_digest

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
    labels = {label for label, _ in rows}
    if len(labels) < 2 or len(rows) < max(FEWEST_LABELLED, 2 * len(labels)):
        raise CalibrationError(
            f"{path.name} has {len(rows)} sentences of {len(labels)} labels",
            next_step=f"give at least {FEWEST_LABELLED} sentences, of 2 labels or more, and 2 or more for each label",
        )
    return rows


def read_sentences(path: Path) -> list[str]:
    """One sentence a line. Raises CalibrationError."""
    return [line for line in _lines(path) if line.strip()]


def evidence(
    checkpoint: Checkpoint, calibrate: Path | None = None, labelled: Path | None = None
) -> tuple[Callable[[], Calibration], Callable[[], Task] | None]:
    """What `bert_recipe` wants of a checkpoint: what to calibrate on, and what judges it. Files that are given are
    read at once, the tokeniser when it is needed.

    Without files this project's own intent examples serve, except as a task for a classifier, whose labels are its own:
    it has none then. Raises CheckpointError and CalibrationError.
    """
    rows = own_labelled() if labelled is None else read_labelled(labelled)
    texts = [sentence for _, sentence in rows] if calibrate is None else read_sentences(calibrate)
    source = next((path.name for path in (calibrate, labelled) if path is not None), "aula's intent examples")
    encodes = is_sentence_encoder(checkpoint)
    told = " on aula's own intent examples" if labelled is None else ""

    def calibrating() -> Calibration:
        return calibration(texts, source, open_tokenizer(checkpoint), typed=not encodes)

    if encodes:
        modules = SentenceModules.from_checkpoint(checkpoint)
        dimensions = modules.dimensions(BertConfig.from_checkpoint(modules.encoder).hidden_size)
        return calibrating, lambda: task(rows, open_tokenizer(checkpoint), dimensions, told)
    config = BertConfig.from_checkpoint(checkpoint)
    if config.head == HIDDEN:
        return calibrating, lambda: hidden_task(rows, open_tokenizer(checkpoint), told)
    if labelled is None:
        return calibrating, None
    _check_labels(checkpoint, config, rows, labelled.name)
    return calibrating, lambda: head_task(rows, open_tokenizer(checkpoint), config.labels)


def calibration(sentences: Sequence[str], source: str, tokenizer: Any, *, typed: bool = False) -> Calibration:
    """Each sentence alone, as a question comes; at most MOST_EXAMPLES, spread over all. `typed` adds token types.
    The digest is of the sentences and of the tokens that they become."""
    step = max(1, len(sentences) // MOST_EXAMPLES)
    chosen = sentences[::step][:MOST_EXAMPLES]
    inputs: list[Arrays] = []
    for encoding in tokenizer.encode_batch(list(chosen)):
        tokens = np.array([encoding.ids], dtype=np.int64)
        example = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        if typed:
            example["token_type_ids"] = np.array([encoding.type_ids], dtype=np.int64)
        inputs.append(example)
    return Calibration(inputs, source, _digest(chosen, tokenizer))


def task(rows: Labelled, tokenizer: Any, dimensions: int, told: str = "") -> Task:
    """Of a sentence encoder, whose vectors have `dimensions` numbers. `told` ends the metric's name: whose examples
    they are."""
    sentences = [sentence for _, sentence in rows]
    labels = [label for label, _ in rows]

    def evaluate(session: Session) -> float:
        # The head wants rows that are no longer than one, and not every encoder gives these.
        return cross_accuracy(_unit(embed_texts(session, tokenizer, sentences, dimensions)), labels)

    return _task(f"accuracy of a linear head{told}", rows, tokenizer, evaluate)


def hidden_task(rows: Labelled, tokenizer: Any, told: str = "") -> Task:
    """Of an encoder that gives hidden states: on their mean over the tokens. `told` as for `task`."""
    labels = [label for label, _ in rows]

    def evaluate(session: Session) -> float:
        means: dict[int, Float32] = {}
        for places, inputs, outputs in run_texts(session, tokenizer, [sentence for _, sentence in rows]):
            present = inputs["attention_mask"][:, :, None]
            mean = (outputs["hidden"] * present).sum(axis=1) / present.sum(axis=1)
            means.update(zip(places, mean, strict=True))
        features = np.array([means[place] for place in range(len(rows))], dtype=np.float32)
        # Plain BERT's vectors all point much the same way; what tells them apart is how they differ from their mean.
        return cross_accuracy(_unit(features - features.mean(axis=0)), labels)

    return _task(f"accuracy of a linear head on mean hidden states{told}", rows, tokenizer, evaluate)


def head_task(rows: Labelled, tokenizer: Any, labels: Sequence[str]) -> Task:
    """Of a classifier of texts: how often its largest logit is that of the label; `labels` by number."""

    def evaluate(session: Session) -> float:
        right = 0
        for places, _, outputs in run_texts(session, tokenizer, [sentence for _, sentence in rows]):
            guessed = outputs["logits"].argmax(axis=1)
            right += sum(labels[guess] == rows[place][0] for guess, place in zip(guessed, places, strict=True))
        return right / len(rows)

    return _task("accuracy of its own head", rows, tokenizer, evaluate)


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


def _check_labels(checkpoint: Checkpoint, config: BertConfig, rows: Labelled, source: str) -> None:
    kind = checkpoint.read_json("config.json").get("problem_type") or "single_label_classification"
    if config.head != SEQUENCE or len(config.labels) < 2 or kind != "single_label_classification":
        raise CalibrationError(
            f"{checkpoint.folder.name} does not give one label a sentence, so that {source} cannot judge it",
            next_step="build it in fp32, or choose a classifier of sentences",
        )
    unknown = sorted({label for label, _ in rows} - set(config.labels))
    if unknown:
        raise CalibrationError(
            f"{source} has the label {unknown[0]!r}, which {checkpoint.folder.name} does not give",
            available=config.labels[:20],
            next_step="write labels as id2label in config.json spells them",
        )


def _unit(features: Float32) -> Float32:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Float32 = features / np.maximum(lengths, np.float32(1e-12))
    return scaled


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path} cannot be read as text ({error})", next_step="give a UTF-8 text file, one sentence a line"
        ) from error


def _task(metric: str, rows: Labelled, tokenizer: Any, evaluate: Callable[[Session], float]) -> Task:
    labels = [label for label, _ in rows]
    digest = task_digest(metric, *labels, _digest([sentence for _, sentence in rows], tokenizer))
    return Task(metric, len(rows), digest, evaluate, chance=majority_share(labels))


def _digest(sentences: Sequence[str], tokenizer: Any) -> str:
    """SHA-256 of the sentences and of what the tokeniser makes of each: it decides as much as they do."""
    whole = hashlib.sha256()
    for sentence, encoding in zip(sentences, tokenizer.encode_batch(list(sentences)), strict=True):
        whole.update(f"{sentence}\n{encoding.ids} {encoding.type_ids}\n".encode())
    return whole.hexdigest()
