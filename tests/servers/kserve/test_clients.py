"""tritonclient, which nobody here wrote, against both doors: whatever it can ask of an engine."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from aula.runtime import Rules
from aula.scheduling.admission import Quota
from aula.servers.callers import Caller
from tests.servers.kserve.serving import DTYPES, Doors, Keys, serving

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tritonclient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:geventhttpclient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gevent"),
]
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with serving() as doors:
        yield doors


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, doors: Doors) -> Iterator[Any]:
    module = {"http": over_http, "grpc": over_grpc}[request.param]
    with module.InferenceServerClient(getattr(doors, request.param)) as client:
        client.words = module
        yield client


def twice(rows: int = 2, width: int = 3) -> dict[str, NDArray[Any]]:
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    return {"x": x, "bias": np.arange(rows, dtype=np.int64)}


def everything(count: int = 5) -> dict[str, NDArray[Any]]:
    """Of each datatype the ends of its range, and strings with zeros at theirs."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        kind = np.dtype(dtype)
        if name == "BYTES":
            tensors[name] = np.array([b"", b"inertia", "惯性".encode(), b"\x00", b"ends\x00"], object)[:count]
        elif name == "BOOL":
            tensors[name] = np.array([True, False, True, True, False])[:count]
        elif kind.kind in "iu":
            limits = np.iinfo(kind)
            tensors[name] = np.array([limits.min, limits.max, 0, 1, 2], kind)[:count]
        else:
            largest = (ml_dtypes.finfo if name == "BF16" else np.finfo)(kind).max
            tensors[name] = np.array([float(largest), -1.5, 0.0, 0.25, -float(largest)], kind)[:count]
    return tensors


def as_inputs(words: Any, tensors: Arrays, *, binary: bool = True) -> list[Any]:
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    inputs = []
    for name, array in tensors.items():
        one = words.InferInput(name, list(array.shape), names[array.dtype])
        if words in (over_http, over_http_aio):
            one.set_data_from_numpy(array, binary_data=binary)
        else:
            one.set_data_from_numpy(array)
        inputs.append(one)
    return inputs


def ask(client: Any, model: str, tensors: Arrays, **options: Any) -> Any:
    return client.infer(model, as_inputs(client.words, tensors), **options)


def as_dict(client: Any, answer: Any) -> dict[str, Any]:
    """What gRPC's client gives as a message, as JSON's does."""
    if client.words is over_http:
        return dict(answer) if isinstance(answer, dict) else {"models": answer}
    return dict(MessageToDict(answer, preserving_proto_field_name=True))


def test_the_server_and_its_engines_tell_what_they_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("twice")
    assert client.is_model_ready("twice", "7")
    assert as_dict(client, client.get_server_metadata())["name"] == "aula"
    told = as_dict(client, client.get_model_metadata("twice"))
    assert (told["versions"], told["platform"]) == (["7"], "toy")
    assert [one["datatype"] for one in told["inputs"]] == ["FP32", "INT64"]
    assert [int(size) for size in told["inputs"][0]["shape"]] == [-1, -1]
    assert [one["name"] for one in told["outputs"]] == ["y", "rows"]
    index = as_dict(client, client.get_model_repository_index())["models"]
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("twice", "7", "READY"),
        ("echo", "1", "READY"),
        ("gate", "1", "READY"),
        ("shy", "1", "READY"),
    ]


def test_the_configuration_is_tritons(client: Any) -> None:
    told = as_dict(client, client.get_model_config("twice"))
    config = told.get("config", told)
    assert config["max_batch_size"] == 4
    assert [one["data_type"] for one in config["input"]] == ["TYPE_FP32", "TYPE_INT64"]
    assert [int(size) for size in config["input"][0]["dims"]] == [-1]
    assert not config["input"][1].get("dims"), "the batch is left out"
    assert "dynamic_batching" in config
    told = as_dict(client, client.get_model_config("echo"))
    config = told.get("config", told)
    assert not config.get("max_batch_size")
    assert "dynamic_batching" not in config
    assert {one["data_type"] for one in config["input"]} == {
        f"TYPE_{name}" for name in (*(set(DTYPES) - {"BYTES"}), "STRING")
    }


