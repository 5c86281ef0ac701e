"""From the sound of a question to its text: Whisper on our engines beside those that others use.

    python benchmarks/whisper.py WORK [--size small] [--seconds 2 5 10] [--python PATH] [--genai FOLDER]

WORK keeps the made-up checkpoint, our engines (built once, int8 and bf16 tried) and the conversions. `--python` is an
interpreter that has torch, transformers and faster-whisper; `--genai` is a folder that optimum-intel exported from
WORK/checkpoint, for openvino-genai in the same interpreter. Who cannot run is left out, aloud.

Limits first: the weights are made up, so that speed alone is measured: what a context shorter than 30 s costs in words
needs a real checkpoint (`aula verify --labelled`). Every competitor writes the same number of tokens, in a process of
its own, in turns. `aula, 30 s` pads as the others do; `aula, context` has the least context with a second of margin.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aula.bench.machine import machine
from aula.bench.process import CompetitorFailedError, Process
from aula.bench.race import Timing, race, ratio
from aula.core.clock import SystemClock
from aula.engine.build import BuildOptions, build
from aula.engine.store import Store
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import architecture, random_checkpoint, whisper_model
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import BUCKETS, Contexts
from aula.models.whisper_seeded import made_up_tokenizer
from aula.models.whisper_tokens import SpecialTokens

SEED = 1
MARGIN = 1.0
WINDOW = 30.0
BASELINE = "transformers"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Entrant:
    """`draft`: tokens are handed in before the text is written: "right", as two hypotheses agreed on, "late" (its sixth
    is wrong, and all after it) or "wrong" from the first."""

    name: str
    order: Mapping[str, Any]
    python: str = sys.executable
    draft: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="small")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 5.0, 10.0])
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch and faster-whisper")
    parser.add_argument("--genai", type=Path, help="what optimum-intel exported from WORK/checkpoint")
    parser.add_argument("--only", default=".*", help="a regular expression for the names of those who take part")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    options = parser.parse_args()
    checkpoint = seeded(options.work / "checkpoint", options.size)
    store, key = engines(options.work / "engines", checkpoint, options.size, options.threads)
    console = Console(width=180, quiet=options.json)
    summary: dict[str, Any] = {"benchmark": "whisper", "size": options.size, "tokens": options.tokens}
    for seconds in options.seconds:
        entrants = [
            entrant
            for entrant in field(options, checkpoint, store, key, seconds)
            if re.fullmatch(options.only, entrant.name)
        ]
        summary[f"{seconds:g} s"] = measure(entrants, seconds, options.tokens, options.rounds, console)
    print(json.dumps({**summary, "machine": {**machine(), "features": features()}}, ensure_ascii=False))


def seeded(folder: Path, size: str) -> Checkpoint:
    """Made once, with what the others want of a checkpoint."""
    if (folder / "preprocessor_config.json").exists():
        return Checkpoint(folder)
    raw = architecture(f"whisper-{size}")
    checkpoint = random_checkpoint(raw, folder, SEED)
    made_up_tokenizer(folder, raw["vocab_size"])
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": raw["num_mel_bins"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return checkpoint


def engines(folder: Path, checkpoint: Checkpoint, size: str, threads: int) -> tuple[Store, str]:
    """The fastest of fp32, bf16 and int8. Made-up weights are measured, never served, and calibrated on noise."""
    model = whisper_model(checkpoint, f"whisper-{size}", seeded=True)
    options = BuildOptions(("fp32", "bf16", "int8"), threads=threads)
    store = Store(folder)
    return store, build(model, store, options, progress=lambda what, _share: print(what, file=sys.stderr)).manifest.key


def field(options: Any, checkpoint: Checkpoint, store: Store, key: str, seconds: float) -> list[Entrant]:
    config = WhisperConfig.from_checkpoint(checkpoint)
    safe = {bucket: bucket for bucket in BUCKETS}
    least = Contexts.of(config, MARGIN, safe).final(round(seconds * 16_000)) / 100
    folder = str(checkpoint.folder)
    ours = {"kind": "aula", "store": str(store.folder), "key": key, "folder": folder}
    live = {**ours, "kind": "live", "context": least}
    rivals = {"threads": options.threads}
    entrants = [
        Entrant(BASELINE, {"kind": "transformers", "folder": folder, **rivals}, options.python),
        Entrant("aula, 30 s", {**ours, "context": WINDOW}),
        Entrant(f"aula, context {least:g} s", {**ours, "context": least}),
        Entrant(f"aula, context {least:g} s, draft right", {**ours, "context": least}, draft="right"),
        Entrant(f"aula, context {least:g} s, draft wrong from its sixth", {**ours, "context": least}, draft="late"),
        Entrant(f"aula, context {least:g} s, draft wrong from its start", {**ours, "context": least}, draft="wrong"),
        Entrant("aula, commit after a pause", {**live, "paused": True}),
        Entrant("aula, four commits at once", {**live, "streams": 4}),
        Entrant("aula, decoder alone, one row", {**ours, "context": least, "rows": 1}),
        Entrant("aula, decoder alone, four rows", {**ours, "context": least, "rows": 4}),
    ]
    converted = options.work / "ctranslate2"
    if convert(options.python, checkpoint, converted):
        order = {"kind": "faster-whisper", "folder": str(converted), **rivals}
        entrants.append(Entrant("faster-whisper", order, options.python))
    if options.genai is not None:
        steer(options.genai, config.vocab_size)
        order = {"kind": "openvino-genai", "folder": str(options.genai), **rivals}
        entrants.append(Entrant("openvino-genai", order, options.python))
    return entrants


def convert(python: str, checkpoint: Checkpoint, folder: Path) -> bool:
    """To CTranslate2's form, by its own converter; False, and a word, where that is not to be had."""
    if folder.exists():
        return True
    program = (
        "import sys; from ctranslate2.converters import TransformersConverter as T; "
        "files = ['tokenizer.json', 'preprocessor_config.json']; "
        "T(sys.argv[1], copy_files=files).convert(sys.argv[2], quantization='int8')"
    )
    made = subprocess.run([python, "-c", program, str(checkpoint.folder), str(folder)], capture_output=True, text=True)
    if made.returncode:
        print(f"faster-whisper is left out: {made.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return made.returncode == 0


def features() -> str:
    """What of the processor decides these figures: int8 products take a quarter of the time with AMX."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    named = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16", "amx_int8": "AMX"}
    return ", ".join(name if flag in flags else f"no {name}" for flag, name in named.items())


def steer(folder: Path, vocab_size: int) -> None:
    """What openvino-genai reads of a multilingual checkpoint's generation_config.json, for made-up weights."""
    special = SpecialTokens.of(vocab_size)
    assert special is not None
    languages = {f"<|{code}|>": token for code, token in zip(special.codes, special.languages, strict=True)}
    steering = {
        "decoder_start_token_id": special.start,
        "eos_token_id": special.end,
        "pad_token_id": special.end,
        "bos_token_id": special.end,
        "no_timestamps_token_id": special.no_timestamps,
        "prev_sot_token_id": special.previous,
        "lang_to_id": languages,
        "task_to_id": {"transcribe": special.transcribe, "translate": special.translate},
        "is_multilingual": special.multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }
    (folder / "generation_config.json").write_text(json.dumps(steering), encoding="utf-8")


def measure(
    entrants: Sequence[Entrant], seconds: float, tokens: int, rounds: int, console: Console
) -> dict[str, dict[str, Any]]:
    """Milliseconds from samples to text, and how many times faster than BASELINE in the same rounds."""
    generator = np.random.default_rng(SEED)
    samples = generator.normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    about: dict[str, Any] = {}
    texts: dict[str, list[int]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whisper-race-")))
        runners: dict[str, Process] = {}
        for entrant in entrants:
            command = [entrant.python, str(HERE / "whisper_competitors.py"), json.dumps(dict(entrant.order))]
            process = stack.enter_context(Process(entrant.name, command))
            given: dict[str, Any] = {"samples": samples, "tokens": tokens}
            try:
                process.started()
                given["draft"] = np.array(_draft(entrant, texts), dtype=np.int64)
                given["sure"] = len(given["draft"]) if entrant.draft == "right" else 0
                np.savez(work / "inputs.npz", **given)
                about[entrant.name] = process.prepare(work / "inputs.npz")
                texts[entrant.name] = process.outputs(work / "outputs.npz")["tokens"].tolist()
            except CompetitorFailedError as failure:
                console.print(f"{entrant.name} is left out: {failure}", markup=False)
                continue
            runners[entrant.name] = process
        made = race(runners, SystemClock(), rounds)
    for name, reason in made.failed.items():
        console.print(f"{name} fell out: {reason}", markup=False)
    return _shown(made.timings, about, texts, seconds, console)


def _draft(entrant: Entrant, texts: Mapping[str, list[int]]) -> list[int]:
    """What the same engine wrote without a draft, or that with tokens that are wrong."""
    plain = texts.get(_without(entrant.name), []) if entrant.draft else []
    right = {"right": len(plain), "late": 5}.get(entrant.draft, 0)
    return [*plain[:right], *((token + 1) % 50_000 for token in plain[right:])]


def _without(name: str) -> str:
    """The entrant that has no draft, else the same."""
    return name.partition(", draft ")[0]


def _shown(
    timings: Mapping[str, Timing],
    about: Mapping[str, Any],
    texts: Mapping[str, list[int]],
    seconds: float,
    console: Console,
) -> dict[str, dict[str, Any]]:
    table = Table(title=f"{seconds:g} s of sound to its text ({features()})", header_style="bold", box=None)
    for column in ("competitor", "median ms", "p10 to p90", "least", "× transformers", "tokens", "what"):
        table.add_column(column, justify="right" if column[0] in "mpl×t" else "left")
    rows: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        times = ratio(timings[BASELINE], timing) if BASELINE in timings else None
        low, high = timing.spread
        same = texts[name] == texts.get(BASELINE)
        rows[name] = {
            "median_ms": round(timing.median, 1),
            "least_ms": round(min(timing.all), 1),
            "times": None if times is None else round(times, 2),
            "tokens": len(texts[name]),
            "same_text": same,
            "about": about[name],
        }
        plain = timings.get(_without(name))
        if plain is not None and plain is not timing:
            rows[name]["over_no_draft"] = round(1 / ratio(plain, timing), 3)
        what = ", ".join(str(value) for key, value in about[name].items() if "mb" not in key and key != "tokens")
        what += f"; {about[name]['memory_mb']} MB"
        what += f"; {rows[name]['over_no_draft']} of the time without a draft" if "over_no_draft" in rows[name] else ""
        shown = "" if times is None else f"{times:.2f}"
        times_ms = (f"{timing.median:.1f}", f"{low:.1f} to {high:.1f}", f"{min(timing.all):.1f}")
        table.add_row(name, *times_ms, shown, str(len(texts[name])), what)
    console.print(table)
    return rows


if __name__ == "__main__":
    main()
