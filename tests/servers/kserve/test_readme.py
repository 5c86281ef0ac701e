"""The READMEs' ten lines of a Triton client, run as they stand but for the address."""

import re

import numpy as np
import pytest

from aula.models import bert
from tests.conftest import REPOSITORY
from tests.servers.kserve.serving import Arrays, serving, toy_rung

ADDRESS = "127.0.0.1:8000"


def snippet(document: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / document).read_text(encoding="utf-8"), re.S)
    (block,) = [block for block in blocks if "import tritonclient" in block]
    return str(block)


def embed(tensors: Arrays) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"embedding": np.ones((len(tensors["input_ids"]), bert.DIMENSIONS), np.float32)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gevent")
@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_the_tritonclient_call_of_the_readme(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against an engine of the names and shapes that the default course's encoder has."""
    code = snippet(document)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    assert ADDRESS in code
    with serving(rungs=[toy_rung(bert.ENGINE, embed)]) as doors:
        exec(code.replace(ADDRESS, doors.http), {})
    assert capsys.readouterr().out.strip() == "(1, 384)"
