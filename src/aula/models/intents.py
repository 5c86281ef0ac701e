"""What a student wants: a small linear head, fitted on this project's own example sentences.

English sentences are read through the sentence encoder; for languages the encoder does not know, through character
n-grams. Multinomial logistic regression with an L2 penalty (Bishop 2006, section 4.3.4), fitted in milliseconds.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.capabilities import Embedder
from aula.core.files import write_atomically
from aula.core.types import Context, Float32, Intent, Understanding

ENCODER_LANGUAGES = frozenset({"en"})
CHARACTER_FEATURES = 1024


class LinearHead:
    """Class probabilities from a feature row: softmax of features @ weights."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._weights = weights

    @classmethod
    def fitted(
        cls, features: Float32, labels: Sequence[int], classes: int, penalty: float = 2e-3, steps: int = 600
    ) -> "LinearHead":
        """`features` float32 [n, d], one label in 0..classes-1 a row. Classes weigh the same, however many examples
        each has."""
        targets = np.eye(classes)[np.asarray(labels, dtype=np.int64)]
        shares = targets / np.maximum(targets.sum(axis=0), 1)
        row_weights = shares.sum(axis=1, keepdims=True) / len({*labels})
        rows = _with_bias(features)
        weights = np.zeros((rows.shape[1], classes))
        velocity = np.zeros_like(weights)
        # Nesterov's accelerated gradient; 2.0 bounds the loss's curvature, since rows are at most sqrt(2) long.
        for step in range(steps):
            ahead = weights + step / (step + 3) * velocity
            gradient = rows.T @ (row_weights * (_softmax(rows @ ahead) - targets)) + penalty * ahead
            velocity = ahead - gradient / (2.0 * row_weights.max() * len(rows) / 2 + penalty) - weights
            weights = weights + velocity
        return cls(weights)

    def probabilities(self, features: Float32) -> NDArray[np.float64]:
        """float64 [n, classes], rows sum to 1."""
        return _softmax(_with_bias(features) @ self._weights)

    def save(self, path: Path) -> None:
        write_atomically(path, lambda file: np.save(file, self._weights))

    @classmethod
    def load(cls, path: Path, dimensions: int) -> "LinearHead | None":
        """The saved head for features of that many dimensions, or None where there is none that can be read."""
        try:
            weights = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = weights.shape == (dimensions + 1, len(Intent)) and bool(np.isfinite(weights).all())
        return cls(weights) if whole else None


class IntentUnderstander:
    """Intent and embedding of a question. Implements `Understander`."""

    def __init__(self, encoder: Embedder, folder: Path) -> None:
        """`folder` keeps the fitted heads, so that only the first start embeds the examples."""
        self._encoder = encoder
        examples = load_examples()
        self._heads = {language: self._open_head(language, examples[language], folder) for language in examples}

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Of the encoder, where it is made of such."""
        return getattr(self._encoder, "sessions", ())

    def understand(self, text: str, context: Context) -> Understanding:
        return self.understand_many([text], [context])[0]

    def understand_many(self, texts: Sequence[str], contexts: Sequence[Context]) -> list[Understanding]:
        """Each as if it had been alone; the encoder reads them together."""
        embeddings = self._encoder.embed(texts)
        return [self._judge(*row) for row in zip(texts, contexts, embeddings, strict=True)]

    def _judge(self, text: str, context: Context, embedding: Float32) -> Understanding:
        language = context.language if context.language in self._heads else "en"
        features = embedding[None] if language in ENCODER_LANGUAGES else character_features([text])
        shares = self._heads[language].probabilities(features)[0]
        best = int(shares.argmax())
        return Understanding(list(Intent)[best], float(shares[best]), embedding)

    def _open_head(self, language: str, examples: Mapping[Intent, Sequence[str]], folder: Path) -> LinearHead:
        order = list(Intent)
        labels = [order.index(intent) for intent, sentences in examples.items() for _ in sentences]
        sentences = [sentence for group in examples.values() for sentence in group]
        identity = repr((2, sorted(zip(labels, sentences, strict=True)), self._encoder.dimensions))
        path = folder / f"intents-{language}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
        encoded = language in ENCODER_LANGUAGES
        if (head := LinearHead.load(path, self._encoder.dimensions if encoded else CHARACTER_FEATURES)) is not None:
            return head
        head = LinearHead.fitted(
            self._encoder.embed(sentences) if encoded else character_features(sentences), labels, len(order)
        )
        head.save(path)
        return head


def load_examples() -> dict[str, dict[Intent, list[str]]]:
    table = tomllib.loads(files("aula.models").joinpath("intents.toml").read_text(encoding="utf-8"))
    return {
        language: {Intent(name): list(rows) for name, rows in intents.items()} for language, intents in table.items()
    }


def character_features(texts: Sequence[str]) -> Float32:
    """Hashed character 1- to 3-grams, float32 [n, CHARACTER_FEATURES], each row of unit length (or zero)."""
    features = np.zeros((len(texts), CHARACTER_FEATURES), dtype=np.float32)
    for row, text in enumerate(texts):
        marked = "^" + "".join(character for character in text.lower() if character.isalnum()) + "$"
        for width in (1, 2, 3):
            for start in range(len(marked) - width + 1):
                gram = marked[start : start + width]
                features[row, crc32(gram.encode()) % CHARACTER_FEATURES] += 1
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.divide(features, lengths, out=features, where=lengths > 0)
    return features


def _with_bias(features: Float32) -> NDArray[np.float64]:
    return np.hstack([features.astype(np.float64), np.ones((len(features), 1))])


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