def test_an_engine_that_tells_its_datatypes_only_when_it_is_loaded_is_loaded(client: Any) -> None:
    told = as_dict(client, client.get_model_metadata("shy"))
    assert told["inputs"][0]["datatype"] == "FP32"
    assert told["outputs"][0]["name"] == "y"


def test_tensors_in_and_tensors_out(client: Any) -> None:
    answer = ask(client, "twice", twice(), request_id="a turn")
    assert answer.as_numpy("y").tolist() == [[0, 2, 4], [7, 9, 11]]
    assert answer.as_numpy("rows").tolist() == [2, 2]
    told = as_dict(client, answer.get_response())
    assert (told["model_name"], told["model_version"], told["id"]) == ("twice", "7", "a turn")


def test_every_datatype_comes_back_as_it_went(client: Any) -> None:
    sent = everything()
    answer = ask(client, "echo", sent)
    for name, array in sent.items():
        came = answer.as_numpy(f"{name}_again")
        assert came.dtype == array.dtype
        assert came.tolist() == array.tolist()


def test_only_the_outputs_that_are_wanted(client: Any) -> None:
    wanted = client.words.InferRequestedOutput("rows")
    answer = ask(client, "twice", twice(), outputs=[wanted])
    assert answer.as_numpy("rows").tolist() == [2, 2]
    assert answer.as_numpy("y") is None


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_in_both_directions(doors: Doors, binary_in: bool, binary_out: bool) -> None:
    with over_http.InferenceServerClient(doors.http) as client:
        outputs = [over_http.InferRequestedOutput(name, binary_data=binary_out) for name in ("y", "rows")]
        answer = client.infer("twice", as_inputs(over_http, twice(), binary=binary_in), outputs=outputs)
        assert answer.as_numpy("y").tolist() == [[0, 2, 4], [7, 9, 11]]
        assert ("data" in answer.get_output("y")) is not binary_out


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_packed_bodies(doors: Doors, packing: str) -> None:
    with over_http.InferenceServerClient(doors.http) as client:
        tensors = twice(4, 4096)
        answer = client.infer(
            "twice",
            as_inputs(over_http, tensors),
            request_compression_algorithm=packing,
            response_compression_algorithm=packing,
        )
        assert np.array_equal(answer.as_numpy("y"), 2 * tensors["x"] + tensors["bias"][:, None])


def test_grpc_packs_too(doors: Doors) -> None:
    with over_grpc.InferenceServerClient(doors.grpc) as client:
        tensors = twice(4, 4096)
        answer = client.infer("twice", as_inputs(over_grpc, tensors), compression_algorithm="gzip")
        assert np.array_equal(answer.as_numpy("y"), 2 * tensors["x"] + tensors["bias"][:, None])


