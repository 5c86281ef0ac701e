"""The parts of benchmarks.serving that are ours; competitors are skipped where they are not installed, so not here."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors
from aula.core.errors import BackendError, NoRungError
from aula.core.types import TensorSpec
from benchmarks.serving import rate
from benchmarks.serving.ours import Service
from benchmarks.serving.slow_engine import SlowEngine
from benchmarks.serving.triton import write_repository


class Noting(Session):
    """y = 2 x; a negative x is refused. `batches` notes how many rows came at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        spec = TensorSpec("x", "float32", ("rows", 1))
        super().__init__([spec], [TensorSpec("y", "float32", ("rows", 1))], SessionOptions())

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self.batches.append(len(tensors["x"]))
        if (tensors["x"] < 0).any():
            raise BackendError("no negative numbers", next_step="send others")
        return {"y": 2 * tensors["x"]}


async def test_everybody_gets_the_answer_to_their_own_row_and_batches_form_because_work_waits() -> None:
    session = Noting()
    rows = [np.array([value], np.float32) for value in range(20)]
    async with Service(session, 8) as service:
        session.batches.clear()
        answers = await asyncio.gather(*(service.ask(row) for row in rows))
    assert [float(answer[0]) for answer in answers] == [2.0 * value for value in range(20)]
    assert (session.batches[0], sum(session.batches), max(session.batches)) == (1, 20, 8)


async def test_an_engine_s_error_reaches_who_asked() -> None:
    async with Service(Noting(), 8) as service:
        with pytest.raises(NoRungError, match="negative"):
            await service.ask(np.array([-1], np.float32))
        assert (await service.ask(np.array([3], np.float32)))[0] == 6


def test_the_slow_engine_answers() -> None:
    assert SlowEngine(0.0).run({"x": np.ones((2, 1), np.float32)})["y"].tolist() == [[2], [2]]


def test_a_repository_has_a_model_for_each_way_to_batch(tmp_path: Path) -> None:
    models = {"plain": "", "priorities": "priority_levels: 2"}
    write_repository(tmp_path, models, 0.06, 8)
    for name, batching in models.items():
        compile((tmp_path / name / "1" / "model.py").read_text(), name, "exec")
        config = (tmp_path / name / "config.pbtxt").read_text()
        assert f"dynamic_batching {{ {batching} }}" in config
        assert config.count("{") == config.count("}")


def test_a_body_is_read_whole_in_either_form() -> None:
    async def read(head: bytes, sent: bytes) -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(sent)
        reader.feed_eof()
        return await rate._body(reader, head)

    assert asyncio.run(read(b"content-length: 5\r\n\r\n", b"hello")) == b"hello"
    chunked = b"transfer-encoding: chunked\r\n\r\n"
    assert asyncio.run(read(chunked, b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")) == b"hello"


@pytest.mark.parametrize("extra", [(), ("hosted",)], ids=["here", "hosted"])
def test_our_server_starts_answers_and_ends(tmp_path: Path, extra: tuple[str, ...], monkeypatch: Any) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")
    server = rate.Server("ours", (sys.executable, "-m", "benchmarks.serving.servers.aula_server"), 16, extra)
    engine = rate._engine(tmp_path / "engine.onnx")
    times: list[float] = []
    with rate.running(server, engine, tmp_path) as port:
        asyncio.run(rate._ask(port, times, requests=3))
    assert len(times) == 3
