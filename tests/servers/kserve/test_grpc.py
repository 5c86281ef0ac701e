"""The door over gRPC, message by message: what tritonclient would never send."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from aula.core.errors import SettingsError
from aula.servers import kserve
from aula.servers.house import House
from aula.servers.kserve.protocol import SERVICE, protocol
from tests.servers.kserve.serving import DTYPES, Gate, Keys, free_port, make_house, until

Call = Any
messages = protocol()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def house(gate: Gate) -> AsyncIterator[House]:
    house = make_house(gate)
    async with house.runtime:
        yield house
        gate.is_open.set()


@pytest.fixture
async def channel(house: House) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{free_port()}"
    server = await kserve.grpc_server(house, address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    await server.stop(None)


def method(channel: grpc.aio.Channel, name: str = "ModelInfer") -> Call:
    taken, given = protocol().methods[name]
    return channel.unary_unary(f"/{SERVICE}/{name}", taken.SerializeToString, given.FromString)


def wish(model: str = "twice", **more: Any) -> Any:
    return messages.ModelInferRequest(
        model_name=model,
        inputs=[
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "contents": {"fp32_contents": [1.5, 2.5]}},
            {"name": "bias", "shape": [1], "datatype": "INT64", "contents": {"int64_contents": [1]}},
        ],
        **more,
    )


async def told(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details() or ""


async def test_lists_in_and_bytes_out(channel: grpc.aio.Channel) -> None:
    came = await method(channel)(wish(id="turn 7"))
    assert (came.model_name, came.model_version, came.id) == ("twice", "7", "turn 7")
    assert [one.name for one in came.outputs] == ["y", "rows"]
    assert np.frombuffer(came.raw_output_contents[0], np.float32).tolist() == [4.0, 6.0]


async def test_lists_of_every_datatype(channel: grpc.aio.Channel) -> None:
    lists = {
        "BOOL": "bool_contents",
        "INT64": "int64_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
    request = messages.ModelInferRequest(model_name="echo")
    for name in DTYPES:
        if name in ("FP16", "BF16"):
            listed, values = "fp32_contents", [1.0, 0.0]
        else:
            listed = lists.get(name, "uint_contents" if name.startswith("U") else "int_contents")
            values = {"BOOL": [True, False], "BYTES": [b"a\x00", b""]}.get(name, [1, 0])  # type: ignore[assignment]
        request.inputs.add(name=name, shape=[2], datatype=name, contents={listed: values})
    code, why = await told(method(channel)(request))
    assert (code, "FP16" in why, "raw" in why) == ("INVALID_ARGUMENT", True, True)
    assert "bytes" not in why


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("INT8", {"int_contents": [128]}),
        ("UINT16", {"uint_contents": [65536]}),
        ("FP32", {"int_contents": [1]}),
        ("FP32", {"fp32_contents": [1, 2]}),
        ("FP16", {"fp32_contents": [1]}),
        ("FP31", {"fp32_contents": [1]}),
        ("", {}),
    ],
)
async def test_lists_that_do_not_fit(channel: grpc.aio.Channel, datatype: str, contents: dict[str, Any]) -> None:
    request = messages.ModelInferRequest(
        model_name="gate", inputs=[{"name": "x", "shape": [1], "datatype": datatype, "contents": contents}]
    )
    code, why = await told(method(channel)(request))
    assert code == "INVALID_ARGUMENT"
    assert "'x'" in why


@pytest.mark.parametrize(
    "raw", [[b"\x00" * 8], [b"\x00" * 8] * 3, [b"\x00" * 7, b"\x00" * 8], [b"\x00" * 8, b"\x00" * 9], [b"", b""]]
)
async def test_raw_contents_that_do_not_fit(channel: grpc.aio.Channel, raw: list[bytes]) -> None:
    code, why = await told(method(channel)(wish(raw_input_contents=raw)))
    assert code == "INVALID_ARGUMENT"
    assert "Next: " in why


async def test_parameters_of_every_kind(channel: grpc.aio.Channel) -> None:
    come = await method(channel)(
        wish(
            parameters={
                "timeout": {"uint64_param": 60_000_000},
                "tier": {"string_param": "batch"},
                "anything": {"double_param": 0.5},
                "nothing": {},
                "sequence_start": {"bool_param": False},
            }
        )
    )
    assert come.model_name == "twice"
    code, _ = await told(method(channel)(wish(parameters={"timeout": {"int64_param": -1}})))
    assert code == "INVALID_ARGUMENT"
    code, _ = await told(method(channel)(wish(parameters={"sequence_id": {"string_param": "a"}})))
    assert code == "UNIMPLEMENTED"


async def test_the_callers_own_deadline_reaches_the_scheduler(
    house: House, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[Any] = []
    infer = house.runtime.infer

    async def watched(name: str, inputs: Any, context: Any) -> Any:
        contexts.append(context)
        return await infer(name, inputs, context)

    monkeypatch.setattr(house.runtime, "infer", watched)
    before = house.runtime.clock.now()
    await method(channel)(wish())
    await method(channel)(wish(), timeout=50)
    await method(channel)(wish(parameters={"timeout": {"int64_param": 20_000_000}}), timeout=50)
    await method(channel)(wish(parameters={"timeout": {"int64_param": 90_000_000}}), timeout=50)
    after = house.runtime.clock.now()
    assert contexts[0].deadline is None
    for context, seconds in zip(contexts[1:], (50, 20, 50), strict=True):
        assert before + seconds - 1 < context.deadline < after + seconds + 1, "gRPC rounds what it sends"


async def test_the_work_of_a_caller_who_leaves_is_left(house: House, gate: Gate, channel: grpc.aio.Channel) -> None:
    one = {"name": "x", "shape": [1], "datatype": "FP32", "contents": {"fp32_contents": [1]}}
    request = messages.ModelInferRequest(model_name="gate", inputs=[one])
    await house.runtime.load("gate")
    gate.is_open.clear()
    gate.entered.clear()
    runs = gate.runs
    first = method(channel)(request)
    await asyncio.to_thread(gate.entered.wait, 30)
    second = method(channel)(request)
    await until(lambda: house.runtime.statistics().in_flight == 2)
    second.cancel()
    await until(lambda: house.runtime.statistics().cancelled == 1)
    gate.is_open.set()
    assert (await first).model_name == "gate"
    assert gate.runs == runs + 1


async def test_metadata_are_headers_to_the_doorman() -> None:
    keys = Keys({})
    house = make_house(doorman=keys)
    async with house.runtime:
        address = f"127.0.0.1:{free_port()}"
        server = await kserve.grpc_server(house, address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await method(channel)(
                    wish(), metadata=(("authorization", "Bearer slow down"), ("odd-bin", b"\xff\x00"))
                )
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ("retry-after", "3") in [(key, value) for key, value in error.value.trailing_metadata()]
            stream = channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer",
                messages.ModelInferRequest.SerializeToString,
                messages.ModelStreamInferResponse.FromString,
            )
            call = stream(metadata=(("authorization", "Bearer slow down"),))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call.read()
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert keys.clients == {"127.0.0.1"}
            live = method(channel, "ServerLive")
            assert (await live(messages.ServerLiveRequest())).live, "how the server is anybody may ask"
        await server.stop(None)


async def test_a_defect_is_told_in_the_house_and_not_to_the_caller(
    house: House, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infer(_name: str, _inputs: Any, _context: Any) -> Any:
        raise RuntimeError("a secret of the house")

    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told))
    monkeypatch.setattr(house.runtime, "infer", infer)
    code, why = await told(method(channel)(wish()))
    assert code == "INTERNAL"
    assert "secret" not in why
    assert [str(one["exception"]) for one in said] == ["a secret of the house"]


async def test_bytes_that_are_no_message(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for raw in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x2a\x02\x0a\x05"):
        code, _ = await told(call(raw))
        assert code == "INVALID_ARGUMENT"
    code, _ = await told(call(b""))
    assert code == "NOT_FOUND", "no name at all"
    code, _ = await told(channel.unary_unary(f"/{SERVICE}/ModelGuess")(b""))
    assert code == "UNIMPLEMENTED"


async def test_a_taken_address_is_told(house: House) -> None:
    address = f"127.0.0.1:{free_port()}"
    server = await kserve.grpc_server(house, address)
    with pytest.raises(SettingsError, match=address):
        await kserve.grpc_server(house, address)
    with pytest.raises(SettingsError, match="nowhere"):
        await kserve.grpc_server(house, "nowhere.invalid:1")
    await server.stop(None)