WRONG: dict[str, tuple[dict[str, NDArray[Any]], str, str]] = {
    "name": ({"z": np.ones((1, 3), np.float32), "bias": np.zeros(1, np.int64)}, "x float32", "z"),
    "missing": ({"x": np.ones((1, 3), np.float32)}, "bias int64", "was given"),
    "dtype": ({**twice(1), "x": np.ones((1, 3))}, "x float32", "float64"),
    "shape": ({**twice(1), "x": np.ones(3, np.float32)}, "x float32", "[3]"),
    "batch": ({**twice(2), "bias": np.zeros(1, np.int64)}, "bias int64", "batch"),
    "profile": (twice(5), "batch 1 to 4", "profile"),
    "nan": ({**twice(1), "x": np.full((1, 3), np.nan, np.float32)}, "", "NaN"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_tensors_that_the_engine_does_not_take(client: Any, fault: str) -> None:
    tensors, available, what = WRONG[fault]
    with pytest.raises(InferenceServerException) as told:
        ask(client, "twice", tensors)
    assert told.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert available in told.value.message()
    assert what in told.value.message()
    assert ask(client, "twice", twice()).as_numpy("rows").tolist() == [2, 2], "and the next request is served"


def test_outputs_that_there_are_not(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="no output 'z'") as told:
        ask(client, "twice", twice(), outputs=[client.words.InferRequestedOutput("z")])
    assert told.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_engines_that_there_are_not(client: Any) -> None:
    for call in (
        lambda: ask(client, "thrice", twice()),
        lambda: ask(client, "twice", twice(), model_version="8"),
        lambda: client.get_model_metadata("thrice"),
        lambda: client.get_model_config("thrice"),
        lambda: client.get_inference_statistics("thrice"),
    ):
        with pytest.raises(InferenceServerException, match="twice") as told:
            call()  # type: ignore[no-untyped-call]
        assert told.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_a_timeout_that_is_over_is_told_as_one(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="deadline") as told:
        ask(client, "twice", twice(), timeout=1)
    assert told.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")
    ask(client, "twice", twice(), timeout=60_000_000)


def test_a_refusal_by_prediction_says_when_to_come_again(client: Any, doors: Doors) -> None:
    """The gate is shut, and whoever is before it takes longer than the other has."""
    doors.gate.is_open.clear()
    doors.gate.entered.clear()
    module = client.words
    tensors = {"x": np.ones(2, np.float32)}
    answers: list[Any] = []

    def hold() -> None:
        with module.InferenceServerClient(doors.http if module is over_http else doors.grpc) as other:
            answers.append(other.infer("gate", as_inputs(module, tensors)))

    held = threading.Thread(target=hold)
    held.start()
    try:
        assert doors.gate.entered.wait(30)
        with pytest.raises(InferenceServerException) as told:
            ask(client, "gate", tensors, timeout=20)
        assert told.value.status() in (
            "503",
            "504",
            "StatusCode.UNAVAILABLE",
            "StatusCode.DEADLINE_EXCEEDED",
        )
    finally:
        doors.gate.is_open.set()
        held.join()
    assert answers[0].as_numpy("y").tolist() == [1, 1]


def test_statistics_count_what_came_of_requests(client: Any) -> None:
    def counted() -> dict[str, Any]:
        (told,) = as_dict(client, client.get_inference_statistics("twice"))["model_stats"]
        return dict(told)

    ask(client, "twice", twice())
    before = counted()
    ask(client, "twice", twice(3))
    with pytest.raises(InferenceServerException):
        ask(client, "twice", twice(5))
    after = counted()

    def grown(*path: str) -> int:
        values = []
        for told in (before, after):
            value: Any = told
            for name in path:
                value = value.get(name, 0) if isinstance(value, dict) else 0
            values.append(int(value))
        return values[1] - values[0]

    assert grown("inference_count") == 3
    assert grown("execution_count") == 1
    assert grown("inference_stats", "success", "count") == 1
    assert grown("inference_stats", "fail", "count") == 1
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(grown("inference_stats", stage, "ns") >= 0 for stage in stages)
    assert sum(int(after["inference_stats"][stage]["ns"]) for stage in stages) == pytest.approx(
        int(after["inference_stats"]["success"]["ns"]), abs=8
    )
    everyone = as_dict(client, client.get_inference_statistics())["model_stats"]
    assert {one["name"] for one in everyone} == {"twice", "echo", "gate", "shy"}


async def test_clients_that_await(doors: Doors) -> None:
    for module, address in ((over_http_aio, doors.http), (over_grpc_aio, doors.grpc)):
        words = over_http_aio if module is over_http_aio else over_grpc
        async with module.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(
                *(client.infer("twice", as_inputs(words, twice(1 + index % 4))) for index in range(32))
            )
        for index, answer in enumerate(answers):
            rows = 1 + index % 4
            x = twice(rows)
            assert np.array_equal(answer.as_numpy("y"), 2 * x["x"] + x["bias"][:, None])
            assert answer.as_numpy("rows")[0] >= rows, "more where requests shared a run"


async def test_http_calls_that_are_many_at_once(doors: Doors) -> None:
    with over_http.InferenceServerClient(doors.http, concurrency=8) as client:
        asked = [client.async_infer("twice", as_inputs(over_http, twice())) for _ in range(16)]
        assert all(one.get_result().as_numpy("y").tolist() == [[0, 2, 4], [7, 9, 11]] for one in asked)


def test_a_stream_goes_on_after_a_fault_in_it(doors: Doors) -> None:
    came: list[tuple[Any, Any]] = []
    is_whole = threading.Event()

    def heard(result: Any, error: Any) -> None:
        came.append((result, error))
        if len(came) == 3:
            is_whole.set()

    with over_grpc.InferenceServerClient(doors.grpc) as client:
        client.start_stream(heard)
        client.async_stream_infer("twice", as_inputs(over_grpc, twice()), request_id="1")
        client.async_stream_infer("thrice", as_inputs(over_grpc, twice()), request_id="2")
        client.async_stream_infer("twice", as_inputs(over_grpc, twice()), request_id="3")
        assert is_whole.wait(30)
        client.stop_stream()
    (first, _), (_, fault), (last, _) = came
    assert first.get_response().id == "1"
    assert "twice" in fault.message()
    assert last.as_numpy("y").tolist() == [[0, 2, 4], [7, 9, 11]]


def test_what_is_tritons_own_is_refused_by_name(doors: Doors) -> None:
    with over_http.InferenceServerClient(doors.http) as client:
        for call in (
            lambda: client.load_model("twice"),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.get_trace_settings(),
        ):
            with pytest.raises(InferenceServerException, match="not served here") as told:
                call()  # type: ignore[no-untyped-call]
            assert told.value.status() == "501"
        inputs = as_inputs(over_http, twice())
        with pytest.raises(InferenceServerException, match="sequence_id"):
            client.infer("twice", inputs, sequence_id=3, sequence_start=True)
    with over_grpc.InferenceServerClient(doors.grpc) as client:
        with pytest.raises(InferenceServerException) as told:
            client.load_model("twice")
        assert told.value.status() == "StatusCode.UNIMPLEMENTED"


CLASS = Caller(tenant="7b", tier="caption", abilities=frozenset({"infer"}), key="7b-1")


def test_keys_tiers_and_tenants() -> None:
    """A key is for its tenant, and for its tier and what is less urgent."""
    keys = Keys({"secret": CLASS})
    rules = Rules(quotas={"7c": Quota(rate=1e-3, burst=1)})
    with serving(keys, rules) as doors:
        for module, address in ((over_http, doors.http), (over_grpc, doors.grpc)):
            with module.InferenceServerClient(address) as client:
                client.words = module
                mine: dict[str, Any] = {"headers": {"authorization": "Bearer secret"}}
                ask(client, "twice", twice(), **mine)
                ask(client, "twice", twice(), parameters={"tier": "batch", "tenant": "7b"}, **mine)
                ask(client, "twice", twice(), priority=3, **mine)
                for parameters in ({"tier": "question"}, {"tenant": "7c"}):
                    with pytest.raises(InferenceServerException) as told:
                        ask(client, "twice", twice(), parameters=parameters, **mine)
                    assert told.value.status() in ("403", "StatusCode.PERMISSION_DENIED")
                with pytest.raises(InferenceServerException) as told:
                    ask(client, "twice", twice(), priority=1, **mine)
                assert told.value.status() in ("403", "StatusCode.PERMISSION_DENIED")
                with pytest.raises(InferenceServerException) as told:
                    ask(client, "twice", twice(), parameters={"tier": "urgent"}, **mine)
                assert told.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
                with pytest.raises(InferenceServerException) as told:
                    ask(client, "twice", twice(), headers={"authorization": "Bearer slow down"})
                assert told.value.status() in ("429", "StatusCode.RESOURCE_EXHAUSTED")
        tiers = [one.tier_ms for one in doors.call(doors.house.runtime.statistics).schedulers]
        assert all(tier["question"] == 0 for tier in tiers)
        assert max(tier["caption"] for tier in tiers) > 0
        assert max(tier["batch"] for tier in tiers) > 0
        assert max(tier["vision"] for tier in tiers) > 0
        assert set(keys.asked) == {"infer"}
