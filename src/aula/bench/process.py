"""A competitor's process, as the one who asks sees it: every answer is awaited for a limited time only."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from aula.bench.protocol import Arrays

START_SECONDS = 300.0
"""To import a library, load weights and prepare a shape: PyTorch alone takes ten seconds on a slow disk."""
ANSWER_SECONDS = 120.0
REST_SECONDS, REST_STEP_SECONDS = 1.0, 0.02
"""The system counts in hundredths of a second: two are enough to see whether a core is busy."""
_TELL = 300


class CompetitorFailedError(Exception):
    """This competitor is out, and why. Never a user's error: the others go on, and the report says who was left out."""


class Process:
    """`command` speaks the protocol of `bench.protocol` on its standard input and output.

    It lives in a session of its own, so that Ctrl-C in a terminal reaches only us: whoever leaves the with-block, by
    whatever way, leaves no process behind. It ends by itself, too, when its standard input does.
    """

    def __init__(self, name: str, command: Sequence[str], *, start_seconds: float = START_SECONDS) -> None:
        self.name = name
        self._command = list(command)
        self._start_seconds = start_seconds
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own worker
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            assert self._process.stdout is not None
            self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True)
            self._reader.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def started(self) -> None:
        """Wait until it can be asked. Raises CompetitorFailedError."""
        self._answer(self._start_seconds)

    def prepare(self, inputs: Path) -> dict[str, Any]:
        about = self._ask({"do": "prepare", "inputs": str(inputs)}, self._start_seconds).get("about")
        return about if isinstance(about, dict) else {}

    def run(self, count: int) -> list[float]:
        """Milliseconds of each of `count` runs."""
        times = self._ask({"do": "run", "count": count}, ANSWER_SECONDS).get("milliseconds")
        good = isinstance(times, list) and [time for time in times if isinstance(time, float) and 0 < time < inf]
        if not good or len(good) != count or good != times:
            raise CompetitorFailedError(f"it answered no times: {str(times)[:_TELL]}")
        return good

    def rest(self) -> None:
        """Wait until it computes no more, at most REST_SECONDS. Thread pools of PyTorch and ONNX Runtime go on spinning
        after their last run, and would take a core from whoever has the next turn. Where the system does not tell the
        processor time of others, this returns at once."""
        assert self._process is not None
        spent = _processor_ticks(self._process.pid)
        for _ in range(round(REST_SECONDS / REST_STEP_SECONDS)):
            time.sleep(REST_STEP_SECONDS)
            before, spent = spent, _processor_ticks(self._process.pid)
            if spent == before:
                return

    def outputs(self, to: Path) -> Arrays:
        self._ask({"do": "outputs", "to": str(to)}, ANSWER_SECONDS)
        try:
            with np.load(to, allow_pickle=False) as file:
                return dict(file.items())
        except (OSError, ValueError, EOFError) as error:
            raise CompetitorFailedError(f"its outputs cannot be read ({error})") from error

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise CompetitorFailedError(self._death()) from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise CompetitorFailedError(f"it gave no answer within {seconds:g} s") from None
        if line is None:
            raise CompetitorFailedError(self._death())
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise CompetitorFailedError(f"it answered {line.strip()[:_TELL]!r}, which is not the protocol")
        if "error" in answer:
            raise CompetitorFailedError(str(answer["error"])[:_TELL])
        return answer

    def _death(self) -> str:
        """How it ended: the last thing that it said, or its exit code."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        code = self._process.poll()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"its process ended ({how})" + (f": {said[-1][:_TELL]}" if said else "")

    def close(self) -> None:
        """End it, whatever it is doing. Lawful twice."""
        process = self._process
        if process is not None:
            process.kill()
            # And whatever it started itself: it leads a session of its own.
            with contextlib.suppress(AttributeError, OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._reader is not None:
                self._reader.join(timeout=5)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._process = None
        self._errors.close()


def _processor_ticks(process: int) -> int:
    """Processor time of all its threads so far, or 0 where that is not told (proc_pid_stat(5), fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0


def worker(name: str, order: Mapping[str, Any]) -> Process:
    """A competitor of this package: see `bench.worker`."""
    return Process(name, [sys.executable, "-m", "aula.bench.worker", json.dumps(dict(order))])


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            lines.put(line)
    lines.put(None)
