"""The farm with GPUs and builds that are none: a child is a few lines of Python, steered through named pipes."""

import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aula.backends.gpus import Gpu
from aula.core.errors import BackendError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.farm import Failure, Job, assign, build_targets, progress_line, read_progress, run_jobs
from aula.engine.locks import device_held, is_held
from aula.engine.store import Store
from tests.bench.toy import toy_file
from tests.engine.toy import toy_model

T4 = Gpu(0, "GPU-t4", "Tesla T4", "7.5", "570.86", 16 * 2**30)
L4 = Gpu(1, "GPU-l4", "NVIDIA L4", "8.9", "570.86", 24 * 2**30)
TWIN = Gpu(2, "GPU-twin", "NVIDIA L4", "8.9", "570.86", 24 * 2**30)
STUCK_SECONDS = 60
"""A build that waits for another in vain ends, and its test fails, instead of waiting for ever."""

PREAMBLE = """
import json, os, select, signal, sys
def say(what): print(json.dumps({"what": what, "share": 0.5}), file=sys.stderr, flush=True)
def wait(pipe):
    descriptor = os.open(pipe, os.O_RDWR)
    if not select.select([descriptor], [], [], STUCK)[0]:
        sys.exit("nobody came")
def done(key): print(json.dumps({"key": key}))
target = sys.argv[1]
say("begun")
"""
Steps = list[tuple[str, str]]


def _command(program: str, *arguments: object) -> Callable[[str], Sequence[str]]:
    text = f"STUCK = {STUCK_SECONDS}\n{PREAMBLE}{program}"
    return lambda target: (sys.executable, "-c", text, target, *map(str, arguments))


def _pipe(folder: Path) -> Path:
    path = folder / "pipe"
    os.mkfifo(path)
    return path


def _open(pipe: Path) -> None:
    """Let everybody pass who waits at the pipe, now or later."""
    descriptor = os.open(pipe, os.O_RDWR)
    os.write(descriptor, b"go")
    assert select.select([descriptor], [], [], 0)[0]


def _steps(jobs: Sequence[Job], command: Callable[[str], Sequence[str]]) -> tuple[Steps, dict[str, str | Failure]]:
    steps: Steps = []
    ended = run_jobs(jobs, command, lambda target, what, _share: steps.append((target, what)))
    return steps, ended


def test_two_gpus_build_beside_each_other_and_the_cpu_after_them(tmp_path: Path) -> None:
    pipe, begun = _pipe(tmp_path), set()
    program = "target == 'cpu' or wait(sys.argv[2])\ndone(f\"{target} {os.environ.get('CUDA_VISIBLE_DEVICES')}\")"
    steps: Steps = []

    def report(target: str, what: str, _share: float) -> None:
        steps.append((target, what))
        if what == "begun":
            begun.add(target)
        if begun == {"sm75", "sm89"}:  # neither could end before both had begun
            _open(pipe)

    jobs = [Job("cpu", None), Job("sm75", T4), Job("sm89", L4)]
    ended = run_jobs(jobs, _command(program, pipe), report)
    assert ended["sm75"] == "sm75 GPU-t4"
    assert ended["sm89"] == "sm89 GPU-l4"
    assert list(ended)[-1] == "cpu"
    assert steps.index(("cpu", "starting")) > max(steps.index((target, "built")) for target in ("sm75", "sm89"))


def test_one_gpu_builds_one_target_after_the_other() -> None:
    steps, ended = _steps([Job("sm86", L4), Job("sm89", L4)], _command("done(target)"))
    assert ended == {"sm86": "sm86", "sm89": "sm89"}
    assert steps == [(target, what) for target in ended for what in ("starting", "begun", "built")]


@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        (
            "print('line 1', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)",
            5,
            "killed by SIGKILL.*memory.*line 1",
        ),
        ("os.abort()", 5, "killed by SIGABRT, and said nothing"),
        (
            "print(json.dumps({'error': {'message': 'no GPU', 'next_step': 'buy one'}}))\nsys.exit(9)",
            9,
            "^no GPU Next: buy one",
        ),
        ("sys.exit('\\n'.join(map(str, range(20))))", 1, r"exit status 1; it said last: 15 \| 16 \| 17 \| 18 \| 19"),
        ("print('[')", 5, "exit status 0, and said nothing"),
        ("print('{\"key\": 1}')", 5, "exit status 0"),
        ("print('x' * 10**6, '\\0', end='')\nprint('y' * 10**6, file=sys.stderr)", 5, "it said last: y{100}"),
    ],
)
def test_a_build_that_dies_is_told_and_takes_no_other_with_it(program: str, code: int, reason: str) -> None:
    _, ended = _steps(
        [Job("sm75", T4), Job("sm89", L4)], _command(f"if target == 'sm89': sys.exit(done(target))\n{program}")
    )
    assert ended["sm89"] == "sm89"
    failure = ended["sm75"]
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert re.search(reason, failure.reason)


