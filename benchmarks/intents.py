"""What INT8 costs a MiniLM that knows 150 intents and has to notice when a question is none of them.

    python benchmarks/intents.py [--data DATA] [--backend openvino] [--threads 2]

DATA, or AULA_TEST_DATA, is the folder of real data; intent_clinc150 is read in it (Larson et al. 2019, D19-1131).

What is done: sentences go through all-MiniLM-L6-v2, which stays as it is, and a linear head is fitted on the training
sentences. A question counts as out of scope where the head's largest probability is below a threshold. Penalty and
threshold are chosen on the validation sentences alone, to make the mean of in-scope accuracy and out-of-scope recall
greatest; test sentences are only counted. The INT8 graph is made as the builder makes it: calibrated on 128 training
sentences, the method found (and layers put back, if need be) by a head's accuracy on every third validation sentence.

Limits first: the validation half has only 100 questions from outside, so the threshold is rough; 4,500 test sentences
make one standard error of the accuracy about 0.4 points, so the count of sentences that the two engines decide
differently says more than the difference. Milliseconds are those of one sentence at a time, all sizes free.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, available_backends, open_session
from aula.core.types import Float32
from aula.engine.identity import processor, usable_cores
from aula.engine.precision import Variant, quantised_variant
from aula.models import sentences
from aula.models.bert import embed_texts, minilm_checkpoint, minilm_recipe, open_tokenizer
from aula.models.intents import LinearHead
from aula.models.sentences import Labelled

DIMENSIONS = 384
PENALTIES = (2e-4, 2e-5)
STEPS = 200
"""Of fitting, a third of what aula's own small heads take: 15,000 rows of 150 intents are slow. The penalty is chosen
with as many, so that stopping early is part of the choice."""
EVERY = 3
"""Of training sentences one in three chooses the penalty, and of validation sentences the method of INT8."""
BATCH = 32
MOST_DROP = 0.01
TIMED = 200
Engines = dict[str, Session]


@dataclass(frozen=True, slots=True)
class Data:
    train: Labelled
    validation: Labelled
    test: Labelled
    validation_outside: list[str]
    test_outside: list[str]

    @classmethod
    def read(cls, folder: Path) -> "Data":
        raw = json.loads((folder / "intent_clinc150" / "data_full.json").read_text(encoding="utf-8"))
        known = {name: [(label, text) for text, label in raw[name]] for name in ("train", "val", "test")}
        outside = [[text for text, _ in raw[name]] for name in ("oos_val", "oos_test")]
        return cls(known["train"], known["val"], known["test"], *outside)

    @property
    def labels(self) -> list[str]:
        return sorted({label for label, _ in self.train})


@dataclass(frozen=True, slots=True)
class Features:
    """Vectors of one engine, float32 [n, 384], in the order of Data."""

    train: Float32
    validation: Float32
    test: Float32
    validation_outside: Float32
    test_outside: Float32


@dataclass(frozen=True, slots=True)
class Result:
    """Shares, 0..1. `accuracy` is in-scope without a threshold, `kept` with it; `decisions` are label numbers of the
    test sentences, -1 for out of scope, those from outside last."""

    threshold: float
    accuracy: float
    kept: float
    recall: float
    decisions: NDArray[np.int64]


def embed(session: Session, tokenizer: Any, data: Data) -> Features:
    groups = [[text for _, text in rows] for rows in (data.train, data.validation, data.test)]
    groups += [data.validation_outside, data.test_outside]
    return Features(*(embed_texts(session, tokenizer, texts, DIMENSIONS, BATCH) for texts in groups))


def fit(features: Float32, rows: Labelled, labels: list[str], penalty: float) -> LinearHead:
    return LinearHead.fitted(features, [labels.index(label) for label, _ in rows], len(labels), penalty, STEPS)


def best_threshold(inside: NDArray[np.float64], right: NDArray[np.bool_], outside: NDArray[np.float64]) -> float:
    """Between two probabilities that occur, where kept accuracy and recall have the greatest mean."""
    steps = np.unique(np.concatenate([[0.0], inside, outside]))
    candidates = (steps[1:] + steps[:-1]) / 2
    scores = [(right & (inside >= one)).mean() + (outside < one).mean() for one in candidates]
    return float(candidates[int(np.argmax(scores))])


def measure(head: LinearHead, features: Features, data: Data, threshold: float | None = None) -> Result:
    """With a threshold found on the validation sentences, unless one is given."""
    labels = data.labels
    if threshold is None:
        shares = head.probabilities(features.validation)
        truth = np.array([labels.index(label) for label, _ in data.validation])
        outside = head.probabilities(features.validation_outside).max(axis=1)
        threshold = best_threshold(shares.max(axis=1), shares.argmax(axis=1) == truth, outside)
    shares = head.probabilities(np.concatenate([features.test, features.test_outside]))
    guessed, sure = shares.argmax(axis=1), shares.max(axis=1) >= threshold
    count = len(data.test)
    right = guessed[:count] == np.array([labels.index(label) for label, _ in data.test])
    return Result(
        threshold=threshold,
        accuracy=float(right.mean()),
        kept=float((right & sure[:count]).mean()),
        recall=float((~sure[count:]).mean()),
        decisions=np.where(sure, guessed, -1),
    )


def choose_penalty(features: Features, data: Data) -> float:
    """The one whose head guesses most validation sentences right."""
    truth = np.array([data.labels.index(label) for label, _ in data.validation])
    tried = []
    for penalty in PENALTIES:
        head = fit(features.train[::EVERY], data.train[::EVERY], data.labels, penalty)
        tried.append((float((head.probabilities(features.validation).argmax(axis=1) == truth).mean()), penalty))
        print(f"  penalty {penalty:g}: validation accuracy {tried[-1][0]:.4f}", flush=True)
    return max(tried)[1]


def quantise(data: Data, folder: Path, backend: str, options: SessionOptions, tokenizer: Any) -> tuple[Path, Variant]:
    """The fp32 graph and the INT8 one, as the builder writes them."""
    task = sentences.task(data.validation[::EVERY], tokenizer, DIMENSIONS)

    def evaluate(path: Path) -> float:
        with open_session(backend, path, options) as session:
            return task.evaluate(session)

    graph = minilm_recipe().write_graph()
    plain = folder / "fp32.onnx"
    onnx.save(graph, plain)
    reference = evaluate(plain)
    print(f"  a head across the validation sentences, fp32: {reference:.4f}", flush=True)
    variant = quantised_variant(
        graph,
        sentences.calibration([text for _, text in data.train], "clinc150 training sentences", tokenizer),
        folder / "int8.onnx",
        transformer=True,
        evaluate=evaluate,
        reference=reference,
        most_drop=MOST_DROP,
        progress=lambda what, _share: print(f"  {what}", flush=True),
    )
    return plain, variant


def milliseconds(engines: Engines, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """Median of one sentence at a time, the engines in turns."""
    took: dict[str, list[float]] = {name: [] for name in engines}
    for text in texts:
        for name, session in engines.items():
            start = time.perf_counter()
            embed_texts(session, tokenizer, [text], DIMENSIONS)
            took[name].append(1000 * (time.perf_counter() - start))
    # The first few runs prepare sizes that were not seen before.
    return {name: float(np.median(values[len(values) // 4 :])) for name, values in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("AULA_TEST_DATA"))
    parser.add_argument("--backend", default="openvino", choices=available_backends())
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of real data with --data or in AULA_TEST_DATA")
    data, tokenizer = Data.read(Path(options.data)), open_tokenizer(minilm_checkpoint())
    report: dict[str, Any] = {
        "benchmark": "intents",
        "machine": f"{processor()}, {usable_cores()} cores, {options.threads} threads",
        "versions": {name: version(name) for name in ("numpy", "onnx", "nncf", "tokenizers", options.backend)},
        "backend": options.backend,
        "sentences": {
            "train": len(data.train),
            "validation": len(data.validation),
            "validation outside": len(data.validation_outside),
            "test": len(data.test),
            "test outside": len(data.test_outside),
        },
    }
    print(f"{report['machine']}, {report['backend']}, {report['versions']}\n{report['sentences']}")
    settings = SessionOptions(threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        plain, variant = quantise(data, Path(folder), options.backend, settings, tokenizer)
        with (
            open_session(options.backend, plain, settings) as exact,
            open_session(options.backend, variant.path, settings) as rounded,
        ):
            engines = {"FP32": exact, "INT8": rounded}
            features = {name: embed(session, tokenizer, data) for name, session in engines.items()}
            report["layers"] = {name: session.precisions() for name, session in engines.items()}
            took = milliseconds(engines, tokenizer, [text for _, text in data.test[:: len(data.test) // TIMED]])
    penalty = choose_penalty(features["FP32"], data)
    head, own = (fit(features[name].train, data.train, data.labels, penalty) for name in ("FP32", "INT8"))
    fp32 = measure(head, features["FP32"], data)
    results = {
        "FP32": fp32,
        "INT8, head of FP32": measure(head, features["INT8"], data, fp32.threshold),
        "INT8, head fitted anew": measure(own, features["INT8"], data),
    }
    tried = ", ".join(f"{name} {value:.4f}" for name, value in variant.tried.items())
    print(f"\nINT8 by {variant.method} ({tried}), {len(variant.restored)} layers put back; penalty {penalty:g}")
    print(f"{'':<24}{'in scope':>10}{'kept':>10}{'recall':>10}{'threshold':>11}{'otherwise':>11}")
    for name, result in results.items():
        otherwise = int((result.decisions != fp32.decisions).sum())
        print(
            f"{name:<24}{result.accuracy:>10.4f}{result.kept:>10.4f}{result.recall:>10.4f}"
            f"{result.threshold:>11.3f}{otherwise:>11}"
        )
    print("in scope: accuracy without a threshold; kept: with it; recall: of questions from outside;")
    print(f"otherwise: test sentences, of {len(fp32.decisions)}, that are decided otherwise than by FP32")
    print(f"one sentence: FP32 {took['FP32']:.2f} ms, INT8 {took['INT8']:.2f} ms")
    report |= {
        "method": variant.method,
        "restored": list(variant.restored),
        "tried": variant.tried,
        "failed": variant.failed,
        "penalty": penalty,
        "milliseconds": {name: round(value, 3) for name, value in took.items()},
        "rows": [
            {
                "engine": name,
                "in_scope": round(result.accuracy, 5),
                "kept": round(result.kept, 5),
                "recall": round(result.recall, 5),
                "threshold": round(result.threshold, 5),
                "otherwise": int((result.decisions != fp32.decisions).sum()),
            }
            for name, result in results.items()
        ],
    }
    sys.stdout.flush()
    print(json.dumps(report, ensure_ascii=False))


if __name__ == "__main__":
    main()
