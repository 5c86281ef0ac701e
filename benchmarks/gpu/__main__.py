"""Our engines beside PyTorch on the GPU of this host; needs no network.

    python -m benchmarks.gpu --torch-python python3 --work FOLDER [--rows NAME ...] [--skip-ours] [--json FILE]

PyTorch and our engines run in processes of their own, one after the other for each row, so that neither slows the
other. Prints the table and, last, one JSON line. A competitor that breaks is named with its last lines; the rest goes
on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import table
from benchmarks.gpu.children import Said, clean_environment, run_child
from benchmarks.gpu.floors import floor_ms, load_of

ROOT = Path(__file__).resolve().parents[2]
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader")
SMI_SECONDS = 20.0
Start = Callable[[str], Said]
"""A row's name to what a competitor said of it."""
Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    work: Path = options.work.resolve()
    from benchmarks.gpu.prepare import prepare

    _tell(f"preparing checkpoints and inputs in {work}")
    prepare(work, tiny=options.tiny)
    host = describe_host()
    _tell(json.dumps(host))
    starts = {"pytorch": torch_start(options, work), "ours": ours_start(options.timeout, work)}
    if options.skip_ours:
        starts["ours"] = lambda _: Said("ours", [{"skipped": "--skip-ours"}])
    children = {name: run_row(table.ROWS[name], starts, _tell) for name in table.ROWS if name in options.rows}
    limits = limits_of(children)
    rows = [
        table.compare(
            table.ROWS[name],
            said["pytorch"],
            said["ours"],
            parity_of(name, said),
            floor_ms(load_of(name, work), limits),
        )
        for name, said in children.items()
    ]
    print("\n".join(["", head(host, children), *table.lines(rows)]))
    report = {"host": host, "limits": limits, "rows": rows, "children": children}
    line = json.dumps(report)
    if options.json is not None:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0 if any(row["rival"] or row["ours"] for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True, help="the interpreter that has torch, transformers and timm")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, inputs and outputs")
    parser.add_argument("--rows", nargs="+", choices=table.ROWS, default=list(table.ROWS))
    parser.add_argument("--skip-ours", action="store_true")
    parser.add_argument("--json", type=Path, help="write the JSON line there too")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for the runs of one variant of PyTorch")
    parser.add_argument("--timeout", type=float, default=420.0, help="seconds after which a competitor is ended")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script, no more")
    parser.add_argument("--tiny", action="store_true", help="tiny checkpoints, to try the script")
    return parser.parse_args(arguments)


def torch_start(options: argparse.Namespace, work: Path) -> Start:
    python, environment = clean_environment(options.torch_python, work)
    flags = ["--work", str(work), "--device", options.device, "--seconds", str(options.seconds)]
    flags += ["--tiny"] * options.tiny + ["--no-compile"] * options.no_compile

    def start(row: str) -> Said:
        command = [python, "-m", "benchmarks.gpu.torch_native", "--row", row, *flags]
        return run_child("pytorch", command, environment, options.timeout, folder=ROOT)

    return start


def ours_start(seconds: float, work: Path) -> Start:
    """In the environment of this interpreter, which finds aula beside these benchmarks if it is not installed."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def start(row: str) -> Said:
        command = [sys.executable, "-m", "benchmarks.gpu.ours_process", row, str(work)]
        return run_child("ours", command, environment, seconds, folder=ROOT)

    return start


def run_row(row: table.Row, starts: Mapping[str, Start], tell: Tell) -> dict[str, dict[str, Any]]:
    """What each competitor said last. One that broke keeps the variants that it had measured before."""
    found: dict[str, dict[str, Any]] = {}
    for name, start in starts.items():
        if name == "pytorch" and not row.torch:
            found[name] = {}
            continue
        tell(f"{row.name}: {name} ...")
        said = start(row.name)
        record = dict(said.records[-1]) if said.records else {}
        if said.failure:
            tell(f"{row.name}: {name} broke:\n{said.failure}")
            record["skipped"] = said.failure.replace("\n", " / ")
        elif not record:
            record["skipped"] = "it said nothing"
        record = table.with_variants(record)
        if not isinstance(record.get("variants", {}), dict):
            record = {"skipped": "its variants are no object"}
        for variant, figures in record.get("variants", {}).items():
            tell(f"  {variant}: {json.dumps(figures)}")
        found[name] = record
    return found


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


def head(host: Mapping[str, str], children: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Date, card, driver, and the versions that the competitors told."""
    versions: dict[str, str] = {}
    for said in children.values():
        for record in said.values():
            versions |= record.get("versions", {})
    told = {name: host[name] for name in ("date", "gpu", "driver") if name in host} | versions
    return "; ".join(f"{name} {value}" for name, value in told.items())


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
