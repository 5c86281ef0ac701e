import pytest

from aula import __version__
from aula.cli import main as module
from tests.cli.running import Run


def test_version_and_help(run: Run) -> None:
    assert run("--version").out.strip() == f"aula, version {__version__}"
    ended = run("--help")
    assert ended.code == 0
    for word in ("ask", "course", "demo", "doctor", "Exit codes"):
        assert word in ended.out


@pytest.mark.parametrize(
    "arguments",
    [("frobnicate",), ("ask",), ("ask", "a.wav", "--text", "b"), ("ask", "--no-such-option"), ("course", "add")],
)
def test_bad_usage_ends_with_2_and_says_how(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert "Error" in ended.err


def test_a_bad_setting_ends_with_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AULA_THREADS", "lots")
    ended = run("course", "list")
    assert ended.code == 2
    assert "AULA_THREADS" in ended.err


def test_a_defect_of_ours_is_told_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(module.cli, "main", broken)
    ended = run("doctor")
    assert ended.code == 1
    assert "AULA_DEBUG=1" in ended.err


def test_an_interrupt_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.cli, "main", interrupted)
    ended = run("doctor")
    assert ended.code == 130
    assert "nothing was left half done" in ended.err
