"""A competitor's process: the environment it is given, the time it has, and what it said."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAST_LINES = 8
OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Said:
    """The JSON objects that it printed, one a line, up to its end; `failure` says why it ended early, or is empty."""

    name: str
    records: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""


def run_child(
    name: str, command: Sequence[str], environment: Mapping[str, str], seconds: float, *, folder: Path
) -> Said:
    """Whatever was measured before a failure counts."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=dict(environment),
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return Said(name, failure=f"it cannot be started: {error}")
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            output, _ = process.communicate()
        finally:
            timer.cancel()
            _end(process)
            process.wait()
        errors.seek(0)
        complaints = errors.read().splitlines()
    lines = output.splitlines()
    records = [record for line in lines if (record := _record(line)) is not None]
    if process.returncode == 0 and not late.is_set():
        return Said(name, records)
    how = f"it was ended after {seconds:.0f} s" if late.is_set() else f"exit code {process.returncode}"
    words = [line for line in complaints if line.strip()] or [line for line in lines if _record(line) is None]
    return Said(name, records, "\n".join([how, *words[-LAST_LINES:]]))


def clean_environment(python: str, work: Path, given: Mapping[str, str] | None = None) -> tuple[str, dict[str, str]]:
    """The path of another interpreter, and an environment in which nothing of ours reaches it: Python's variables are
    gone, the libraries' path keeps only folders that hold the GPU's driver, and our own interpreter's folder comes last
    in PATH, since `python3` may mean ours there."""
    environment = {
        key: value for key, value in (os.environ if given is None else given).items() if key not in OWN_VARIABLES
    }
    own = os.path.realpath(Path(sys.executable).parent)
    folders = [folder for folder in environment.get("PATH", os.defpath).split(os.pathsep) if folder]
    others = [folder for folder in folders if os.path.realpath(folder) != own]
    environment["PATH"] = os.pathsep.join(others + [folder for folder in folders if folder not in others])
    drivers = [
        folder
        for folder in environment.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
        if folder and any(Path(folder).glob("libcuda.so*"))
    ]
    if drivers:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(drivers)
    environment |= {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }
    return shutil.which(python, path=environment["PATH"]) or python, environment


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _end(process: "subprocess.Popen[str]") -> None:
    """With all that it started: it leads a process group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
