"""The command line as a user meets it: arguments in; exit code, standard output and standard error out."""

import sys
from pathlib import Path

import pytest

from aula.cli.main import main
from aula.core.errors import ModelNotFoundError
from aula.models import bert, silero
from tests.cli.running import Ended, Run


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `aula ARGUMENTS…` in an empty working folder with the session's home."""
    monkeypatch.setenv("AULA_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("AULA_DEBUG", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def go(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["aula", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ended(code, captured.out, captured.err)

    return go


@pytest.fixture(scope="session")
def models() -> None:
    """Skips, aloud, where the packages that carry the models are not installed."""
    try:
        bert.minilm_checkpoint()
        silero.find_graph()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