def test_a_command_that_is_not_there_is_a_failure_too() -> None:
    _, ended = _steps([Job("cpu", None)], lambda _target: ("/no/such/program",))
    failure = ended["cpu"]
    assert isinstance(failure, Failure)
    assert "cannot be started" in failure.reason


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_build_and_waits_until_it_has_cleaned_up(
    tmp_path: Path, request_to_end: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    program = """
def cleaned(*_):
    open(f"{sys.argv[3]}/{target}", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, cleaned)
say("ready")
wait(sys.argv[2])
"""
    ready: set[str] = set()

    def interrupt(target: str, what: str, _share: float) -> None:
        ready.update({target} if what == "ready" else ())
        if ready == {"sm75", "sm89"}:
            os.kill(os.getpid(), request_to_end)

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("sm75", T4), Job("sm89", L4)], _command(program, _pipe(tmp_path), tmp_path), interrupt)
    assert {"sm75", "sm89"} <= {path.name for path in tmp_path.iterdir()}
    assert signal.getsignal(signal.SIGTERM) == before


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aula.engine.farm.GRACE_SECONDS", 0.0)
    running: list[int] = []

    def interrupt(_target: str, what: str, _share: float) -> None:
        if what.isdecimal():
            running.append(int(what))
            os.kill(os.getpid(), signal.SIGINT)

    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(str(os.getpid()))\nwait(sys.argv[2])"
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("sm75", T4)], _command(program, _pipe(tmp_path)), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(running[0], 0)


def test_an_interrupted_farm_of_real_builds_leaves_no_draft_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build waits in the midst of its proof, its graph written and its lock held."""
    home, store = tmp_path / "home", tmp_path / "store"
    monkeypatch.setenv("AULA_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    program = """
from aula.__main__ import main
from aula.engine.trial import Prover
pipe = sys.argv[2]
def prove(*_):
    say("proving")
    wait(pipe)
Prover.prove = prove
sys.argv = ["aula", *sys.argv[3:]]
main()
"""
    words = ("build", str(toy_file(tmp_path)), "--profile", "small:rows=1,columns=2-4-8", "--store", str(store))
    drafts: list[Path] = []
    held: list[bool] = []

    def interrupt(_target: str, what: str, _share: float) -> None:
        if what == "proving":
            drafts.extend(store.glob(".draft-*"))
            held.append(is_held(home / "locks", "cpu"))
            os.kill(os.getpid(), signal.SIGINT)

    command = _command(program, _pipe(tmp_path), *words, "--json", "--progress-lines")
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("cpu", None)], command, interrupt)
    assert (len(drafts), held) == (1, [True])
    assert [path for path in store.rglob("*") if path.is_file() or path.name.startswith(".draft")] == []
    assert not is_held(home / "locks", "cpu")
    assert [path.name for path in (home / "locks").iterdir()] == ["cpu.lock"]


def test_targets_go_to_the_gpus_that_have_their_capability() -> None:
    jobs, absent = assign(["cpu", "sm75", "sm89", "sm90"], [T4, L4, TWIN], lambda _gpu: True)
    assert jobs == (Job("cpu", None), Job("sm75", T4), Job("sm89", L4))
    assert absent == {
        "sm90": "sm90 needs a GPU of compute capability 9.0 (H100 or H200); here: Tesla T4 (7.5), NVIDIA L4 (8.9), "
        "NVIDIA L4 (8.9)"
    }
    assert assign(["sm89"], [L4, TWIN], lambda gpu: gpu is TWIN)[0] == (Job("sm89", TWIN),)
    assert assign(["sm89"], [L4, TWIN], lambda _gpu: False)[0] == (Job("sm89", L4),)
    assert assign(["sm86"], [], lambda _gpu: True) == ((), {"sm86": assign(["sm86"], [], bool)[1]["sm86"]})


@pytest.fixture
def built(tmp_path: Path) -> Bundle:
    return build(toy_model(tmp_path), Store(tmp_path / "store"), BuildOptions(threads=1))


def _farm(bundle: Bundle, targets: Sequence[str], command: Any, gpus: Sequence[Gpu] = (), **changes: Any) -> Any:
    known: dict[str, Any] = {
        "gpus": gpus,
        "locks": bundle.files.parent / "locks",
        "report": lambda *_: None,
        "elsewhere": "aula build toy --targets all",
    }
    return build_targets(targets, command, Store(bundle.files.parent), **(known | changes))


def test_what_was_built_is_merged_and_the_rest_is_told(built: Bundle) -> None:
    program = f"target == 'cpu' or sys.exit(7)\ndone({built.manifest.key!r})"
    harvest = _farm(built, ["cpu", "sm75", "sm86"], _command(program), [T4])
    assert harvest.bundle == built
    assert harvest.built == {"cpu": built.manifest.key}
    assert list(harvest.absent) == ["sm86"]
    assert (list(harvest.failed), harvest.failed["sm75"].code) == (["sm75"], 7)
    nothing = _farm(built, ["cpu"], _command("sys.exit(3)"))
    assert (nothing.bundle, nothing.failed["cpu"].code) == (None, 3)


def test_a_machine_with_none_of_the_targets_says_how_they_are_built(built: Bundle) -> None:
    with pytest.raises(BackendError, match="sm75 needs a GPU of compute capability") as failure:
        _farm(built, ["sm75"], _command("sys.exit(1)"), [L4])
    assert failure.value.next_step.endswith("aula build toy --targets all")


def test_a_gpu_that_nobody_holds_is_taken_first(built: Bundle) -> None:
    locks = built.files.parent / "locks"
    program = f"open(sys.argv[2], 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\ndone({built.manifest.key!r})"
    with device_held(locks, L4.uuid, pytest.fail):
        _farm(built, ["sm89"], _command(program, locks / "chosen"), [L4, TWIN])
    assert (locks / "chosen").read_text() == TWIN.uuid


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"what": 1, "share": 0}', b'{"what": "x"}', b"\xff", b"{" * 10_000]
)
def test_what_is_no_progress_is_not_taken_for_it(line: bytes) -> None:
    assert read_progress(line) is None
    assert read_progress(progress_line("proving é", 1).encode()) == ("proving é", 1.0)
    assert json.loads(progress_line("x", 0.25)) == {"what": "x", "share": 0.25}
