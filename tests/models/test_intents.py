from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from aula.core.types import Context, Float32, Intent
from aula.models.intents import IntentUnderstander, LinearHead, character_features, load_examples


class WordEncoder:
    """An honest small embedder: hashed words, unit length."""

    dimensions = 256

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> Float32:
        self.calls += 1
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, crc32(word.strip("?.,!").encode()) % self.dimensions] += 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def test_examples_name_every_intent_in_every_language_and_none_twice() -> None:
    examples = load_examples()
    assert set(examples) == {"en", "zh"}
    for intents in examples.values():
        assert set(intents) == set(Intent)
        sentences = [sentence for group in intents.values() for sentence in group]
        assert len(sentences) == len(set(sentences))


def test_a_head_separates_what_is_separable_and_its_rows_sum_to_one() -> None:
    features = np.eye(6, 8, dtype=np.float32).repeat(3, axis=0)
    labels = [label for label in range(6) for _ in range(3)]
    shares = LinearHead.fitted(features, labels, 6).probabilities(features)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares.argmax(axis=1).tolist() == labels


def test_rare_classes_weigh_as_much_as_common_ones() -> None:
    features = np.array([[1, 0]] * 50 + [[0, 1]], dtype=np.float32)
    shares = LinearHead.fitted(features, [0] * 50 + [1], 2).probabilities(features)
    assert shares[-1].argmax() == 1


@pytest.mark.parametrize(
    ("text", "language", "intent"),
    [
        ("Please repeat that.", "en", Intent.REPEAT),
        ("Slow down, please.", "en", Intent.SLOWER),
        ("Hello.", "en", Intent.GREETING),
        ("What is inertia?", "en", Intent.CONTENT),
        ("请再说一遍。", "zh", Intent.REPEAT),
        ("你好", "zh", Intent.GREETING),
        ("什么是动量", "zh", Intent.CONTENT),
        ("说慢一点", "zh", Intent.SLOWER),
    ],
)
def test_plain_requests_are_understood(text: str, language: str, intent: Intent, tmp_path: Path) -> None:
    understood = IntentUnderstander(WordEncoder(), tmp_path).understand(text, Context(language=language))
    assert understood.intent is intent
    assert 1 / len(Intent) < understood.confidence <= 1
    assert understood.embedding.shape == (256,)


def test_fitted_heads_are_kept_and_damaged_ones_fitted_again(tmp_path: Path) -> None:
    first = WordEncoder()
    IntentUnderstander(first, tmp_path)
    assert first.calls == 1
    second = WordEncoder()
    IntentUnderstander(second, tmp_path)
    assert second.calls == 0
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    third = WordEncoder()
    IntentUnderstander(third, tmp_path)
    assert third.calls == 1


def test_character_features_of_nothing_are_zero_and_of_text_unit_length() -> None:
    features = character_features(["", "惯性是什么"])
    assert np.linalg.norm(features, axis=1) == pytest.approx([1, 1])  # "^$" marks even an empty text
    assert not np.array_equal(features[0], features[1])
