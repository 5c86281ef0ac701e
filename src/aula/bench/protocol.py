"""What a competitor can be asked, and the loop that answers in its process: one JSON object a line, both ways.

    -> {"do": "prepare", "inputs": FILE.npz}     <- {"about": {…}}
    -> {"do": "run", "count": 10}                <- {"milliseconds": [10 numbers]}
    -> {"do": "outputs", "to": FILE.npz}         <- {}
    -> {"do": "close"}                           <- {}

The first line is {"ready": true}. An error is {"error": TEXT}, after which the process may still be asked.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Competitor(Protocol):
    """One way to run a model. `prepare` may take its time: whatever can be done before the first question is done
    there. `run` is one inference on the prepared inputs, arrays in memory to arrays in memory, and is all that is
    timed; `rewind`, before each run, undoes what the last one left behind (a cache's new slot). `outputs` gives the
    last run's results under the engine's names, those that it has."""

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        """Returns what people should know: which variant, which arithmetic."""
        ...

    def rewind(self) -> None: ...

    def run(self) -> None: ...

    def outputs(self) -> Arrays: ...


def serve(
    make: Callable[[], Competitor],
    requests: IO[str],
    answers: IO[str],
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Answer until told to close, or until the asker is gone."""

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        competitor = make()
    except Exception as error:  # a library may raise anything; the asker skips us aloud
        answer({"error": _reason(error)})
        return
    answer({"ready": True})
    for line in requests:
        request = json.loads(line)
        if request["do"] == "close":
            answer({})
            return
        try:
            answer(_reply(competitor, request, now))
        except Exception as error:  # as above
            answer({"error": _reason(error)})


def private_answers() -> IO[str]:
    """The standard output as it was, for answers alone: whatever libraries print from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def _reply(competitor: Competitor, request: Mapping[str, Any], now: Callable[[], float]) -> Mapping[str, Any]:
    match request["do"]:
        case "prepare":
            with np.load(request["inputs"], allow_pickle=False) as file:
                inputs = {name: file[name] for name in file.files}
            return {"about": dict(competitor.prepare(inputs))}
        case "run":
            milliseconds = []
            for _ in range(request["count"]):
                competitor.rewind()
                start = now()
                competitor.run()
                milliseconds.append(1000 * (now() - start))
            return {"milliseconds": milliseconds}
        case "outputs":
            with Path(request["to"]).open("wb") as file:
                np.savez(file, **competitor.outputs())  # type: ignore[arg-type]
            return {}
        case unknown:
            raise ValueError(f"there is no request {unknown!r}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
