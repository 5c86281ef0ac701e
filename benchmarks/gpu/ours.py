"""Our own side. It runs in a process of its own, under the interpreter that has TensorRT (see `ours_process`).

Inputs lie on the device before the clock starts and outputs stay there, as on PyTorch's side; a recognition ends when
its text is on the host.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.tensorrt import TensorRtSession
from aula.backends.tensorrt_runtime import Runtime
from aula.core.errors import AulaError
from aula.engine.bundle import Bundle
from aula.engine.store import Store
from aula.models.whisper_gpu import WhisperStepping
from benchmarks.gpu.engines import IN_FLIGHT_ROWS
from benchmarks.gpu.flight import closed_loop, greatest, percentile
from benchmarks.gpu.rows import LATENCY_MS, MANY, PICTURES, TOKENS

RUNS = 200
ROUNDS = 20
PROMPT = (50258, 50259, 50359, 50363)
"""Start, English, transcribe, no timestamps."""


def measure(row: str, work: Path) -> dict[str, Any]:
    """One row, from the files that `prepare` left in `work`. The fields, as far as they make sense for the row:

    `variant`; `p50_ms`, `p90_ms` of device time; `per_second`; `in_flight`; `first_s`, `second_s`, `speedup` of a
    build; `versions` and `tried`, by name; `outputs`, the path of an npz with `hidden` (BERT), `tokens` int
    [questions, tokens] (Whisper) or `logits` over all pictures of the row's file. `skipped` says why there is nothing.
    """
    try:
        measured = _MEASURES[row](row, work)
    except (AulaError, OSError) as refusal:
        return {"skipped": str(refusal)}
    return {**measured, "versions": {"tensorrt": Runtime.load().version}}


def _one_run(row: str, work: Path) -> dict[str, Any]:
    family, rows = (
        ("bert", int(row.split("-")[1].split("x")[0])) if row.startswith("bert") else ("efficientnet", PICTURES)
    )
    bundle, told = _bundle(work, row if family == "bert" else family)
    inputs = dict(np.load(work / f"{row}.npz"))
    engine = bundle.engine(target=told["target"])
    with bundle.open(profile=row if family == "bert" else "images", target=told["target"]) as session:
        assert isinstance(session, TensorRtSession)
        produced = session.run(inputs)
        with_copies = statistics.median(_warm(session, inputs))
        for spec in (*session.inputs, *session.outputs):
            session.attach(spec.name, session.device_tensor(spec.name))
        times = _warm(session, {})
    output = "hidden" if family == "bert" else next(iter(produced))
    path = work / f"ours-{row}.npz"
    drop = _top1_drop(work, engine.precision) if family == "efficientnet" else None
    kept: dict[str, Any] = {"hidden" if family == "bert" else "logits": produced[output]}
    np.savez(path, **kept)
    p50 = statistics.median(times)
    return {
        "variant": engine.precision,
        "p50_ms": p50,
        "p90_ms": percentile(times, 0.9),
        "per_second": 1000 * rows / p50,
        "with_copies_ms": with_copies,
        "tried": told["tried"],
        "outputs": str(path),
        **({} if drop is None else {"top1_drop": drop}),
    }


def _warm(session: TensorRtSession, inputs: dict[str, Any]) -> list[float]:
    for _ in range(20):
        session.run(inputs)
    return session.device_milliseconds(RUNS)


def _top1_drop(work: Path, precision: str) -> float | None:
    """Points that the trained network of training/digits loses in that precision, by the builder's gate; None where it
    was not built."""
    path = work / "engines" / "digits.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    metrics = {one["precision"]: one["metric"] for one in told["tried"]["model"]}
    metric = metrics.get(precision)
    return None if metric is None else 100 * float(told["fp32_metric"]["model"] - metric)


def _whisper(row: str, work: Path) -> dict[str, Any]:
    rows = int(row.rpartition("-")[2])
    recogniser, told = _recogniser(work, rows)
    mel = np.load(work / "whisper.npz")["mel"][:rows]
    texts = recogniser.write(mel, PROMPT, TOKENS)
    tokens = np.array(texts)
    if rows == 1:  # parity wants more than one question
        every = np.load(work / "whisper.npz")["mel"]
        tokens = np.array(
            [recogniser.write(every[place : place + 1], PROMPT, TOKENS)[0] for place in range(len(every))]
        )
        recogniser.write(mel, PROMPT, TOKENS)
    recogniser.keep_mel(recogniser.mel())
    times = []
    for _ in range(10 + (100 if rows == 1 else 30)):
        start = time.perf_counter()
        recogniser.write(None, PROMPT, TOKENS)
        times.append(1000 * (time.perf_counter() - start))
    times = times[10:]
    recogniser.close()
    path = work / f"ours-{row}.npz"
    np.savez(path, tokens=tokens)
    p50 = statistics.median(times)
    return {
        "variant": "fp16",
        "p50_ms": p50,
        "p90_ms": percentile(times, 0.9),
        "per_second": 1000 * rows / p50,
        "tried": told["tried"],
        "form": told.get("form"),
        "outputs": str(path),
    }


def _in_flight(_row: str, work: Path) -> dict[str, Any]:
    best: dict[str, Any] = {"in_flight": 0}
    for rows in (MANY, IN_FLIGHT_ROWS):
        try:
            recogniser, _ = _recogniser(work, rows)
        except (AulaError, OSError) as refusal:
            best.setdefault("skipped_rows", {})[rows] = str(refusal)
            continue
        mel = np.load(work / "whisper.npz")["mel"]
        recogniser.write(np.concatenate([mel] * (rows // len(mel))), PROMPT, TOKENS)
        recogniser.keep_mel(recogniser.mel())
        latencies: dict[int, float] = {}

        def passes(count: int, chosen: WhisperStepping = recogniser, seen: dict[int, float] = latencies) -> bool:
            def serve(_count: int) -> object:
                return chosen.write(None, PROMPT, TOKENS)

            seen[count] = percentile(closed_loop(serve, count, chosen.rows, ROUNDS), 0.99)
            return seen[count] <= LATENCY_MS

        found = greatest(passes, rows, tries=7)
        recogniser.close()
        best.setdefault("tried", {})[f"{rows} rows"] = {str(count): ms for count, ms in sorted(latencies.items())}
        if found > best["in_flight"]:
            best |= {"in_flight": found, "p99_ms": latencies[found], "variant": f"fp16, {rows} rows"}
    return best


def _build_cache(_row: str, work: Path) -> dict[str, Any]:
    told = _told(work, "bert-1x32-again")
    first, second = sum(told["first_seconds"]), sum(told["second_seconds"])
    return {
        "variant": "BERT-base 1x32, fp16",
        "first_s": first,
        "second_s": second,
        "speedup": first / second,
        "tried": {"first_s": told["first_seconds"], "second_s": told["second_seconds"]},
    }


def _told(work: Path, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "engines" / f"{job}.json").read_text(encoding="utf-8"))
    return found


def _bundle(work: Path, job: str) -> tuple[Bundle, dict[str, Any]]:
    told = _told(work, job)
    return Store(work / "stores" / job).open(told["key"]), told


def _recogniser(work: Path, rows: int) -> tuple[WhisperStepping, dict[str, Any]]:
    """From the bundle of both parts, or from two that were built beside each other."""
    if (work / "engines" / f"whisper-{rows}.json").exists():
        encoder, told = _bundle(work, f"whisper-{rows}")
        decoder = encoder
    else:
        (encoder, _), (decoder, told) = (_bundle(work, f"whisper-{rows}.{part}") for part in ("encoder", "decoder"))
    target = told["target"]
    sessions = [
        encoder.open("encoder", "question", target=target),
        decoder.open("decoder", "prompt", target=target),
        decoder.open("decoder", "step", target=target),
    ]
    assert all(isinstance(session, TensorRtSession) for session in sessions)
    return WhisperStepping(*sessions), told  # type: ignore[arg-type]


_MEASURES = {
    "bert-1x32": _one_run,
    "bert-64x32": _one_run,
    "efficientnet-32": _one_run,
    "whisper-1": _whisper,
    f"whisper-{MANY}": _whisper,
    "in-flight": _in_flight,
    "build-cache": _build_cache,
}
