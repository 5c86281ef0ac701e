from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.models.confidence import Evidence, confidence, read_evidence

SURE = Evidence(posterior=-0.1, doubtful=0.0, language=-0.06, longest=2.2, spoken=0.8, words=1.4)


@dataclass
class Segment:
    word: str
    start_frame: int
    end_frame: int
    prob: float
    lscore: float = 0.95


class Decoder:
    def __init__(self, *segments: Segment) -> None:
        self._segments = segments

    def seg(self) -> list[Segment]:
        return list(self._segments)


def test_doubt_and_dragging_words_lower_the_confidence() -> None:
    assert confidence(SURE) > 0.5
    for worse in (replace(SURE, posterior=-3.0), replace(SURE, doubtful=0.8), replace(SURE, longest=4.5)):
        assert confidence(worse) < confidence(SURE)


@given(st.builds(Evidence, *[st.floats(-1e6, 1e6)] * 6))
def test_any_evidence_gives_a_probability(evidence: Evidence) -> None:
    assert 0 <= confidence(evidence) <= 1


def test_silence_and_noise_marks_are_not_words() -> None:
    evidence = read_evidence(
        Decoder(
            Segment("<s>", 0, 9, 1.0),
            Segment("what(2)", 10, 29, 1.0003),
            Segment("[NOISE]", 30, 39, 0.1),
            Segment("is", 40, 59, 0.25),
            Segment("</s>", 60, 79, 1.0),
        )
    )
    assert evidence.words == pytest.approx(0.693, abs=1e-3)
    assert evidence.doubtful == pytest.approx(0.5)
    assert evidence.posterior == pytest.approx(-0.693, abs=1e-3)
    assert evidence.spoken == pytest.approx(0.5)
    assert evidence.longest == pytest.approx(2.303, abs=1e-3)


def test_probabilities_that_underflowed_are_survived() -> None:
    evidence = read_evidence(Decoder(Segment("word", 0, 9, 0.0, 0.0)))
    assert confidence(evidence) < 0.1
