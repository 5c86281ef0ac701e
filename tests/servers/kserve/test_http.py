"""The door over HTTP, byte by byte: what a careful client sends, what a careless one does, and one who leaves."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from starlette.applications import Starlette

from aula.core.clock import FakeClock
from aula.servers import kserve
from aula.servers.house import House
from aula.servers.kserve import bodies, tensors
from tests.servers.kserve.serving import DTYPES, Gate, make_house, until
from tests.serving.hand import by_hand

INFER = "/v2/models/twice/infer"
LENGTH = "Inference-Header-Content-Length"


def request(rows: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": [1.5] * 2 * rows},
            {"name": "bias", "shape": [rows], "datatype": "INT64", "data": list(range(rows))},
        ],
        **more,
    }


def binary(head: dict[str, Any], *raw: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return b"".join((text, *raw)), {LENGTH: str(len(text))}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = make_house()
    async with house.runtime:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Starlette(routes=kserve.routes(house)))
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
        yield client


async def test_plain_json(client: httpx.AsyncClient) -> None:
    came = await client.post(INFER, json=request(2, id="turn 7"))
    assert came.status_code == 200
    assert came.headers["content-type"] == "application/json"
    assert LENGTH not in came.headers
    assert came.json() == {
        "model_name": "twice",
        "model_version": "7",
        "id": "turn 7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [3.0, 3.0, 4.0, 4.0]},
            {"name": "rows", "datatype": "INT64", "shape": [2], "data": [2, 2]},
        ],
    }


async def test_numbers_nested_as_the_shape_is(client: httpx.AsyncClient) -> None:
    asked = request(2)
    asked["inputs"][0]["data"] = [[1, 2], [3, 4]]
    came = await client.post(INFER, json=asked)
    assert came.json()["outputs"][0]["data"] == [2.0, 4.0, 7.0, 9.0]


async def test_a_version_in_the_path(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v2/models/twice/versions/7/infer", json=request())).status_code == 200
    came = await client.post("/v2/models/twice/versions/8/infer", json=request())
    assert came.status_code == 404
    assert "7" in came.json()["error"]


async def test_bytes_in_and_bytes_out_for_each_output_that_wants_them(client: httpx.AsyncClient) -> None:
    head = request()
    head["inputs"][0] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head["outputs"] = [{"name": "rows"}, {"name": "y", "parameters": {"binary_data": True}}]
    body, headers = binary(head, np.array([0.5, -1.0], np.float32).tobytes())
    came = await client.post(INFER, content=body, headers=headers)
    assert came.headers["content-type"] == "application/octet-stream"
    length = int(came.headers[LENGTH])
    rows, y = json.loads(came.content[:length])["outputs"]
    assert rows == {"name": "rows", "datatype": "INT64", "shape": [1], "data": [1]}
    assert y == {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    assert np.frombuffer(came.content[length:], np.float32).tolist() == [1.0, -2.0]


async def test_all_datatypes_in_json(client: httpx.AsyncClient) -> None:
    """Those of half precision come as bytes; JSON has no numbers for them."""
    inputs: list[dict[str, Any]] = []
    halves = []
    for name in DTYPES:
        one: dict[str, Any] = {"name": name, "shape": [2], "datatype": name}
        if name in ("FP16", "BF16"):
            halves.append(np.array([1.5, -2], DTYPES[name]).tobytes())
            one["parameters"] = {"binary_data_size": 4}
        else:
            one["data"] = {"BOOL": [True, False], "BYTES": ["惯性", ""]}.get(name, [1, 2])
        inputs.append(one)
    outputs = [
        {"name": f"{name}_again", "parameters": {"binary_data": name in ("FP16", "BF16")}} for name in sorted(DTYPES)
    ]
    body, headers = binary({"inputs": inputs, "outputs": outputs}, *halves)
    came = await client.post("/v2/models/echo/infer", content=body, headers=headers)
    assert came.status_code == 200, came.text
    length = int(came.headers[LENGTH])
    told = {one["name"]: one.get("data") for one in json.loads(came.content[:length])["outputs"]}
    assert list(told) == [one["name"] for one in outputs]
    assert told["BOOL_again"] == [True, False]
    assert told["BYTES_again"] == ["惯性", ""]
    assert told["UINT64_again"] == told["FP64_again"] == [1, 2]
    raw = came.content[length:]
    assert np.frombuffer(raw[:4], ml_dtypes.bfloat16).tolist() == [1.5, -2]
    assert np.frombuffer(raw[4:], np.float16).tolist() == [1.5, -2]
    del outputs[0]["parameters"]
    body, headers = binary({"inputs": inputs, "outputs": outputs}, *halves)
    came = await client.post("/v2/models/echo/infer", content=body, headers=headers)
    assert came.status_code == 400
    assert "BF16" in came.json()["error"]


async def test_what_is_no_number_is_null(client: httpx.AsyncClient) -> None:
    """JSON has neither infinity nor NaN, and bytes keep both."""
    tensor = np.array([np.inf, 1], np.float32).tobytes()
    one = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    body, headers = binary({"inputs": [one]}, tensor)
    assert (await client.post("/v2/models/gate/infer", content=body, headers=headers)).json()["outputs"][0]["data"] == [
        None,
        1.0,
    ]
    body, headers = binary({"inputs": [one], "parameters": {"binary_data_output": True}}, tensor)
    assert (await client.post("/v2/models/gate/infer", content=body, headers=headers)).content.endswith(tensor)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
async def test_packed_both_ways(client: httpx.AsyncClient, packing: str) -> None:
    asked = json.dumps(request(4, parameters={"binary_data_output": False})).encode()
    content = gzip.compress(asked) if packing == "gzip" else zlib.compress(asked)
    came = await client.post(INFER, content=content, headers={"content-encoding": packing, "accept-encoding": packing})
    assert came.status_code == 200
    assert "content-encoding" not in came.headers, "so little gains nothing"
    wide = {"name": "x", "shape": [2000], "datatype": "FP32", "data": [1.0] * 2000}
    answers = [
        await client.post("/v2/models/gate/infer", json={"inputs": [wide]}, headers={"accept-encoding": accepted})
        for accepted in (packing, "gzip, deflate, br")
    ]
    assert [one.headers.get("content-encoding") for one in answers] == [packing, None]
    assert answers[0].json() == answers[1].json()


FAULTS: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", {}, 400, "no such request"),
    (b"{", {}, 400, "no such request"),
    (b"\xff\xfe", {}, 400, "no such request"),
    (b"[]", {}, 400, "Expected `object`"),
    (b"{}", {}, 400, "inputs"),
    (b"[" * 100_000, {}, 400, "no such request"),
    (b'{"inputs": [{"name": 1}]}', {}, 400, "inputs[0].name"),
    (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}', {}, 400, "neither data"),
    (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP31", "data": [1, 2]}]}', {}, 400, "FP31"),
    (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP16", "data": [1, 2]}]}', {}, 400, "binary"),
    (b'{"inputs": [{"name": "x", "shape": [-1, 2], "datatype": "FP32", "data": [1, 2]}]}', {}, 400, "shape"),
    (b'{"inputs": [{"name": "x", "shape": [0, 9999999999999], "datatype": "FP32", "data": []}]}', {}, 400, "shape"),
    (b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2]}]}', {}, 400, "3 elements"),
    (b'{"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1], [2]]}]}', {}, 400, "4 elements"),
    (b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[[1]]]}]}', {}, 400, "no FP32"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1e39]}]}', {}, 400, "no FP32"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [128]}]}', {}, 400, "no INT8"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1.5]}]}', {}, 400, "no INT64"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "UINT64", "data": [-1]}]}', {}, 400, "no UINT64"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BOOL", "data": [1]}]}', {}, 400, "no BOOL"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [1]}]}', {}, 400, "no BYTES"),
    (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": null}]}', {}, 400, "no FP32"),
    (json.dumps(request()).encode(), {LENGTH: "-1"}, 400, LENGTH),
    (json.dumps(request()).encode(), {LENGTH: "9" * 40}, 400, LENGTH),
    (json.dumps(request()).encode() + b"xx", {LENGTH: str(len(json.dumps(request())))}, 400, "2 bytes behind"),
    (json.dumps(request(parameters={"timeout": "soon"})).encode(), {}, 400, "timeout"),
    (json.dumps(request(parameters={"timeout": True})).encode(), {}, 400, "timeout"),
    (json.dumps(request(parameters={"timeout": 10**30})).encode(), {}, 400, "timeout"),
    (json.dumps(request(parameters={"priority": 5})).encode(), {}, 400, "priority"),
    (json.dumps(request(parameters={"tier": ["question"]})).encode(), {}, 400, "tier"),
    (json.dumps(request(parameters={"tenant": 7})).encode(), {}, 400, "tenant"),
    (json.dumps(request(outputs=[{"name": "z"}])).encode(), {}, 400, "no output 'z'"),
    (
        json.dumps(request(outputs=[{"name": "y", "parameters": {"classification": 2}}])).encode(),
        {},
        501,
        "classification",
    ),
    (b"never packed", {"content-encoding": "gzip"}, 400, "no gzip"),
    (gzip.compress(json.dumps(request()).encode())[:-4], {"content-encoding": "gzip"}, 400, "one whole gzip"),
    (json.dumps(request()).encode(), {"content-encoding": "br"}, 501, "gzip, deflate"),
    (b"", {"content-length": str(bodies.MOST_BYTES + 1)}, 413, "send less"),
]


@pytest.mark.parametrize(("content", "headers", "status", "told"), FAULTS, ids=range(len(FAULTS)))
async def test_faults_are_told_with_the_next_step(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int, told: str
) -> None:
    came = await client.post(INFER, content=content, headers=headers)
    assert came.status_code == status
    assert list(came.json()) == ["error"]
    assert told in came.json()["error"]
    assert "Next: " in came.json()["error"]
    assert (await client.post(INFER, json=request())).status_code == 200


@pytest.mark.parametrize(
    ("sizes", "tensor"),
    [((9,), 8), ((4, 4), 8), ((True,), 8), ((-1,), 8), (("8",), 8), ((8,), 9), ((8, 8), 8)],
)
async def test_binary_sizes_that_do_not_add_up(client: httpx.AsyncClient, sizes: tuple[Any, ...], tensor: int) -> None:
    inputs = [
        {"name": name, "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
        for name, size in zip(("x", "bias"), sizes, strict=False)
    ]
    body, headers = binary({"inputs": inputs}, bytes(tensor))
    came = await client.post(INFER, content=body, headers=headers)
    assert came.status_code == 400
    assert "bytes" in came.json()["error"]


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x05\x00\x00\x00ab", b"\xff\xff\xff\xffab", b"\x00" * 9])
async def test_strings_that_end_elsewhere(client: httpx.AsyncClient, raw: bytes) -> None:
    one = {"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body, headers = binary({"inputs": [one]}, raw)
    came = await client.post(INFER, content=body, headers=headers)
    assert came.status_code == 400
    assert "strings" in came.json()["error"]


async def test_a_small_body_that_unpacks_to_a_large_one(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST_BYTES", 1000)
    came = await client.post(INFER, content=gzip.compress(b" " * 2000), headers={"content-encoding": "gzip"})
    assert came.status_code == 413


async def test_more_json_than_the_loop_should_read(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST_JSON", 100)
    came = await client.post(INFER, json=request())
    assert came.status_code == 413
    assert "binary" in came.json()["error"]


async def test_longer_lists_than_the_loop_should_write(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "MOST_NUMBERS", 3)
    monkeypatch.setattr(tensors, "MOST_STRINGS", 1)
    text, number = np.zeros(4, np.float32).tobytes(), {"name": "x", "shape": [4], "datatype": "FP32"}
    for one in (
        {**number, "data": [0] * 4},
        {**number, "parameters": {"binary_data_size": 16}},
        {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["", ""]},
        {"name": "x", "shape": [4], "datatype": "BYTES", "parameters": {"binary_data_size": 16}},
    ):
        body, headers = binary({"inputs": [one]}, text if "parameters" in one else b"")
        came = await client.post("/v2/models/gate/infer", content=body, headers=headers)
        assert came.status_code == 400
        assert "elements" in came.json()["error"] or "up to 1 strings" in came.json()["error"]


async def test_a_body_in_pieces_without_a_length(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps(request()).encode():
            yield bytes([byte])

    assert (await client.post(INFER, content=pieces())).status_code == 200
    monkeypatch.setattr(bodies, "MOST_BYTES", 50)
    assert (await client.post(INFER, content=pieces())).status_code == 413


async def test_paths_and_methods(client: httpx.AsyncClient) -> None:
    for path, method, status in (
        ("/v2/nothing", "GET", 404),
        ("/v2/models/twice/nothing", "GET", 404),
        ("/v2/models/", "GET", 404),
        (INFER, "GET", 405),
        ("/v2", "DELETE", 405),
        ("/v2/repository/index", "GET", 405),
        ("/v2/repository/models/twice/load", "POST", 501),
        ("/v2/cudasharedmemory/region/a/register", "POST", 501),
    ):
        came = await client.request(method, path)
        assert came.status_code == status, path
        assert "Next: " in came.json()["error"]


async def test_the_index_of_those_that_are_ready(client: httpx.AsyncClient) -> None:
    assert len((await client.post("/v2/repository/index")).json()) == 4
    assert len((await client.post("/v2/repository/index", json={"ready": True})).json()) == 4
    assert (await client.post("/v2/repository/index", content=b"[")).status_code == 400


async def test_an_engine_that_is_out_of_order_is_not_ready(house: House, client: httpx.AsyncClient) -> None:
    house.runtime._groups["infer.twice"].ladders["infer.twice"].load_failed("twice")
    assert (await client.get("/v2/models/twice/ready")).status_code == 503
    assert (await client.get("/v2/health/ready")).status_code == 503
    assert (await client.get("/v2/models/echo/ready")).status_code == 200
    assert (await client.get("/v2/health/live")).status_code == 200
    states = {one["name"]: one["state"] for one in (await client.post("/v2/repository/index")).json()}
    assert states == {"twice": "UNAVAILABLE", "echo": "READY", "gate": "READY", "shy": "READY"}
    came = await client.post(INFER, json=request())
    assert came.status_code == 503
    assert int(came.headers["retry-after"]) >= 1


async def test_tensors_lie_where_engines_like_them(house: House) -> None:
    """Whatever the length of the JSON before them: aligned, to be written to, and the same memory that was received."""
    for padding in range(70):
        head = json.dumps({"inputs": [], "id": "7" * padding}).encode()

        async def receive(content: bytes = head + bytes(range(64))) -> dict[str, Any]:
            return {"type": "http.request", "body": content}

        body = await bodies.read_body(receive, {bodies.HEADER_LENGTH: str(len(head)).encode()})
        assert bytes(body.json) == head
        array = np.frombuffer(body.tensors, np.uint8)
        assert array.tolist() == list(range(64))
        assert array.ctypes.data % bodies.ALIGNED == 0
        assert array.flags.writeable


class Seat:
    """A client as ASGI knows him, who may leave."""

    def __init__(self, house: House, path: str, content: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.sent: list[Any] = []
        self._content, self._left = content, asyncio.Event()
        self._has_asked = False
        app = Starlette(routes=kserve.routes(house))
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.visit = asyncio.ensure_future(app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> Any:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "http.request", "body": self._content}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def test_the_work_of_a_client_who_leaves_is_left() -> None:
    gate = Gate()
    house = make_house(gate)
    one = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
    async with house.runtime:
        await house.runtime.load("gate")
        gate.is_open.clear()
        gate.entered.clear()
        loaded_runs = gate.runs
        first = Seat(house, "/v2/models/gate/infer", one)
        await asyncio.to_thread(gate.entered.wait, 30)
        second = Seat(house, "/v2/models/gate/infer", one)
        await until(lambda: house.runtime.statistics().in_flight == 2)
        second.leave()
        await second.visit
        assert second.sent == []
        assert house.runtime.statistics().cancelled == 1
        gate.is_open.set()
        await first.visit
        assert first.sent[0]["status"] == 200
        assert gate.runs == loaded_runs + 1, "what nobody waits for is not run"
        assert house.runtime.statistics().in_flight == 0


async def test_a_timeout_counts_from_the_moment_at_which_the_request_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a clock that stands still the deadline is exact."""
    with by_hand():
        clock = FakeClock(100.0)
        house = make_house(clock=clock)
        deadlines: list[float | None] = []

        async def infer(_name: str, _inputs: Any, context: Any) -> Any:
            deadlines.append(context.deadline)
            return {"y": np.zeros((1, 2), np.float32), "rows": np.ones(1, np.int64)}

        monkeypatch.setattr(house.runtime, "infer", infer)
        for timeout in (250_000, 0, None):
            parameters = {} if timeout is None else {"timeout": timeout}
            seat = Seat(house, INFER, json.dumps(request(parameters=parameters)).encode())
            await seat.visit
            assert seat.sent[0]["status"] == 200
        assert deadlines == [100.25, None, None]
