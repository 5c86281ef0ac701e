import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.bench.protocol import Arrays, Competitor, serve


class Counting:
    """Counts what it is asked; fails on inputs named "bad"."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._inputs: Arrays = {}

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        if "bad" in inputs:
            raise ValueError("\nbad inputs\nand more lines")
        self._inputs = inputs
        return {"variant": "plain"}

    def rewind(self) -> None:
        self.log.append("rewind")

    def run(self) -> None:
        self.log.append("run")

    def outputs(self) -> Arrays:
        return {name: 2 * array for name, array in self._inputs.items()}


def _ask(competitor: Competitor, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    answers = io.StringIO()
    ticks = itertools.count()
    lines = io.StringIO("".join(json.dumps(request) + "\n" for request in requests))
    serve(lambda: competitor, lines, answers, now=lambda: next(ticks) / 8)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_prepare_run_outputs_and_close(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.arange(3))
    competitor = Counting()
    answers = _ask(
        competitor,
        {"do": "prepare", "inputs": str(tmp_path / "in.npz")},
        {"do": "run", "count": 2},
        {"do": "outputs", "to": str(tmp_path / "out.npz")},
        {"do": "close"},
        {"do": "run", "count": 9},
    )
    assert answers == [{"ready": True}, {"about": {"variant": "plain"}}, {"milliseconds": [125, 125]}, {}, {}]
    assert competitor.log == ["rewind", "run"] * 2
    assert np.load(tmp_path / "out.npz")["x"].tolist() == [0, 2, 4]


def test_a_failure_is_answered_in_one_line_and_the_next_request_is_served(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", bad=np.arange(3))
    answers = _ask(
        Counting(), {"do": "prepare", "inputs": str(tmp_path / "in.npz")}, {"do": "jump"}, {"do": "run", "count": 1}
    )
    assert answers[1:] == [
        {"error": "ValueError: bad inputs"},
        {"error": "ValueError: there is no request 'jump'"},
        {"milliseconds": [125]},
    ]


def test_one_that_cannot_start_says_why() -> None:
    def make() -> Competitor:
        raise ImportError("No module named 'torch'")

    answers = io.StringIO()
    serve(make, io.StringIO(), answers)
    assert json.loads(answers.getvalue()) == {"error": "ImportError: No module named 'torch'"}
