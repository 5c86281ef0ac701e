import os
import sys
from pathlib import Path

import pytest

from aula.bench import process as module
from aula.bench.process import CompetitorFailedError, Process

FAKE = Path(__file__).with_name("fake_competitor.py")


def _fake(mode: str) -> Process:
    return Process(mode, [sys.executable, str(FAKE), mode])


def test_a_good_competitor_is_asked_and_leaves_no_process(tmp_path: Path) -> None:
    with _fake("good") as process:
        process.started()
        assert process.prepare(tmp_path / "inputs.npz") == {"variant": "plain"}
        assert process.run(3) == [2.0, 2.0, 2.0]
        assert process.outputs(tmp_path / "outputs.npz")["y"].tolist() == [1, 1]
        assert process._process is not None
        number = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    process.close()


def _start_and_run(process: Process) -> None:
    process.started()
    process.run(3)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("dies at once", "exit code 1.*no such library"),
        ("crashes", "exit code 3.*it was the library's fault"),
        ("rubbish", "Welcome to this library!.*not the protocol"),
        ("not an object", "not the protocol"),
        ("too few", "no times"),
        ("words", "no times"),
        ("cannot", "RuntimeError: not this shape"),
    ],
)
def test_a_bad_competitor_is_out_with_its_reason(mode: str, reason: str) -> None:
    with _fake(mode) as process, pytest.raises(CompetitorFailedError, match=reason):
        _start_and_run(process)


def test_outputs_that_cannot_be_read_put_it_out(tmp_path: Path) -> None:
    with _fake("bad file") as process:
        process.started()
        with pytest.raises(CompetitorFailedError, match="cannot be read"):
            process.outputs(tmp_path / "outputs.npz")


def test_one_that_hangs_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.01)
    with _fake("hangs") as process:
        process.started()
        with pytest.raises(CompetitorFailedError, match=r"no answer within 0\.01 s"):
            process.run(1)
        assert process._process is not None
        number = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_ends_the_process(failure: type[BaseException]) -> None:
    numbers = []

    def leave_by(process: Process) -> None:
        with process:
            assert process._process is not None
            numbers.append(process._process.pid)
            raise failure

    with pytest.raises(failure):
        leave_by(_fake("good"))
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


def test_a_command_that_is_not_there_is_an_os_error_and_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError), Process("absent", ["/no/such/program"]):
        pass


def test_rest_waits_while_the_processor_is_used_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([5, 9, 12, 12, *range(100, 1000)])
    waits: list[float] = []
    monkeypatch.setattr(module, "_processor_ticks", lambda _process: next(ticks))
    monkeypatch.setattr("time.sleep", waits.append)
    with _fake("good") as process:
        process.rest()
        assert len(waits) == 3
        process.rest()
        assert sum(waits[3:]) == pytest.approx(module.REST_SECONDS)


def test_processor_time_of_this_process_grows_and_of_none_is_nothing() -> None:
    before = module._processor_ticks(os.getpid())
    if not before:
        pytest.skip("this system does not tell the processor time of processes")
    while module._processor_ticks(os.getpid()) == before:
        sum(range(10_000))
    assert module._processor_ticks(-1) == 0
