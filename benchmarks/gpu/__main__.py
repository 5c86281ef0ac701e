"""Our engines beside PyTorch on the GPU of this host; needs no network.

    python -m benchmarks.gpu --torch-python python3 --work FOLDER [--rows NAME ...] [--build] [--json FILE]

One thing at a time, each in a process of its own: first the engines that are missing are built (with --build), then
PyTorch is measured, a family of rows at a time, then our side, row by row. Nothing else may run on the host meanwhile:
PyTorch's eager mode lives on the processor, and took four times as long beside a build. Prints the table and, last, a
short JSON line; --json keeps everything. A competitor that breaks is named with its last lines; the rest goes on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import jobs, table
from benchmarks.gpu.children import Said, clean_environment, run_child
from benchmarks.gpu.floors import floor_ms, load_of
from benchmarks.gpu.rows import ROWS, TORCH_FAMILIES, Row, chosen

ROOT = Path(__file__).resolve().parents[2]
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader")
SMI_SECONDS = 20.0
GRACE_SECONDS = 45.0
"""Over what PyTorch's process was told it has: for starting, and for a call that no signal interrupts."""
Records = dict[str, dict[str, Any]]
"""What a competitor said last, by row."""
StartTorch = Callable[[Sequence[str], float], Said]
"""The rows and the seconds that there are for them."""
Start = Callable[[str], Said]
Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    work: Path = options.work.resolve()
    rows = chosen(options.rows)
    from benchmarks.gpu.prepare import prepare

    _tell(f"preparing checkpoints and inputs in {work}")
    prepare(work, tiny=options.tiny)
    host = describe_host()
    _tell(json.dumps(host))
    # 1. Engines, while nothing is measured.
    if not options.skip_ours:
        see_to_engines(rows, work, options, _tell)
    # 2. PyTorch, family by family.
    torch = measure_torch(rows, work, options, host, _tell)
    # 3. Our side, row by row.
    ours: Records = {row.name: {"skipped": "--skip-ours"} for row in rows}
    if not options.skip_ours:
        start = ours_start(options.ours_seconds, work)
        ours = {row.name: ask_ours(row.name, start, _tell) for row in rows}
    children = {row.name: {"pytorch": torch.get(row.name, {}), "ours": ours[row.name]} for row in rows}
    report = report_of(rows, children, host, work)
    print("\n".join(["", head(host, children), *table.lines(report["rows"])]))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table.brief(report), flush=True)
    return 0 if any(row["rival"] or row["ours"] for row in report["rows"]) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Engines are built by {jobs.described()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--torch-python", help="the interpreter that has torch and transformers; else only our side")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, inputs, engines and outputs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--build", action="store_true", help="build the engines that are missing first")
    parser.add_argument("--build-seconds", type=float, default=900.0, help="after which one build is ended")
    parser.add_argument("--quantised", type=Path, help="folder of int8 graphs that NNCF made where it is installed")
    parser.add_argument("--skip-ours", action="store_true")
    parser.add_argument("--ours-seconds", type=float, default=300.0, help="for each row of our side")
    parser.add_argument("--keep-torch", action="store_true", help="PyTorch's figures of an earlier run, where it can")
    parser.add_argument("--torch-seconds", type=float, default=600.0, help="for all of PyTorch's rows")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for the runs of one variant of PyTorch")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--compile-seconds", type=float, default=90.0, help="for one torch.compile")
    parser.add_argument("--json", type=Path, help="write everything that was measured there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script, no more")
    parser.add_argument("--tiny", action="store_true", help="tiny checkpoints, to try the script")
    return parser.parse_args(arguments)


def own_environment() -> dict[str, str]:
    """Of this interpreter, which finds aula beside these benchmarks if it is not installed."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def see_to_engines(rows: Sequence[Row], work: Path, options: argparse.Namespace, tell: Tell) -> None:
    """Builds what is missing, or tells the commands that do; a build that breaks costs its rows, nothing else."""
    missing = jobs.missing(work, rows)
    if missing and not options.build:
        tell("engines are missing; --build builds them first, as do these, one after the other:")
        for job in missing:
            tell(f"  {jobs.spelled(work, job, options.quantised)}")
        return
    for job in missing:
        if job in jobs.NEED_QUANTISED and options.quantised is None:
            tell(f"{job} is not built: it needs --quantised")
            continue
        tell(f"building {job} ...")
        begun = time.perf_counter()
        command = jobs.command(work, job, options.quantised)
        said = run_child(job, command, own_environment(), options.build_seconds, folder=ROOT)
        took = f"{time.perf_counter() - begun:.0f} s"
        tell(f"  broke after {took}:\n{said.failure}" if said.failure else f"  built in {took}")


def measure_torch(
    rows: Sequence[Row], work: Path, options: argparse.Namespace, host: Mapping[str, str], tell: Tell
) -> Records:
    """One process for each family; what it measured is kept in `work` for --keep-torch, with the card it was on."""
    found: Records = {}
    asked = {family: [row.name for row in rows if row.family == family] for family in TORCH_FAMILIES}
    asked = {family: names for family, names in asked.items() if names}
    for family, names in asked.items():
        path = work / f"pytorch-{family}.json"
        kept = read_kept(path, host)
        if options.keep_torch and set(names) <= set(kept):
            tell(f"{', '.join(names)}: pytorch, as measured before")
            found |= {name: kept[name] for name in names}
        elif options.torch_python:
            seconds = options.torch_seconds * TORCH_FAMILIES[family] / sum(TORCH_FAMILIES[name] for name in asked)
            records = ask_torch(names, torch_start(options, work), seconds, tell)
            whole = {name: record for name, record in records.items() if record.get("variants")}
            path.write_text(json.dumps({"gpu": host.get("gpu"), "rows": kept | whole}), encoding="utf-8")
            found |= records
        else:
            found |= {name: {"skipped": "no --torch-python"} for name in names}
    return found


def read_kept(path: Path, host: Mapping[str, str]) -> Records:
    """Nothing where there is no such file, it is no record, or it is another card's."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record["rows"]) if record["gpu"] == host.get("gpu") else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def torch_start(options: argparse.Namespace, work: Path) -> StartTorch:
    python, environment = clean_environment(options.torch_python, work)
    flags = ["--work", str(work), "--device", options.device, "--seconds", str(options.seconds)]
    flags += ["--compile-seconds", str(options.compile_seconds)]
    flags += ["--tiny"] * options.tiny + ["--no-compile"] * options.no_compile

    def start(rows: Sequence[str], seconds: float) -> Said:
        command = [python, "-m", "benchmarks.gpu.torch_native", *flags, "--budget", f"{seconds:.0f}", "--rows", *rows]
        return run_child("pytorch", command, environment, seconds + GRACE_SECONDS, folder=ROOT)

    return start


