"""Our own side. It runs in a process of its own, under the interpreter that has TensorRT (see `ours_process`).

Inputs lie on the device before the clock starts and outputs stay there, as on PyTorch's side; a recognition ends when
its text is on the host.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.device_session import DeviceSession
from aula.backends.tensorrt import TensorRtSession
from aula.backends.tensorrt_runtime import Runtime
from aula.core.errors import AulaError
from aula.engine.bundle import Bundle
from aula.engine.store import Store
from aula.models.whisper_gpu import WhisperStepping
from benchmarks.gpu.flight import Serve, most_in_flight, percentile
from benchmarks.gpu.jobs import EFFICIENTNETS, POSITIONS, QUICK, is_built, left_by, level_of, spelled, whisper_sizes
from benchmarks.gpu.rows import IN_FLIGHT, MANY, PROMPT, ROWS, TOKENS

RUNS = 200


class NotBuiltError(Exception):
    """There is no engine for the row."""


def measure(row: str, work: Path) -> dict[str, Any]:
    """One row, from the files that `prepare` left in `work`. The fields, as far as they make sense for the row:

    `variants`, by name: `p50_ms`, `p90_ms` of device time (Whisper: until the text is on the host); `per_second`;
    `in_flight`, `p99_ms`; `first_s`, `second_s`, `speedup` of a build; `top1_drop` in points. Beside them
    `versions` and `tried`, by name; `outputs`, the path of an npz with `hidden` (BERT), `tokens` int [questions,
    tokens] (Whisper) or `logits` over all pictures of the row's file. `skipped` says why there is nothing.
    """
    try:
        return {**_MEASURES[row](row, work), "versions": {"tensorrt": Runtime.load().version}}
    except (AulaError, OSError, NotBuiltError) as refusal:
        return {"skipped": str(refusal)}


def _sentences(row: str, work: Path) -> dict[str, Any]:
    bundle, told = _bundle(work, row)
    engine = bundle.engine(target=told["target"])
    figures, produced = _timed(bundle, row, row, told, work)
    path = work / f"ours-{row}.npz"
    np.savez(path, hidden=produced["hidden"])
    return {"variants": {engine.precision: figures}, "tried": told["tried"], "outputs": str(path)}


def _pictures(row: str, work: Path) -> dict[str, Any]:
    """The engine of each level that was built: what shipped there, int8 or fp16. The outputs are the fastest one's."""
    jobs = [job for job in EFFICIENTNETS if is_built(work, job)] or list(EFFICIENTNETS[:1])
    path = work / f"ours-{row}.npz"
    variants: dict[str, Any] = {}
    tried: dict[str, Any] = {}
    best = 0.0
    for job in jobs:
        bundle, told = _bundle(work, job)
        precision, level = bundle.engine(target=told["target"]).precision, level_of(job)
        figures, produced = _timed(bundle, "images", row, told, work)
        if (drop := top1_drop(work, precision, level)) is not None:
            figures["top1_drop"] = drop
        variants[f"{precision}, level {level}"] = figures
        tried |= {f"{part}, level {level}": candidates for part, candidates in told["tried"].items()}
        if figures["per_second"] > best:
            best = figures["per_second"]
            np.savez(path, logits=next(iter(produced.values())))
    return {"variants": variants, "tried": tried, "outputs": str(path)}


