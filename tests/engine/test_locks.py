import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aula.core.errors import StorageError
from aula.engine.locks import device_held, is_held

HOLD = """
import sys
from pathlib import Path
from aula.engine.locks import device_held
with device_held(Path(sys.argv[1]), "GPU-1", print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _never(what: str) -> None:
    raise AssertionError(what)


def _holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the GPU until it is told to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_builder_waits_and_says_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    waiting = threading.Event()

    def tell(what: str) -> None:
        told.append(what)
        waiting.set()

    with _holder(tmp_path) as process:
        assert is_held(tmp_path, "GPU-1")
        with device_held(tmp_path, "cpu", _never):
            pass  # another device is free

        def release() -> None:
            waiting.wait()
            process.communicate("go\n")

        releasing = threading.Thread(target=release)
        releasing.start()
        with device_held(tmp_path, "GPU-1", tell):
            assert (tmp_path / "GPU-1.pid").read_text() == f"{os.getpid()}\n"
        releasing.join()
    assert told == [f"waiting for process {process.pid}, which builds on GPU-1"]
    assert not is_held(tmp_path, "GPU-1")


def test_who_is_killed_holds_nothing(tmp_path: Path) -> None:
    with _holder(tmp_path) as process:
        process.kill()
        process.wait()
    assert not is_held(tmp_path, "GPU-1")
    with device_held(tmp_path, "GPU-1", _never):
        pass
    assert not (tmp_path / "GPU-1.pid").exists()


def test_an_error_within_releases_it_and_names_stay_in_the_folder(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "../x")

    def interrupted() -> None:
        with device_held(tmp_path, "../x", _never):
            assert is_held(tmp_path, "../x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_held(tmp_path, "../x")
    assert [path.name for path in tmp_path.iterdir()] == [".._x.lock"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError), device_held(tmp_path / "file", "cpu", _never):
        pass
