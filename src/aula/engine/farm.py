"""Engines for many targets at once: each is built by a process of its own, those of different GPUs beside each other.

A build that dies, out of memory or by a driver's fault, takes no other with it. What was finished becomes one bundle.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aula.backends.gpus import Gpu
from aula.core.errors import BackendError, EngineError
from aula.engine.bundle import Bundle
from aula.engine.locks import is_held
from aula.engine.merge import merge
from aula.engine.store import Store
from aula.engine.targets import TARGETS, Target

LAST_LINES = 5
"""How much of what a dead build said is repeated."""
LONGEST_LINE = 4096
GRACE_SECONDS = 20.0
"""What a build has to remove its drafts in, once it was asked to end, before it is killed."""

T = TypeVar("T")
Command = Callable[[str], Sequence[str]]
"""What builds one target, as words. It prints the manifest, or an error, as one JSON object on standard output, and
its progress as `progress_line` writes it on standard error."""
Report = Callable[[str, str, float], None]
"""Called with a target, what is being done for it, and the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Job:
    """A target, and the GPU that it is built on; None for the CPU."""

    target: str
    gpu: Gpu | None


@dataclass(frozen=True, slots=True)
class Failure:
    """`code` is the exit status that a caller ends with."""

    reason: str
    code: int


@dataclass(frozen=True, slots=True)
class Harvest:
    """Bundles' keys of what was built, why the others were not, by target; and the bundle of all that was."""

    bundle: Bundle | None
    built: Mapping[str, str]
    absent: Mapping[str, str]
    failed: Mapping[str, Failure]


def build_targets(
    targets: Sequence[str],
    command: Command,
    store: Store,
    *,
    gpus: Sequence[Gpu],
    locks: Path,
    report: Report,
    elsewhere: str,
) -> Harvest:
    """Build those of the targets that this machine has, and merge what was built in `store`. `elsewhere` is the
    command that builds the others.

    Raises BackendError where it has none of them, and what `merge` raises. An interrupt ends every build and waits
    until each has removed its drafts.
    """
    jobs, absent = assign(targets, gpus, lambda gpu: not is_held(locks, gpu.uuid))
    if not jobs:
        raise BackendError(
            f"none of the targets is on this machine: {'; '.join(absent.values())}",
            next_step=f"build them where they are: {elsewhere}",
        )
    ended = run_jobs(jobs, command, report)
    built = {target: key for target, key in ended.items() if isinstance(key, str)}
    failed = {target: failure for target, failure in ended.items() if isinstance(failure, Failure)}
    bundle = merge([store.open(key) for key in built.values()], store) if built else None
    return Harvest(bundle, built, absent, failed)


def assign(
    targets: Iterable[str], gpus: Sequence[Gpu], is_free: Callable[[Gpu], bool]
) -> tuple[tuple[Job, ...], dict[str, str]]:
    """Which of the targets is built where, a free GPU before one that another builder holds; and why the others are
    not."""
    jobs: list[Job] = []
    absent: dict[str, str] = {}
    for target in (TARGETS[name] for name in dict.fromkeys(targets)):
        if not target.is_gpu:
            jobs.append(Job(target.name, None))
            continue
        fitting = [gpu for gpu in gpus if gpu.capability == target.capability]
        if fitting:
            jobs.append(Job(target.name, next(filter(is_free, fitting), fitting[0])))
        else:
            absent[target.name] = _absence(target, gpus)
    return tuple(jobs), absent


def run_jobs(jobs: Sequence[Job], command: Command, report: Report) -> dict[str, str | Failure]:
    """The key of each bundle that was built, or why none was, by target in the order in which they ended."""

    async def work() -> dict[str, str | Failure]:
        with _ended_politely():
            return await _run_all(jobs, command, report)

    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """A request to end (SIGTERM) cancels the work, as asyncio makes of Ctrl-C: an interrupt raised amid the event loop
    would leave builds running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def cancel(_number: int, _frame: object) -> None:
        task.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wakes the loop

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


async def _run_all(jobs: Sequence[Job], command: Command, report: Report) -> dict[str, str | Failure]:
    ended: dict[str, str | Failure] = {}

    async def lane(waiting: Sequence[Job]) -> None:
        for job in waiting:
            ended[job.target] = await _run(job, command(job.target), report)

    lanes: dict[str, list[Job]] = {}
    for job in jobs:
        if job.gpu is not None:
            lanes.setdefault(job.gpu.uuid, []).append(job)
    await _together([lane(waiting) for waiting in lanes.values()])
    # The CPU's engine is chosen by timing it, and a build for a GPU keeps cores busy too: beside one, the race would
    # be won by chance.
    await lane([job for job in jobs if job.gpu is None])
    return ended


async def _together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each came to. If one fails, or we are interrupted, the others are cancelled, once, and have ended before
    that goes on its way."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (fault := task.exception()) is not None:
            raise fault
    return [task.result() for task in tasks]


async def _run(job: Job, words: Sequence[str], report: Report) -> str | Failure:
    environment = dict(os.environ)
    if job.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = job.gpu.uuid
    report(job.target, "starting", 0.0)
    try:
        # In a session of its own, so that the terminal's Ctrl-C reaches us alone, and each build is asked to end once.
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return Failure(f"its process cannot be started ({error.strerror or error})", EngineError.exit_code)
    assert process.stdout is not None
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        output, _ = await _together([process.stdout.read(), _follow(process.stderr, job.target, last, report)])
        code = await process.wait()
    finally:
        await _end(process)
    found = _answer(output)
    if code == 0 and isinstance(found.get("key"), str):
        report(job.target, "built", 1.0)
        return str(found["key"])
    report(job.target, "failed", 1.0)
    return Failure(_reason(code, found, last), code if code > 0 else EngineError.exit_code)


async def _follow(stream: asyncio.StreamReader, target: str, last: deque[str], report: Report) -> bytes:
    """Progress is reported, anything else remembered."""
    pending = b""
    while chunk := await stream.read(LONGEST_LINE):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            step = read_progress(line)
            if step is not None:
                report(target, *step)
            elif line.strip():
                last.append(line.decode(errors="replace").strip()[:LONGEST_LINE])
        pending = pending[:LONGEST_LINE]
    if pending.strip():
        last.append(pending.decode(errors="replace").strip())
    return pending


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end as Ctrl-C would, and wait; one that does not listen is killed."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), GRACE_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def progress_line(what: str, share: float) -> str:
    return json.dumps({"what": what, "share": share})


def read_progress(line: bytes) -> tuple[str, float] | None:
    """What `progress_line` wrote, or None for anything else."""
    if not line.startswith(b"{"):
        return None
    found = _answer(line)
    what, share = found.get("what"), found.get("share")
    return (what, float(share)) if isinstance(what, str) and isinstance(share, int | float) else None


def _answer(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(code: int, found: Mapping[str, Any], last: Iterable[str]) -> str:
    error = found.get("error")
    if isinstance(error, dict) and code > 0:
        return f"{error.get('message')} Next: {error.get('next_step')}"
    said = " | ".join(last)
    return f"{_status(code)}{f'; it said last: {said}' if said else ', and said nothing'}"


def _status(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    memory = ", as a system that runs out of memory does" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{memory}"


def _absence(target: Target, gpus: Sequence[Gpu]) -> str:
    there = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in gpus) or "none"
    wanted = " or ".join(target.products)
    return f"{target.name} needs a GPU of compute capability {target.capability} ({wanted}); here: {there}"