def _timed(
    bundle: Bundle, profile: str, row: str, told: dict[str, Any], work: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of a row's inputs, and what came of them."""
    inputs = dict(np.load(work / f"{row}.npz"))
    with bundle.open(profile=profile, target=told["target"]) as session:
        assert isinstance(session, TensorRtSession)
        produced = session.run(inputs)
        with_copies = statistics.median(_warm(session, inputs))
        for spec in (*session.inputs, *session.outputs):
            session.attach(spec.name, session.device_tensor(spec.name))
        times = _warm(session, {})
    p50 = statistics.median(times)
    figures = {
        "p50_ms": p50,
        "p90_ms": percentile(times, 0.9),
        "per_second": 1000 * ROWS[row].rows / p50,
        "with_copies_ms": with_copies,
    }
    return figures, produced


def _warm(session: TensorRtSession, inputs: dict[str, Any]) -> list[float]:
    for _ in range(20):
        session.run(inputs)
    return session.device_milliseconds(RUNS)


def top1_drop(work: Path, precision: str, level: int = QUICK) -> float | None:
    """Points that a precision costs the trained network of training/digits, by the builder's gate: fp32's top-1 less
    its own, in an engine of the same level, since TensorRT finds other int8 kernels at each. None where that was not
    measured."""
    job = "digits" if level == QUICK else f"digits-{level}"
    if not is_built(work, job):
        return None
    told = _told(work, job)
    for part, candidates in told["tried"].items():
        reference = told.get("fp32_metric", {}).get(part)
        for one in candidates:
            if one["precision"] == precision and one["metric"] is not None and reference is not None:
                return float(100 * (reference - one["metric"]))
    return None


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
    figures = {"p50_ms": p50, "p90_ms": percentile(times, 0.9), "per_second": 1000 * rows / p50}
    return {
        "variants": {"fp16": figures},
        "tried": told["tried"],
        "form": told.get("form"),
        "outputs": str(path),
    }


def _in_flight(_row: str, work: Path) -> dict[str, Any]:
    """Each engine is a variant, once or several times beside itself: more rows at once take longer, and answer more."""
    variants: dict[str, Any] = {}
    for sizes, servers in IN_FLIGHT:
        name = _spoken(sizes, servers)
        if not is_built(work, f"whisper-{sizes}"):
            variants[name] = {"skipped": f"no engine; build it: {spelled(work, f'whisper-{sizes}')}"}
            continue
        recognisers: list[WhisperStepping] = []
        try:
            for _ in range(servers):
                recognisers.append(_recogniser(work, sizes)[0])
                _rehearse(recognisers[-1], work)
            variants[name] = _counted(recognisers)
        except (AulaError, OSError, NotBuiltError) as refusal:
            variants[name] = {"skipped": str(refusal)}
        finally:
            for recogniser in recognisers:
                recogniser.close()
        print(json.dumps({"variants": variants}), flush=True)  # what is measured stays, should the next one break
    return {"variants": variants}


def _spoken(sizes: str, servers: int) -> str:
    rows, positions = whisper_sizes(sizes)
    window = "" if positions == POSITIONS else f", {positions} positions"
    return f"fp16, {rows} rows{window}" + (f", {servers} at once" if servers > 1 else "")


def _rehearse(recogniser: WhisperStepping, work: Path) -> None:
    """One batch of questions, which then stays on the device; behind their end each has its own silence."""
    stored = np.load(work / "whisper.npz")
    mel = recogniser.mel()
    order = np.arange(recogniser.rows) % len(stored["mel"])
    sound = np.repeat(stored["floor"][order], mel.shape[1] * mel.shape[2]).reshape(mel.shape).astype(np.float32)
    sound[:, :, : stored["mel"].shape[2]] = stored["mel"][order]
    recogniser.write(sound, PROMPT, TOKENS)
    recogniser.keep_mel(mel)


def _counted(recognisers: Sequence[WhisperStepping]) -> dict[str, Any]:
    def serve_by(recogniser: WhisperStepping) -> Serve:
        return lambda _count: recogniser.write(None, PROMPT, TOKENS)

    rows = recognisers[0].rows
    serves = [serve_by(recogniser) for recogniser in recognisers]
    return most_in_flight(lambda _count: (rows, serves), rows * len(recognisers))


def _build_cache(_row: str, work: Path) -> dict[str, Any]:
    """What TensorRT took for the plan, first and again; beside it the builds as wholes, with graph and proof."""
    told = _told(work, "bert-1x32-again")
    first, second = sum(told["first_seconds"]), sum(told["second_seconds"])
    figures = {
        "first_s": first,
        "second_s": second,
        "speedup": first / second,
        "first_whole_s": told["first_whole_seconds"],
        "second_whole_s": told["whole_seconds"],
    }
    return {"variants": {"BERT-base 1x32, fp16": figures}}


def _told(work: Path, job: str) -> dict[str, Any]:
    path = left_by(work, job)
    if not path.exists():
        raise NotBuiltError(f"no engine; build it: {spelled(work, job.partition('.')[0])}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _bundle(work: Path, job: str) -> tuple[Bundle, dict[str, Any]]:
    told = _told(work, job)
    return Store(work / "stores" / job).open(told["key"]), told


def _recogniser(work: Path, rows: int | str) -> tuple[WhisperStepping, dict[str, Any]]:
    """From the bundle of both parts, or from two that were built beside each other."""
    if left_by(work, f"whisper-{rows}").exists():
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
    assert all(isinstance(session, DeviceSession) for session in sessions)
    return WhisperStepping(*sessions), told  # type: ignore[arg-type]


_MEASURES = {
    "bert-1x32": _sentences,
    "bert-64x32": _sentences,
    "efficientnet-32": _pictures,
    "whisper-1": _whisper,
    f"whisper-{MANY}": _whisper,
    "in-flight": _in_flight,
    "build-cache": _build_cache,
}