def ask_torch(
    names: Sequence[str],
    start: StartTorch,
    seconds: float,
    tell: Tell,
    now: Callable[[], float] = time.monotonic,
) -> Records:
    """A process that breaks costs the row it was at, which keeps the variants measured before; another goes on with
    the rows behind it."""
    found: Records = {}
    left, end = list(names), now() + seconds
    while left and (remaining := end - now()) > 1:
        tell(f"{', '.join(left)}: pytorch ...")
        said = start(left, remaining)
        for record in said.records:
            if record.get("row") in left:
                found[record["row"]] = checked(record)
        begun = [record["row"] for record in said.records if record.get("row") in left]
        if said.failure:
            at = begun[-1] if begun else left[0]
            tell(f"{at}: pytorch broke:\n{said.failure}")
            found.setdefault(at, {})["skipped"] = said.failure.replace("\n", " / ")
            begun.append(at)
        left = [name for name in left if name not in begun]
        if not said.failure or not said.records:
            break
    why = next((record["skipped"] for record in found.values() if record.get("skipped")), "it said nothing")
    for name in names:
        found.setdefault(name, {"skipped": why})
        tell_variants(name, found[name], tell)
    return found


def ours_start(seconds: float, work: Path) -> Start:
    environment = own_environment()

    def start(row: str) -> Said:
        command = [sys.executable, "-m", "benchmarks.gpu.ours_process", row, str(work)]
        return run_child("ours", command, environment, seconds, folder=ROOT)

    return start


def ask_ours(row: str, start: Start, tell: Tell) -> dict[str, Any]:
    tell(f"{row}: ours ...")
    said = start(row)
    record = checked(said.records[-1]) if said.records else {}
    if said.failure:
        tell(f"{row}: ours broke:\n{said.failure}")
        record["skipped"] = said.failure.replace("\n", " / ")
    elif not record:
        record["skipped"] = "it said nothing"
    tell_variants(row, record, tell)
    return record


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    variants = record.get("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(figures, dict) for figures in variants.values()):
        return {"skipped": "its variants are no objects"}
    return dict(record)


def tell_variants(row: str, record: Mapping[str, Any], tell: Tell) -> None:
    for variant, figures in record.get("variants", {}).items():
        tell(f"  {row}, {variant}: {json.dumps(figures)}")


def report_of(
    rows: Sequence[Row],
    children: Mapping[str, Mapping[str, Mapping[str, Any]]],
    host: Mapping[str, str],
    work: Path,
) -> dict[str, Any]:
    limits = limits_of(children)
    compared = [
        table.compare(
            row,
            children[row.name]["pytorch"],
            children[row.name]["ours"],
            parity_of(row.name, children[row.name]),
            floor_ms(load_of(row.name, work), limits),
        )
        for row in rows
    ]
    return {
        "host": dict(host),
        "versions": versions_of(children),
        "limits": limits,
        "rows": compared,
        "children": children,
    }


def parity_of(row: str, said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    torch, ours = (_outputs(said[name].get("outputs")) for name in ("pytorch", "ours"))
    return table.parity(row, torch, ours)


def limits_of(children: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """The card's limits: the best that any of PyTorch's processes measured."""
    best: dict[str, float] = {}
    for said in children.values():
        for name, value in said["pytorch"].get("limits", {}).items():
            best[name] = max(value, best.get(name, 0.0))
    return best


def _outputs(path: str | None) -> dict[str, Any]:
    """Empty where there is no such file, or none that can be read."""
    if not path:
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except (OSError, ValueError, EOFError):
        return {}


def describe_host(query: Sequence[str] = QUERY) -> dict[str, str]:
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = {"date": date, "python": sys.version.split()[0]}
    if shutil.which(query[0]) is None:
        return about | {"gpu": "no nvidia-smi here"}
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
        name, driver, memory, clock = (part.strip() for part in answer.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return about | {"gpu": f"nvidia-smi does not tell ({type(error).__name__})"}
    return about | {"gpu": name, "driver": driver, "memory": memory, "clock": clock}


def versions_of(children: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for said in children.values():
        for record in said.values():
            versions |= record.get("versions", {})
    return versions


def head(host: Mapping[str, str], children: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Date, card, driver, and the versions that the competitors told."""
    told = {name: host[name] for name in ("date", "gpu", "driver") if name in host} | versions_of(children)
    return "; ".join(f"{name} {value}" for name, value in told.items())


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
